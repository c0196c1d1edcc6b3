//go:build !linux

package store

func limitFileSize() (lift func() error, err error) {
	return func() error { return nil }, nil
}

func isNoSpace(error) bool { return false }
