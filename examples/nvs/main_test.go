package main

import (
	"archive/zip"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/nvs"
)

// vectors unpacks what Espressif's generator made, and from what, into a
// folder. The blob files that the CSV names are taken from what the real
// library read.
func vectors(t *testing.T) string {
	t.Helper()
	z, err := zip.OpenReader(filepath.Join("..", "..", "esp", "nvs", "testdata", "esp-idf-5.3.1.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range z.File {
		if strings.Contains(f.Name, "/") {
			continue
		}
		b, err := fs.ReadFile(z, f.Name)
		if err != nil {
			t.Fatal(err)
		}
		write(f.Name, b)
	}
	var read []struct{ Key, Type, Value string }
	b, err := os.ReadFile(filepath.Join(dir, "quarklink_plain.realnvs.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &read); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"filler": "blob6000.bin", "deviceCert": "devcert2048.bin", "b1": "blob1.bin", "b3": "blob3.bin", "b32": "blob32.bin", "b33": "blob33.bin", "b4000": "blob4000.bin"}
	for _, r := range read {
		if name := files[r.Key]; name != "" {
			b, err := hex.DecodeString(r.Value)
			if err != nil {
				t.Fatal(err)
			}
			write(name, b)
			delete(files, r.Key)
		}
	}
	if len(files) > 0 {
		t.Fatalf("not among what was read: %v", files)
	}
	return dir
}

func do(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(args, &out, io.Discard); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String()
}

func file(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// values is the dump with values, in any order, without where they are.
func values(t *testing.T, args ...string) map[string]bool {
	t.Helper()
	v := map[string]bool{}
	for line := range strings.Lines(do(t, append(args[:len(args)-1:len(args)-1], "-secrets", "dump", args[len(args)-1])...)) {
		name, value, ok := strings.Cut(line, ": ")
		name, _, _ = strings.Cut(name, ", page")
		if ok {
			v[name+": "+value] = true
		}
	}
	if len(v) == 0 {
		t.Fatal("nothing dumped")
	}
	return v
}

// TestGenerate: from Espressif's CSV comes what Espressif's generator made of
// it, byte for byte.
func TestGenerate(t *testing.T) {
	dir := vectors(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		csv, want string
		flags     []string
	}{
		{"small.csv", "small_plain.bin", nil},
		{"small.csv", "small_xts.bin", []string{"-keys", path("nvs_keys.bin")}},
		{"quarklink.csv", "quarklink_plain.bin", nil},
		{"quarklink.csv", "quarklink_xts.bin", []string{"-keys", path("nvs_keys.bin")}},
		{"quarklink.csv", "quarklink_xts_hmac.bin", []string{"-hmac-key", path("hmac_key.hex")}},
	} {
		t.Run(c.want, func(t *testing.T) {
			made := path("made-" + c.want)
			do(t, append(c.flags[:len(c.flags):len(c.flags)], "generate", path(c.csv), made)...)
			if !bytes.Equal(file(t, made), file(t, path(c.want))) {
				t.Error("not the bytes that Espressif's generator made")
			}
			got, want := values(t, append(c.flags, made)...), values(t, append(c.flags, path(c.want))...)
			for line := range want {
				if !got[line] {
					t.Errorf("missing: %.80s", line)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d values, want %d", len(got), len(want))
			}
		})
	}
}

// TestGenerateTakes: what Espressif's generator takes besides the plainest CSV.
func TestGenerateTakes(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("sub", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sub/beside.txt": "beside the CSV",
		"here.hex":       "00ff10\n",
		"sub/in.csv": "# comment, with a comma\r\nkey,type,encoding,value\r\n# another \"one\"\r\n\r\nn,namespace\r\n" +
			"ten,data,u8,010\r\nhex,data,i16,-0x10\r\njson,data,string,{\"a\":1}\r\n" +
			"lines,data,string,\"one, \"\"two\"\"\n# three\"\r\nbeside,file,string,beside.txt\r\nhere,file,hex2bin,here.hex\r\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	do(t, "generate", "sub/in.csv", "out.bin")
	for key, want := range map[string]string{
		"ten": "10", "hex": "-16", "json": `{"a":1}`, "lines": "one, \"two\"\n# three", "beside": "beside the CSV", "here": "00ff10",
	} {
		if got := do(t, "get", "out.bin", "n", key); got != want+"\n" {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestSecretsAreHidden(t *testing.T) {
	dir := vectors(t)
	image := filepath.Join(dir, "small_plain.bin")
	hidden, shown := do(t, "dump", image), do(t, "-secrets", "dump", image)
	if strings.Contains(hidden, "fabric") || strings.Contains(hidden, "6000") {
		t.Errorf("values are shown:\n%s", hidden)
	}
	if !strings.Contains(hidden, "quarklink endpoint string 28 bytes, page 0 entry 1\n") {
		t.Errorf("dump:\n%s", hidden)
	}
	if !strings.Contains(shown, `: "fabric.quarklink.example.com"`) || !strings.Contains(shown, ": 6000\n") {
		t.Errorf("values are not shown:\n%s", shown)
	}
}

func TestSetAndGet(t *testing.T) {
	dir := vectors(t)
	keys := []string{"-keys", filepath.Join(dir, "nvs_keys.bin")}
	image := filepath.Join(dir, "quarklink_xts.bin")
	for _, c := range []struct{ key, encoding, value, want string }{
		{"port", "u16", "0x1F40", "8000"},
		{"negative", "i8", "-5", "-5"},
		{"endpoint", "string", "other.example.com", "other.example.com"},
		{"filler", "hex2bin", "00ff10", "00ff10"},
		{"b64", "base64", "AQID", "010203"},
		{"raw", "binary", "AB", "4142"},
		{"large", "u64", "18446744073709551615", "18446744073709551615"},
	} {
		do(t, append(keys, "set", image, "quarklink", c.key, c.encoding, c.value)...)
		if got := do(t, append(keys, "get", image, "quarklink", c.key)...); got != c.want+"\n" {
			t.Errorf("%s: %q, want %q", c.key, got, c.want)
		}
	}
}

func TestNewKeys(t *testing.T) {
	dir := vectors(t)
	keys, image := filepath.Join(dir, "new.bin"), filepath.Join(dir, "made.bin")
	do(t, "-new-keys", keys, "-size", "12288", "generate", filepath.Join(dir, "small.csv"), image)
	if got := do(t, "-keys", keys, "get", image, "quarklink", "port"); got != "6000\n" {
		t.Errorf("%q", got)
	}
	if err := run([]string{"-new-keys", keys, "generate", filepath.Join(dir, "small.csv"), image + "2"}, io.Discard, io.Discard); !errors.Is(err, fs.ErrExist) {
		t.Errorf("keys overwritten: %v", err)
	}
}

func TestErrors(t *testing.T) {
	dir := vectors(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	csv := func(text string) string {
		name := path("bad.csv")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	const head = "key,type,encoding,value\n"
	damaged := file(t, path("small_plain.bin"))
	damaged[64+32+8] ^= 1
	if err := os.WriteFile(path("damaged.bin"), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		is   error
		says string
	}{
		{"help", []string{"-h"}, flag.ErrHelp, ""},
		{"no command", nil, nil, `no command ""`},
		{"too few arguments", []string{"get", "x"}, nil, "get takes 3 arguments"},
		{"no file", []string{"dump", path("absent")}, fs.ErrNotExist, "absent"},
		{"no keys", []string{"dump", path("small_xts.bin")}, nvs.ErrKeys, "is the partition encrypted?"},
		{"not keys", []string{"-keys", path("small.csv"), "dump", path("small_xts.bin")}, nvs.ErrKeys, "small.csv"},
		{"two keys", []string{"-keys", "a", "-hmac-key", "b", "dump", "c"}, nil, "exclude each other"},
		{"damaged", []string{"dump", path("damaged.bin")}, nvs.ErrDamaged, "damaged.bin"},
		{"absent key", []string{"get", path("small_plain.bin"), "quarklink", "nothing"}, fs.ErrNotExist, "quarklink/nothing"},
		{"encoding", []string{"set", path("small_plain.bin"), "quarklink", "k", "f32", "1"}, nil, `no encoding "f32"`},
		{"range", []string{"set", path("small_plain.bin"), "quarklink", "k", "u8", "256"}, nil, "out of range"},
		{"existing output", []string{"generate", path("small.csv"), path("small_plain.bin")}, fs.ErrExist, ""},
		{"columns", []string{"generate", csv("a,b,c,d\n"), path("o1")}, nil, "want key,type,encoding,value"},
		{"size", []string{"-size", "4096", "generate", path("small.csv"), path("o1")}, nvs.ErrSize, "4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := run(c.args, io.Discard, io.Discard)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
	for text, says := range map[string]string{
		"k,data,u8,1\n":                                 "line 2: k: value before the first namespace",
		"n,namespace,,\nk,data,u8,one\n":                "line 3: k: ",
		"n,namespace,,\nk,data,hex2bin,abc":             "odd length",
		"n,namespace,,\nk,thing,u8,1\n":                 `no type "thing"`,
		"n,namespace,,\nk,file,binary,no.bi":            "no.bi",
		"n,namespace,,\nk,data\n":                       "line 3: 2 columns, want 4",
		"n,namespace,,\nk,data,string,a,b\n":            "line 3: 5 columns, want 4",
		"n,namespace,,\nk,data,u8,0o7\n":                `parsing "0o7"`,
		"n,namespace,,\na key that is long,data,u8,1\n": "need 1 to 15",
	} {
		err := run([]string{"generate", csv(head + text), path("o2")}, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := os.Stat(path("o2")); err == nil {
			t.Fatalf("%q: output was written", text)
		}
	}
}
