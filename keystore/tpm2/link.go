package tpm2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
)

// channel carries commands to a TPM, one at a time. Close, which may be called
// meanwhile, makes a Send that waits return if the system allows it.
type channel interface {
	Transport
	io.Closer
}

// link is the connection to a TPM: it opens the channel when it is needed, anew
// after it broke.
type link struct {
	open func() (channel, error)
	// managed says that the channel has a resource manager: nobody else's
	// objects are seen, and closing it flushes all of one's own.
	managed bool

	mu     sync.Mutex // guards what follows; never held during a Send
	ch     channel
	closed bool
}

func (l *link) channel() (channel, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("the TPM was closed: %w", fs.ErrClosed)
	}
	if l.ch == nil {
		ch, err := l.open()
		if err != nil {
			return nil, connectionError("open the TPM", err)
		}
		l.ch = ch
	}
	return l.ch, nil
}

// drop closes a channel that broke.
func (l *link) drop(ch channel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ch == ch {
		l.ch = nil
	}
	ch.Close()
}

func (l *link) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.ch == nil {
		return nil
	}
	err := l.ch.Close()
	l.ch = nil
	return err
}

// Send sends one command and returns the answer, whose code is the TPM's own.
func (l *link) Send(command []byte) ([]byte, error) {
	ch, err := l.channel()
	if err != nil {
		return nil, err
	}
	answer, err := ch.Send(command)
	if err != nil {
		l.drop(ch)
		return nil, connectionError("send a command", err)
	}
	if err := checkAnswer(answer); err != nil {
		l.drop(ch)
		return nil, fmt.Errorf("%w: %w", ErrNoTPM, err)
	}
	maskLayer(answer)
	return answer, nil
}

// Of a command and of an answer: tag (2 bytes), size (4), code (4), all big-endian.
const (
	headerSize = 10
	maxMessage = 4096
)

var errNotTPM = errors.New("what answers does not speak TPM 2.0")

func checkAnswer(answer []byte) error {
	if len(answer) < headerSize || len(answer) > maxMessage {
		return fmt.Errorf("%w: an answer of %d bytes", errNotTPM, len(answer))
	}
	tag := gotpm.TPMST(binary.BigEndian.Uint16(answer))
	if size := binary.BigEndian.Uint32(answer[2:]); size != uint32(len(answer)) ||
		tag != gotpm.TPMSTNoSessions && tag != gotpm.TPMSTSessions {
		return fmt.Errorf("%w: an answer of %d bytes with tag 0x%04x and size %d", errNotTPM, len(answer), uint16(tag), size)
	}
	return nil
}

func answerCode(answer []byte) gotpm.TPMRC { return gotpm.TPMRC(binary.BigEndian.Uint32(answer[6:])) }

// maskLayer makes a code that the kernel's resource manager returned that of a TPM
// (TSS2_RESMGR_TPM_RC_LAYER in drivers/char/tpm/tpm2-space.c).
func maskLayer(answer []byte) {
	const layers, resourceManager = 0xffff0000, 0x000b0000
	if code := uint32(answerCode(answer)); code&layers == resourceManager {
		binary.BigEndian.PutUint32(answer[6:], code&^uint32(layers))
	}
}

// The pauses before a command is sent again that the TPM did not begin.
const (
	firstPause = 5 * time.Millisecond
	longPause  = 320 * time.Millisecond
)

// sendUntilTaken sends a command until the TPM takes it: while it tests itself, is
// busy, or spares its memory it answers that it did not begin.
func (l *link) sendUntilTaken(ctx context.Context, command []byte) ([]byte, error) {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		answer, err := l.Send(command)
		if err != nil {
			return nil, err
		}
		switch code := answerCode(answer); code {
		case gotpm.TPMRCRetry, gotpm.TPMRCYielded, gotpm.TPMRCTesting, gotpm.TPMRCNVRate:
			if err := sleep(ctx, pause); err != nil {
				return nil, fmt.Errorf("%w: %w", code, err)
			}
		default:
			return answer, nil
		}
	}
}

// sleep waits, or returns early with the error of a context that ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// given is a transport that the caller opened and closes.
type given struct{ Transport }

func (given) Close() error { return nil }
