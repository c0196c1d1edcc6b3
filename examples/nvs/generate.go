package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
)

// generate makes a partition from the CSV of Espressif's nvs_partition_gen:
// columns key, type, encoding and value; the type is namespace, data, or file,
// where value names a file with the data, relative to the CSV or, as that
// generator has it, to the current folder. Lines that begin with # are comments.
// A namespace without values is left out.
func (t *tool) generate(args []string) error {
	rows, err := readCSV(args[0])
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	image := flash.NewMemory(t.size)
	p, err := nvs.Open(image, nvs.Options{Keys: t.keys})
	if err != nil {
		return fmt.Errorf("size %d: %w", t.size, err)
	}
	namespace := ""
	for i, row := range rows {
		if row.typ == "namespace" {
			namespace = row.key
			continue
		}
		fmt.Fprintf(t.message, "%d of %d: %s/%s %s\n", i+1, len(rows), namespace, row.key, row.encoding)
		if err := row.store(p, namespace, filepath.Dir(args[0])); err != nil {
			return fmt.Errorf("%s line %d: %s: %w", args[0], row.line, row.key, err)
		}
	}
	if t.newKeys != "" {
		if err := writeNew(t.newKeys, t.keys.Partition()); err != nil {
			return err
		}
	}
	if err := writeNew(args[1], image); err != nil {
		return err
	}
	stats, err := p.Stats()
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "%s: %d bytes, %d of %d entries used\n", args[1], len(image), stats.Used, stats.Total)
	return nil
}

// row is a line of the CSV.
type row struct {
	line                      int
	key, typ, encoding, value string
}

func readCSV(name string) ([]row, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comment = '#'
	r.LazyQuotes = true    // as Python has it: a quote within a value is a quote
	r.FieldsPerRecord = -1 // a namespace needs no more than its name and type
	head, err := r.Read()
	if err != nil {
		return nil, err
	}
	if !slices.Equal(head, []string{"key", "type", "encoding", "value"}) {
		return nil, fmt.Errorf("line 1: columns are %q, want key,type,encoding,value", head)
	}
	var rows []row
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := r.FieldPos(0)
		if len(rec) == 2 && rec[1] == "namespace" {
			rec = append(rec, "", "")
		}
		if len(rec) != len(head) {
			return nil, fmt.Errorf("line %d: %d columns, want %d (is a comma within a value not quoted?)", line, len(rec), len(head))
		}
		rows = append(rows, row{line, rec[0], rec[1], rec[2], rec[3]})
	}
}

// store sets the value of the row; dir is where its files are.
func (r *row) store(p *nvs.Partition, namespace, dir string) error {
	if namespace == "" {
		return errors.New("value before the first namespace")
	}
	value := r.value
	switch r.typ {
	case "data":
	case "file":
		b, err := readBeside(dir, value)
		if err != nil {
			return err
		}
		value = string(b)
	default:
		return fmt.Errorf("no type %q: namespace, data and file are", r.typ)
	}
	return store(p, namespace, r.key, r.encoding, value)
}

// readBeside reads a file that is named relative to dir or to the current folder.
func readBeside(dir, name string) ([]byte, error) {
	if filepath.IsAbs(name) {
		return os.ReadFile(name)
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		if b, err2 := os.ReadFile(name); err2 == nil {
			return b, nil
		}
	}
	return b, err
}
