package atecctest_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

func TestTrace(t *testing.T) {
	chip := atecctest.New(atecctest.Options{})
	recorder := atecctest.NewRecorder(chip)
	info := []byte{3, 7, 0x30, 0, 0, 0, 0x03, 0x5d}
	script := func(bus atecctest.Bus) (reply []byte, errs []error) {
		reply = make([]byte, 7)
		return reply, []error{
			bus.Tx(0, []byte{0}, nil),
			bus.Tx(0x60, nil, make([]byte, 4)),
			bus.Tx(0x60, info, nil),
			bus.Tx(0x60, []byte{0}, nil),
			bus.Tx(0x60, nil, reply),
			bus.Tx(0x60, []byte{1}, nil),
			bus.Tx(0x60, []byte{0}, nil), // asleep
		}
	}
	want, wantErrs := script(recorder)
	var text bytes.Buffer
	if _, err := recorder.Trace().WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	trace, err := atecctest.ParseTrace(strings.NewReader("# a comment\n\n" + text.String()))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(trace, recorder.Trace()) {
		t.Errorf("the trace changes on its way through text:\n%s", &text)
	}
	player := atecctest.NewPlayer(trace)
	got, errs := script(player)
	if !bytes.Equal(got, want) || len(errs) != len(wantErrs) {
		t.Errorf("played % x, recorded % x", got, want)
	}
	for i := range errs {
		if (errs[i] == nil) != (wantErrs[i] == nil) {
			t.Errorf("operation %d: %v, recorded %v", i+1, errs[i], wantErrs[i])
		}
	}
	if err := player.Close(); err != nil {
		t.Error(err)
	}

	for name, play := range map[string]func(*atecctest.Player){
		"nothing":         func(*atecctest.Player) {},
		"one left over":   func(p *atecctest.Player) { script(&allBut{p, len(trace) - 1}) },
		"one too many":    func(p *atecctest.Player) { script(p); p.Tx(0, []byte{0}, nil) },
		"another write":   func(p *atecctest.Player) { p.Tx(0, []byte{1}, nil); script(p) },
		"another address": func(p *atecctest.Player) { p.Tx(0x35, []byte{0}, nil) },
		"another length":  func(p *atecctest.Player) { p.Tx(0, []byte{0}, nil); p.Tx(0x60, nil, make([]byte, 3)) },
	} {
		player := atecctest.NewPlayer(trace)
		play(player)
		if err := player.Close(); !errors.Is(err, atecctest.ErrTrace) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// allBut passes on the first transactions only.
type allBut struct {
	bus  atecctest.Bus
	left int
}

func (b *allBut) Tx(addr uint16, w, r []byte) error {
	if b.left == 0 {
		return nil
	}
	b.left--
	return b.bus.Tx(addr, w, r)
}

func FuzzParseTrace(f *testing.F) {
	f.Add("00 00 - NACK\n60 - 04113343\n")
	f.Add("60 0307 -\n# comment\n\n60 - - NACK")
	f.Add("zz - -")
	f.Fuzz(func(t *testing.T, text string) {
		trace, err := atecctest.ParseTrace(strings.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		trace.WriteTo(&out)
		again, err := atecctest.ParseTrace(&out)
		if err != nil || len(again) != len(trace) {
			t.Fatalf("%q: %d operations, then %d, %v", text, len(trace), len(again), err)
		}
	})
}
