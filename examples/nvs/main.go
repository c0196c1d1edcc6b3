// Command nvs shows, changes and makes NVS partitions of ESP32 chips, as files.
//
//	nvs [flags] dump PARTITION
//	nvs [flags] get PARTITION NAMESPACE KEY
//	nvs [flags] set PARTITION NAMESPACE KEY ENCODING VALUE
//	nvs [flags] generate CSV PARTITION
//
// dump lists namespaces, keys, types and sizes, and what is damaged; values
// only with -secrets. get prints one value: a blob in hexadecimal. set and
// generate take the encodings of Espressif's nvs_partition_gen: u8 to i64,
// string, hex2bin, base64 and binary; generate takes its CSV. An encrypted
// partition needs -keys, a file as that generator makes it, or -hmac-key.
//
// A partition is read from a chip with esptool read_flash, and written with
// write_flash:
//
//	esptool.py read_flash 0x9000 0x8000 nvs.bin
//	nvs -keys nvs_keys.bin dump nvs.bin
package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nvs:", err)
		os.Exit(1)
	}
}

// tool is what the command line says, and where to.
type tool struct {
	keys         *nvs.Keys
	secrets      bool
	size         int
	newKeys      string
	out, message io.Writer
}

// commands are the commands by name, with the arguments that they take.
var commands = map[string]struct {
	args string
	run  func(*tool, []string) error
}{
	"dump":     {"PARTITION", (*tool).dump},
	"get":      {"PARTITION NAMESPACE KEY", (*tool).get},
	"set":      {"PARTITION NAMESPACE KEY ENCODING VALUE", (*tool).set},
	"generate": {"CSV PARTITION", (*tool).generate},
}

// run does what the arguments say. Results go to out, progress to message.
func run(args []string, out, message io.Writer) error {
	t := &tool{out: out, message: message}
	flags := flag.NewFlagSet("nvs", flag.ContinueOnError)
	flags.SetOutput(message)
	flags.Usage = func() {
		fmt.Fprintln(message, "usage: nvs [flags] dump|get|set|generate ...")
		for _, name := range []string{"dump", "get", "set", "generate"} {
			fmt.Fprintf(message, "  nvs [flags] %s %s\n", name, commands[name].args)
		}
		flags.PrintDefaults()
	}
	keys := flags.String("keys", "", "`file` with the content of the nvs_keys partition")
	hmacKey := flags.String("hmac-key", "", "`file` with the 32-byte HMAC key of the chip's eFuse, in bytes or hexadecimal")
	flags.StringVar(&t.newKeys, "new-keys", "", "generate: make new keys and write them to this new `file`")
	flags.BoolVar(&t.secrets, "secrets", false, "dump: show the values too")
	flags.IntVar(&t.size, "size", 0x8000, "generate: size of the partition in `bytes`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	command, ok := commands[flags.Arg(0)]
	if !ok {
		flags.Usage()
		return fmt.Errorf("no command %q", flags.Arg(0))
	}
	rest := flags.Args()[1:]
	if want := len(strings.Fields(command.args)); len(rest) != want {
		return fmt.Errorf("%s takes %d arguments (%s), not %d; flags come first", flags.Arg(0), want, command.args, len(rest))
	}
	if t.newKeys != "" && flags.Arg(0) != "generate" {
		return errors.New("-new-keys is for generate")
	}
	var err error
	if t.keys, err = loadKeys(*keys, *hmacKey, t.newKeys); err != nil {
		return err
	}
	return command.run(t, rest)
}

// loadKeys returns the keys that the flags name, nil if none is given.
func loadKeys(keys, hmacKey, newKeys string) (*nvs.Keys, error) {
	given := 0
	for _, name := range []string{keys, hmacKey, newKeys} {
		if name != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return nil, errors.New("-keys, -hmac-key and -new-keys exclude each other")
	case keys != "":
		b, err := os.ReadFile(keys)
		if err != nil {
			return nil, err
		}
		k, err := nvs.ParseKeys(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keys, err)
		}
		return k, nil
	case hmacKey != "":
		b, err := os.ReadFile(hmacKey)
		if err != nil {
			return nil, err
		}
		if text, err := hex.DecodeString(strings.TrimSpace(string(b))); err == nil {
			b = text
		}
		k, err := nvs.KeysFromHMAC(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", hmacKey, err)
		}
		return k, nil
	case newKeys != "":
		k, err := nvs.GenerateKeys(rand.Reader)
		if err != nil {
			return nil, err
		}
		return k, nil // generate writes them
	}
	return nil, nil
}

// open opens a partition file for reading.
func (t *tool) open(name string) (*nvs.Partition, func() error, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var p *nvs.Partition
		if p, err = nvs.OpenReader(f, info.Size(), nvs.Options{Keys: t.keys}); err == nil {
			return p, f.Close, nil
		}
	}
	f.Close()
	return nil, nil, fmt.Errorf("%s: %w", name, err)
}

func (t *tool) dump(args []string) error {
	p, done, err := t.open(args[0])
	if err != nil {
		return err
	}
	defer done()
	stats, err := p.Stats()
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "%d of %d entries used, %d available, %d namespaces\n", stats.Used, stats.Total, stats.Available, stats.Namespaces)
	list, err := p.Entries()
	if err != nil {
		return err
	}
	for _, e := range list {
		fmt.Fprintf(t.out, "%s %s %s %d bytes, page %d entry %d", quote(e.Namespace), quote(e.Key), e.Type, e.Size, e.Page, e.Index)
		if t.secrets {
			value, err := show(p, e.Namespace, e.Key, e.Type)
			if err != nil {
				value = err.Error()
			} else if e.Type == nvs.String {
				value = strconv.Quote(value)
			}
			fmt.Fprint(t.out, ": ", value)
		}
		fmt.Fprintln(t.out)
	}
	damage, err := p.Check()
	if err != nil {
		return err
	}
	for i := range damage {
		fmt.Fprintf(t.out, "damaged: %v\n", &damage[i])
	}
	if len(damage) > 0 {
		return fmt.Errorf("%s: %w", args[0], nvs.ErrDamaged)
	}
	return nil
}

// quote returns a name as it is, or quoted if it is not plain.
func quote(name string) string {
	if q := strconv.Quote(name); len(q) > len(name)+2 || strings.Contains(name, " ") {
		return q
	}
	return name
}

func (t *tool) get(args []string) error {
	p, done, err := t.open(args[0])
	if err != nil {
		return err
	}
	defer done()
	list, err := p.Entries()
	if err != nil {
		return err
	}
	typ := nvs.Blob // of an absent key any will do
	for _, e := range list {
		if e.Namespace == args[1] && e.Key == args[2] {
			typ = e.Type
		}
	}
	value, err := show(p, args[1], args[2], typ)
	if err != nil {
		return err
	}
	fmt.Fprintln(t.out, value)
	return nil
}

// set changes a copy of the partition and then puts it in its place.
func (t *tool) set(args []string) error {
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	image := flash.Memory(b)
	p, err := nvs.Open(image, nvs.Options{Keys: t.keys})
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := store(p, args[1], args[2], args[3], args[4]); err != nil {
		return err
	}
	return replace(args[0], image)
}

// replace writes a file anew, in one step.
func replace(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".nvs-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// writeNew writes a file that must not yet be there.
func writeNew(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
