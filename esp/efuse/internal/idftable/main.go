// Command idftable compares the tables of package efuse with ESP-IDF's
// esp_efuse_table.csv:
//
//	go run ./esp/efuse/internal/idftable -chip esp32c3 $IDF_PATH/components/efuse/esp32c3/esp_efuse_table.csv
//
// It prints every field that lies elsewhere there, or that another bit of WR_DIS
// protects, and then ends with status 1. Fields that the file does not name are
// listed as not compared.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

func main() {
	name := flag.String("chip", "", "chip, such as esp32c3")
	flag.Parse()
	ok, err := run(*name, flag.Arg(0), os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(name, path string, out io.Writer) (bool, error) {
	chip, err := efuse.ParseChip(name)
	if err != nil {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	table, err := read(f)
	if err != nil {
		return false, err
	}
	differences, absent := compare(chip.Fields(), table)
	for _, d := range differences {
		fmt.Fprintln(out, d)
	}
	fmt.Fprintf(out, "%d fields compared, %d differences; not in the file: %s\n",
		len(chip.Fields())-len(absent), len(differences), strings.Join(absent, " "))
	return len(differences) == 0, nil
}

// span is where a field lies: bits first to last of a block.
type span struct{ block, first, last int }

// read returns the rows by name and by alias. A row without a name belongs to
// the field before it.
func read(r io.Reader) (map[string]span, error) {
	table := map[string]span{}
	var names []string
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		cells := strings.SplitN(line, ",", 5)
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) < 4 {
			return nil, fmt.Errorf("line %d: %d columns, want at least 4", n, len(cells))
		}
		s, err := parseSpan(cells[1], cells[2], cells[3])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if cells[0] != "" {
			names = []string{cells[0]}
			if len(cells) == 5 {
				names = append(names, aliases(cells[4])...)
			}
		} else if len(names) == 0 {
			return nil, fmt.Errorf("line %d: no field comes before", n)
		}
		for _, name := range names {
			if was, ok := table[name]; ok && cells[0] == "" {
				table[name] = span{s.block, min(s.first, was.first), max(s.last, was.last)}
			} else {
				table[name] = s
			}
		}
	}
	return table, lines.Err()
}

func parseSpan(block, first, count string) (span, error) {
	number, ok := strings.CutPrefix(block, "EFUSE_BLK")
	if !ok {
		return span{}, fmt.Errorf("block %q, want EFUSE_BLK and a number", block)
	}
	if strings.HasPrefix(count, "MAX_BLK_LEN") {
		count = "256"
	}
	var values [3]int
	for i, text := range []string{number, first, count} {
		v, err := strconv.Atoi(text)
		if err != nil {
			return span{}, err
		}
		values[i] = v
	}
	return span{values[0], values[1], values[1] + values[2] - 1}, nil
}

// aliases returns the further names that begin a comment: "[A B] …".
func aliases(comment string) []string {
	rest, ok := strings.CutPrefix(comment, "[")
	list, _, closed := strings.Cut(rest, "]")
	if !ok || !closed {
		return nil
	}
	return strings.Fields(list)
}

func compare(fields []efuse.Field, table map[string]span) (differences, absent []string) {
	for _, f := range fields {
		want, ok := table[f.Name]
		if !ok {
			absent = append(absent, f.Name)
			continue
		}
		if got := (span{f.Block, f.Bit, f.Bit + f.Bits - 1}); got != want {
			differences = append(differences, fmt.Sprintf("%s: %v here, %v in the file", f.Name, got, want))
		}
		protection, ok := table["WR_DIS."+f.Name]
		if ok && protection != (span{0, f.WrDis, f.WrDis}) {
			differences = append(differences,
				fmt.Sprintf("%s: WR_DIS bit %d here, %d in the file", f.Name, f.WrDis, protection.first))
		}
	}
	return differences, absent
}
