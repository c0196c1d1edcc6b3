//go:build unix

package quarklinktest

import "os"

// syncDir makes a rename in the directory last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
