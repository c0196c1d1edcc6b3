package quarklinktest

import "os"

// For the tests of this package.
var (
	ByteRange          = byteRange
	ParseFirmwareField = parseFirmwareField
)

// BreakState lets the state be written to another file from now on.
func BreakState(s *Server, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	s.journal.file.Close()
	s.journal.file = file
}
