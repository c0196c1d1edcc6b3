// Package quarklink links a device to its QuarkLink instance.
package quarklink
