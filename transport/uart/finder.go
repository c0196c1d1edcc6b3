package uart

import "bytes"

// finder finds requests in what a device sends: the line after one that ends in
// the marker. Everything else is the device's console.
type finder struct {
	onLine  func(line []byte)
	line    []byte   // not whole yet, at most maxLine bytes
	armed   bool     // the marker has come, its key has not
	binary  bool     // frames of a tunnel are on the line: what is not text is left of them
	secrets [][]byte // what must not be shown, each of at most tail bytes
}

const (
	maxLine = 1024 // what finder keeps of a line
	maxKey  = 128  // what may be a key; the longest that we know has 73 bytes
	tail    = 64   // what is kept of a longer line: enough for a marker and for a password
)

// hide makes the finder show [redacted] for a secret. The vendor's firmware
// prints the password of the Wi-Fi that it joins.
func (f *finder) hide(secret string) {
	for _, s := range f.secrets {
		if string(s) == secret {
			return
		}
	}
	if secret != "" {
		f.secrets = append(f.secrets, []byte(secret))
	}
}

// add takes one byte and returns the key of the request that it completes, or "".
func (f *finder) add(b byte) (key string) {
	if b != '\n' {
		if len(f.line) == maxLine {
			// Not a key, but its end may still be a marker.
			cut := f.whole(maxLine - tail)
			f.show(f.line[:cut])
			f.line = append(f.line[:0], f.line[cut:]...)
			f.armed = false
		}
		f.line = append(f.line, b)
		return ""
	}
	line := bytes.TrimSuffix(f.line, []byte("\r"))
	f.line = f.line[:0]
	if rest, ok := bytes.CutSuffix(line, []byte(marker)); ok {
		f.show(rest)
		f.armed = true
		return ""
	}
	if word := bytes.TrimLeft(line, "\x00"); f.armed && isWord(word) {
		f.armed = false
		return string(word)
	}
	f.show(line) // a console line between marker and key leaves us armed
	return ""
}

// whole returns where to cut the line at or before cut so that no secret is torn
// apart, of which both halves would be shown.
func (f *finder) whole(cut int) int {
	for _, s := range f.secrets {
		from := max(0, cut-len(s)+1)
		if i := bytes.Index(f.line[from:], s); i >= 0 && from+i < cut {
			return from + i
		}
	}
	return cut
}

// show shows a line of the console, of which a NUL has ended what came before.
func (f *finder) show(line []byte) {
	line = line[bytes.LastIndexByte(line, 0)+1:]
	if f.onLine == nil || len(line) == 0 || f.binary && !isPrintable(line) {
		return
	}
	for _, s := range f.secrets {
		line = bytes.ReplaceAll(line, s, []byte(redacted))
	}
	f.onLine(line)
}

// isPrintable reports whether a line may be of a console.
func isPrintable(line []byte) bool {
	for _, c := range line {
		if c < ' ' && c != '\t' && c != '\r' && c != '\x1b' || c == 0x7f {
			return false
		}
	}
	return true
}

// isWord tells what may be a key, even one that we do not know, from noise: a
// device whose key was damaged on the wire must ask again, not be turned away.
func isWord(line []byte) bool {
	for _, c := range line {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return 0 < len(line) && len(line) <= maxKey
}
