package tpm2test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	gotpm "github.com/google/go-tpm/tpm2"
)

// Send sends a command to the TPM and returns its answer.
type Send func(command []byte) (answer []byte, err error)

// Hook decides what becomes of a command. It may pass it on with next, to which it
// may pass anything, and return what it likes; an error closes the connection
// without an answer. Hooks run one at a time.
type Hook func(command []byte, next Send) (answer []byte, err error)

// Command returns the command code of a command, 0 if it has none.
func Command(command []byte) gotpm.TPMCC {
	if len(command) < headerSize {
		return 0
	}
	return gotpm.TPMCC(binary.BigEndian.Uint32(command[6:]))
}

// Answer returns an answer that consists of a response code only, as all errors are.
func Answer(code uint32) []byte {
	const noSessions = 0x8001 // TPM_ST_NO_SESSIONS
	answer := binary.BigEndian.AppendUint16(nil, noSessions)
	answer = binary.BigEndian.AppendUint32(answer, headerSize)
	return binary.BigEndian.AppendUint32(answer, code)
}

// Intercept lets hook decide about all further commands sent to [TPM.Path]. nil
// ends that: commands pass.
func (t *TPM) Intercept(hook Hook) { t.tap.set(hook) }

// Cut is what happens to a command that does not get its answer.
type Cut int

const (
	KillBefore Cut = iota // the TPM is killed and never sees the command
	KillDuring            // the TPM gets the command and is killed at once
	KillAfter             // the TPM has carried out the command and is killed
	LoseAnswer            // the TPM has carried out the command and runs on; the connection breaks
)

// Cuts are all of them.
var Cuts = []Cut{KillBefore, KillDuring, KillAfter, LoseAnswer}

// String returns the cut's name.
func (c Cut) String() string {
	names := []string{"KillBefore", "KillDuring", "KillAfter", "LoseAnswer"}
	if c < 0 || int(c) >= len(names) {
		return fmt.Sprintf("Cut(%d)", int(c))
	}
	return names[c]
}

var errCut = errors.New("tpm2test: the command was cut off")

// CutAt cuts off the command that comes after n further ones; 0 is the next.
// Afterwards commands pass, once the TPM has power again. The function it returns
// tells which command it was, 0 as long as it has not come. CutAt replaces the hook
// of Intercept.
func (t *TPM) CutAt(n int, c Cut) (which func() gotpm.TPMCC) {
	var mu sync.Mutex
	var at gotpm.TPMCC
	t.Intercept(func(command []byte, next Send) ([]byte, error) {
		mu.Lock()
		now := n == 0
		n--
		if now {
			at = Command(command)
		}
		mu.Unlock()
		if !now {
			return next(command)
		}
		return nil, t.cut(c, command, next)
	})
	return func() gotpm.TPMCC {
		mu.Lock()
		defer mu.Unlock()
		return at
	}
}

func (t *TPM) cut(c Cut, command []byte, next Send) error {
	switch c {
	case KillDuring:
		conn, err := net.Dial("unix", t.Direct())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(command); err != nil {
			return err
		}
	case KillAfter, LoseAnswer:
		if _, err := next(command); err != nil {
			return err
		}
	}
	if c != LoseAnswer {
		if err := t.Kill(); err != nil {
			return err
		}
	}
	return errCut
}

// tap stands between the clients and swtpm.
type tap struct {
	listener net.Listener
	tpm      *TPM

	mu   sync.Mutex // guards hook
	hook Hook
	turn sync.Mutex // hooks run one at a time
}

func newTap(t *TPM) (*tap, error) {
	l, err := net.Listen("unix", t.Path())
	if err != nil {
		return nil, err
	}
	tp := &tap{listener: l, tpm: t}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go tp.serve(conn)
		}
	}()
	return tp, nil
}

func (tp *tap) close() { tp.listener.Close() }

func (tp *tap) set(hook Hook) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.hook = hook
}

// serve carries the commands of one client until it hangs up.
func (tp *tap) serve(conn net.Conn) {
	defer conn.Close()
	for {
		command, err := readMessage(conn)
		if err != nil {
			return
		}
		tp.mu.Lock()
		hook := tp.hook
		tp.mu.Unlock()
		var answer []byte
		if hook == nil {
			answer, err = tp.tpm.direct().Send(command)
		} else {
			tp.turn.Lock()
			answer, err = hook(command, tp.tpm.direct().Send)
			tp.turn.Unlock()
		}
		if err != nil {
			return
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// Of a command and of an answer: tag, size, code.
const (
	headerSize = 10
	maxMessage = 4096
)

// readMessage reads one command or one answer, however it is cut into pieces.
func readMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, headerSize, 512)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(message[2:])
	if size < headerSize || size > maxMessage {
		return nil, fmt.Errorf("tpm2test: a message of %d bytes", size)
	}
	message = append(message, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(r, message[headerSize:])
	return message, err
}
