package quarklinktest

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// connectionEffects is what the faults make of one connection.
type connectionEffects struct {
	alert       uint8 // 0: none
	certificate bool  // present the foreign one
	cutAfter    int   // bytes sent; 0: not cut
	perSecond   int   // bytes, each way; 0: not throttled
}

// TLSAlert answers the first message of a handshake with a fatal alert, such as
// 40 (handshake_failure) or 80 (internal_error), and ends the connection. The
// numbers are those of RFC 8446 section 6. It is for [CallConnect] only.
func TLSAlert(alert uint8) Fault {
	return Fault{on: onConnection, final: true, apply: func(e *effects) { e.connection.alert = alert }}
}

// WrongCertificate presents a server certificate for the right names that an
// authority unknown to the device has issued. It is for [CallConnect] only.
func WrongCertificate() Fault {
	return Fault{on: onConnection, apply: func(e *effects) { e.connection.certificate = true }}
}

// CutConnection breaks the connection once the Server has sent n bytes on it, at
// least 1. Its first few thousand bytes are the handshake. It is for
// [CallConnect] only.
func CutConnection(n int) Fault {
	return Fault{on: onConnection, apply: func(e *effects) { e.connection.cutAfter = max(n, 1) }}
}

// Throttle lets a connection carry so many bytes a second each way, by the
// package time and not by Options.Now, for as long as it lives. It is for
// [CallConnect] only.
func Throttle(bytesPerSecond int) Fault {
	return Fault{on: onConnection, apply: func(e *effects) { e.connection.perSecond = max(bytesPerSecond, 1) }}
}

// troubledTLS makes the TLS of one connection as the faults want it. It reports
// false if the connection has ended.
func (s *Server) troubledTLS(c *conn) (*tls.Config, bool) {
	s.mu.Lock()
	e := s.takeFaults(CallConnect, nil)
	s.mu.Unlock()
	if !e.wait(context.Background(), s.done) {
		return nil, false
	}
	trouble := e.connection
	if trouble.perSecond > 0 {
		c.Conn = &throttled{c.Conn, trouble.perSecond, s.done}
	}
	if trouble.alert != 0 {
		sendAlert(c, trouble.alert)
		return nil, false
	}
	if trouble.cutAfter > 0 {
		c.Conn = &cutting{c.Conn, trouble.cutAfter}
	}
	cfg := s.tls.Load()
	if trouble.certificate {
		cfg = cfg.Clone()
		cfg.Certificates = []tls.Certificate{s.pki().foreignServer}
	}
	return cfg, true
}

// sendAlert reads what the peer begins with, so that the alert is read and not
// lost in a reset, and answers it with a fatal alert in clear.
func sendAlert(c net.Conn, alert uint8) {
	c.Read(make([]byte, 16<<10))
	const alertRecord, fatal = 21, 2
	c.Write([]byte{alertRecord, 3, 3, 0, 2, fatal, alert})
}

// cutting breaks a connection after a number of bytes were written.
type cutting struct {
	net.Conn
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.Conn.Close()
	}
	if err == nil && n < len(p) {
		err = net.ErrClosed
	}
	return n, err
}

// throttled is a connection that carries a number of bytes a second each way.
type throttled struct {
	net.Conn
	perSecond int
	done      <-chan struct{} // the Server is closed
}

func (c *throttled) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.slice())])
	c.wait(n)
	return n, err
}

func (c *throttled) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := c.Conn.Write(p[sent:min(len(p), sent+c.slice())])
		sent += n
		if err != nil {
			return sent, err
		}
		c.wait(n)
	}
	return sent, nil
}

// slice is how much is carried at once: what takes a tenth of a second.
func (c *throttled) slice() int { return max(c.perSecond/10, 1) }

func (c *throttled) wait(n int) {
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(c.perSecond))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.done:
	}
}
