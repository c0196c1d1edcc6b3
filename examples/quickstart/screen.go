package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
)

// screen is where a run says what happens. After an error of writing it writes
// no more.
type screen struct {
	w        io.Writer
	terminal bool // it can draw over what stands on the line
	err      error
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

func (s *screen) print(text string) {
	if s.err == nil {
		_, s.err = io.WriteString(s.w, text)
	}
}

// say prints one line: the step, and what was decided. Names come from images
// and from the instance, so nothing gets to the terminal that could move its
// cursor.
func (s *screen) say(step, format string, args ...any) {
	visible := func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}
	s.print(fmt.Sprintf("%-10s %s\n", step, strings.Map(visible, fmt.Sprintf(format, args...))))
}

// progress shows how far a download is: a bar that grows on a terminal, a line
// for each quarter elsewhere.
type progress struct {
	*screen
	last int64 // steps shown, plus one; 0: nothing yet
}

const (
	barSteps  = 40
	lineSteps = 4
)

func (p *progress) show(done, total int64) {
	steps := int64(lineSteps)
	if p.terminal {
		steps = barSteps
	}
	reached := steps
	if total > 0 {
		reached = done * steps / total
	}
	if reached < p.last {
		return
	}
	p.last = reached + 1
	percent := reached * 100 / steps
	if p.terminal {
		p.print(fmt.Sprintf("\r%-10s [%-*s] %3d %%", "download", barSteps, strings.Repeat("#", int(reached)), percent))
		return
	}
	p.say("download", "%d %%, %d of %d bytes", percent, done, total)
}

// end leaves the line of the bar.
func (p *progress) end() {
	if p.terminal && p.last > 0 {
		p.print("\n")
	}
}
