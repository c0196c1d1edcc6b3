//go:build !unix

package quarklinktest

// syncDir does nothing: this system cannot flush a directory.
func syncDir(string) error { return nil }
