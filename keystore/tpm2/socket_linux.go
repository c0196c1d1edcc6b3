//go:build linux

package tpm2

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// socket is a Unix socket on which a TPM in software listens. It is connected for
// each command, so that several programs take turns, and reads an answer however it
// is cut into pieces.
type socket struct {
	path string

	mu     sync.Mutex
	conn   net.Conn // nil between commands
	closed bool
}

func newSocket(path string) *socket { return &socket{path: path} }

// Send implements Transport.
func (s *socket) Send(command []byte) ([]byte, error) {
	conn, err := s.connect()
	if err != nil {
		return nil, err
	}
	defer s.hangUp(conn)
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, headerSize, 512)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(answer[2:])
	if size < headerSize || size > maxMessage {
		return nil, fmt.Errorf("%w: an answer that claims %d bytes", errNotTPM, size)
	}
	answer = append(answer, make([]byte, size-headerSize)...)
	_, err = io.ReadFull(conn, answer[headerSize:])
	return answer, err
}

func (s *socket) connect() (net.Conn, error) {
	conn, err := net.Dial("unix", s.path)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	s.conn = conn
	return conn, nil
}

func (s *socket) hangUp(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn.Close()
	s.conn = nil
}

// Close implements io.Closer.
func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn == nil {
		return nil
	}
	return s.conn.Close()
}
