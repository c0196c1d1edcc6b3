//go:build !unix

package main

import "context"

// lockFile locks nothing: where there is no flock, one process alone may use the
// bus.
func lockFile(string) func(context.Context) (func(), error) {
	return func(context.Context) (func(), error) { return func() {}, nil }
}
