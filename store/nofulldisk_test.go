//go:build !linux

package store

func limitFileSize() error { return nil }

func isNoSpace(error) bool { return false }
