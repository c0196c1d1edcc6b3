package main

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
)

const (
	rsa1 = "cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375"
	rsa2 = "18c38fc2b24d7c12ee432ddb4a03d5d7b4c71c2d2244e7f597c37ea24a843326"
)

// signedByEspressif unpacks an image that Espressif's tools made and signed
// with the key rsa1.
func signedByEspressif(t *testing.T) string {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "esp", "image", "testdata", "esp32c3_small_v1.0.0_padv2.rsa1.bin.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	img, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "app.bin")
	if err := os.WriteFile(path, img, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestQuickstart(t *testing.T) {
	img := signedByEspressif(t)
	state := t.TempDir()
	for _, test := range []struct {
		name  string
		args  []string
		wants []string // in this order
		fails error
	}{
		{"from blank to updated", []string{"-state", state},
			[]string{"blank, so asked", "not_enrolled (code 12): enrol", "certificate of", "code 11", "100 %", "signed for esp32c3 by the trusted key", "code 10", "summary"}, nil},
		{"again", []string{"-state", state},
			[]string{"the one of the last run", "nothing to ask", "code 10", "already enrolled", "none due", "summary"}, nil},
		{"an image of Espressif's", []string{"-state", state, "-image", img, "-trust", rsa1, "-chip", "esp32c3"},
			[]string{"already enrolled", "code 11", "100 %", "cd83cc02", "code 10", "firmware fc80686f"}, nil},
		{"keys in an ATECC608", []string{"-keystore", "atecc608"}, []string{"locked for good", "certificate of", "code 10", "summary"}, nil},
		{"keys in the Digital Signature peripheral", []string{"-keystore", "esp32ds"}, []string{"5 eFuse key blocks left", "certificate of", "code 10", "summary"}, nil},
		{"a key that is not trusted", []string{"-image", img, "-trust", rsa2, "-chip", "esp32c3"}, []string{"code 11", "refused"}, quarklink.ErrWrongSignature},
		{"another chip", []string{"-image", img, "-trust", rsa1, "-chip", "esp32s3"}, []string{"refused"}, quarklink.ErrUpdate},
		{"tampered", []string{"-image", img, "-trust", rsa1, "-chip", "esp32c3", "-tamper"}, []string{"tamper", "refused"}, image.ErrChecksum},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			if err := run(t.Context(), test.args, &out); !errors.Is(err, test.fails) {
				t.Errorf("error %v, want %v", err, test.fails)
			}
			rest := out.String()
			for _, want := range test.wants {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("no %q in\n%s", want, out.String())
				}
				rest = after
			}
		})
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	if err := run(t.Context(), []string{"-state", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-state", dir, "-chip", "esp32s3"}, io.Discard); err == nil || !strings.Contains(err.Error(), "esp32c3") {
		t.Errorf("with another chip: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instance.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-state", dir}, io.Discard); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("with half an instance: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{
		{"-image", "x"}, {"-trust", rsa1}, {"-image", "x", "-trust", rsa1}, {"-image", "x", "-trust", "12", "-chip", "esp32c3"},
		{"-image", "x", "-trust", rsa1, "-chip", "z80"}, {"-chip", "ESP32-C3"}, {"extra"}, {"-unknown"}, {"-keystore", "tpm"},
		{"-keystore", "atecc608", "-state", t.TempDir()}, {"-keystore", "esp32ds", "-chip", "esp32"},
		{"-image", filepath.Join(t.TempDir(), "absent"), "-trust", rsa1, "-chip", "esp32c3"},
	} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
