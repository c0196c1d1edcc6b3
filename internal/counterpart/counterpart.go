// Package counterpart finds the real programs that tests run this library
// against, such as openssl.
package counterpart

import (
	"os"
	"os/exec"
	"testing"
)

// Program returns the path of a program. Where it is not installed the test is
// skipped, or fails if QUARKLINK_REAL=require says that real counterparts have to
// be there.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	Missing(tb, err)
	return path
}

// Missing skips the test if err is not nil, or fails it as Program does.
func Missing(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case os.Getenv("QUARKLINK_REAL") == "require":
		tb.Fatalf("required here: %v", err)
	default:
		tb.Skip(err)
	}
}
