package partition

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ParseCSV reads a table from the CSV file that Espressif's generator reads,
// and refuses what that refuses, [Table.Check] included. Every error is a
// *[FormatError] with the line.
//
// A line is Name, Type, SubType, Offset, Size, Flags; blank lines and those
// that start with # are skipped. Type and SubType are names or numbers. An
// empty SubType means undefined, for an app it is an error. An empty Offset
// means the next free one: after the table, or after the partition before,
// rounded up to 64 KiB for an app and 4 KiB else. A negative Size is the
// offset at which the partition ends. Numbers may be decimal, 0x, 0o or 0b,
// with K or M for 1024 or 1024². Flags are encrypted and readonly, with a
// colon between. Fields after Flags are ignored, and so is what a name has
// beyond 16 bytes. Offset and size of a bootloader or partition_table come
// from l. The text is UTF-8, with or without a byte order mark.
func ParseCSV(text []byte, l Layout) (*Table, error) {
	rows, err := parseRows(string(text), l)
	if err != nil {
		return nil, err
	}
	if err := place(rows, l); err != nil {
		return nil, err
	}
	t := &Table{}
	for _, r := range rows {
		t.Partitions = append(t.Partitions, r.Partition)
	}
	if err := t.Check(l); err != nil {
		var format *FormatError
		if errors.As(err, &format) {
			format.Line, format.Offset = rows[format.Offset/entrySize].line, 0
		}
		return nil, err
	}
	return t, nil
}

// row is a line of the file: a partition whose place may still be open.
type row struct {
	Partition
	line         int
	offset, size int64 // as the file has them
	placed       bool  // offset is given
}

func parseRows(text string, l Layout) ([]row, error) {
	text = strings.TrimPrefix(text, "\uFEFF")
	var rows []row
	number := 1
	for ; text != ""; number++ {
		var line string
		line, text = cutLine(text)
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if len(rows) == TableSize/entrySize {
			return nil, lineError(number, ErrCount, "more partitions than a table holds")
		}
		r, err := parseRow(line, number, l)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		return nil, lineError(number, ErrCount, "the file has no partition")
	}
	return rows, nil
}

// cutLine returns the first line without its end, and what follows.
func cutLine(text string) (line, rest string) {
	i := strings.IndexFunc(text, isLineBreak)
	if i < 0 {
		return text, ""
	}
	line, rest = text[:i], text[i:]
	if strings.HasPrefix(rest, "\r\n") {
		return line, rest[2:]
	}
	_, n := utf8.DecodeRuneInString(rest)
	return line, rest[n:]
}

// isLineBreak knows what ends a line for Python's splitlines.
func isLineBreak(r rune) bool {
	switch r {
	case '\n', '\r', '\v', '\f', 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029:
		return true
	}
	return false
}

func parseRow(line string, number int, l Layout) (row, error) {
	r := row{line: number}
	if !utf8.ValidString(line) {
		return r, lineError(number, ErrSyntax, "not UTF-8")
	}
	var fields [7]string // the last is what follows Flags
	for i, f := range strings.SplitN(line, ",", len(fields)) {
		fields[i] = strings.TrimSpace(f)
		if i < 6 && strings.Contains(f, "$") {
			return r, lineError(number, ErrSyntax, "variables ($) are not expanded; write the value")
		}
	}
	// Espressif's generator cuts long names too, and says so in its manual.
	r.Label = fields[0][:min(len(fields[0]), MaxLabelLength)]

	var err error
	if r.Type, err = parseType(fields[1]); err != nil {
		return r, lineError(number, ErrSyntax, "type %v", err)
	}
	if r.Subtype, err = parseSubtype(r.Type, fields[2]); err != nil {
		return r, lineError(number, ErrSyntax, "subtype %v", err)
	}
	if err = r.parseOffset(fields[3], l); err != nil {
		return r, lineError(number, ErrSyntax, "offset %v", err)
	}
	if err = r.parseSize(fields[4], l); err != nil {
		return r, lineError(number, ErrSyntax, "size %v", err)
	}
	if r.Flags, err = parseFlags(fields[5]); err != nil {
		return r, lineError(number, ErrFlags, "%v", err)
	}
	return r, nil
}

func parseType(field string) (Type, error) {
	for _, n := range typeNames {
		if strings.EqualFold(field, n.name) {
			return n.id, nil
		}
	}
	id, err := parseByte(field)
	return Type(id), err
}

func parseSubtype(t Type, field string) (Subtype, error) {
	if field == "" && t != App {
		return DataUndefined, nil
	}
	for _, n := range subtypeNames {
		if n.of == t && strings.EqualFold(field, n.name) {
			return n.id, nil
		}
	}
	id, err := parseByte(field)
	return Subtype(id), err
}

func (r *row) parseOffset(field string, l Layout) (err error) {
	r.placed = true
	switch {
	case r.is(Bootloader, BootloaderPrimary):
		r.offset = int64(l.BootloaderOffset)
	case r.is(Bootloader, BootloaderRecovery):
		if r.offset = int64(l.RecoveryOffset); r.offset == 0 {
			return errors.New("of the recovery bootloader is unknown; set Layout.RecoveryOffset")
		}
	case r.is(PartitionTable, PartitionTablePrimary):
		r.offset = l.tableOffset()
	case field == "":
		r.placed = false
	default:
		r.offset, err = parseNumber(field)
	}
	return err
}

func (r *row) parseSize(field string, l Layout) (err error) {
	switch r.Type {
	case Bootloader:
		if r.size = l.tableOffset() - int64(l.BootloaderOffset); r.size < 0 {
			return errors.New("of the bootloader is negative; it has to be before the table")
		}
	case PartitionTable:
		r.size = SectorSize
	default:
		r.size, err = parseNumber(field)
	}
	return err
}

func parseFlags(field string) (Flags, error) {
	var flags Flags
next:
	for field != "" {
		var name string
		name, field, _ = strings.Cut(field, ":")
		for _, n := range flagNames {
			if name == n.name {
				flags |= n.flag
				continue next
			}
		}
		if name != "" {
			return 0, fmt.Errorf("%q, want encrypted, readonly or both with a colon between", name)
		}
	}
	return flags, nil
}

func parseByte(field string) (byte, error) {
	n, err := parseNumber(field)
	if err == nil && (n < 0 || n > 0xFF) {
		err = fmt.Errorf("%q is not in 0 to 255", field)
	}
	return byte(n), err
}

// parseNumber understands what Python's int(field, 0) does, with K and M. No
// number beyond 32 bits makes a table; so it stops there.
func parseNumber(field string) (int64, error) {
	if field == "" {
		return 0, errors.New("is missing")
	}
	digits, unit := field[:len(field)-1], int64(1)
	switch field[len(field)-1] {
	case 'k', 'K':
		unit = 1 << 10
	case 'm', 'M':
		unit = 1 << 20
	default:
		digits = field
	}
	digits = strings.TrimSpace(digits)
	n, err := strconv.ParseInt(digits, 0, 64)
	if errors.Is(err, strconv.ErrSyntax) || isOctalOfC(digits) {
		return 0, fmt.Errorf("%q is neither a number nor a known name", field)
	}
	if err != nil || n > maxFlashSize/unit || n < -maxFlashSize/unit {
		return 0, fmt.Errorf("%q is out of range", field)
	}
	return n * unit, nil
}

// isOctalOfC reports whether digits start with a superfluous zero, which Go
// takes for octal as C does, and Python refuses.
func isOctalOfC(digits string) bool {
	digits = strings.TrimLeft(digits, "+-")
	return len(digits) > 1 && digits[0] == '0' && (digits[1] == '_' || '0' <= digits[1] && digits[1] <= '9') && strings.Trim(digits, "0_") != ""
}

// place gives every row its offset and size. Rows come in the order of the
// flash.
func place(rows []row, l Layout) error {
	free := l.tableOffset() + SectorSize
	for i := range rows {
		r := &rows[i]
		if !r.isPrimary() {
			if !r.placed {
				align := r.Type.alignment()
				r.offset = (free + align - 1) / align * align
			}
			if r.offset < free {
				return lineError(r.line, ErrOverlap, "%q is at 0x%x, before the end of what precedes it at 0x%x", r.Label, r.offset, free)
			}
			if r.size < 0 {
				r.size = -r.size - r.offset
			}
			if r.size < 0 {
				return lineError(r.line, ErrSize, "%q would end at 0x%x, before its start at 0x%x", r.Label, r.offset+r.size, r.offset)
			}
			free = r.offset + r.size
		}
		if r.offset > maxFlashSize-1 || r.size > maxFlashSize-1 {
			return lineError(r.line, ErrFlashSize, "%q at 0x%x with 0x%x bytes does not fit into 4 GiB", r.Label, r.offset, r.size)
		}
		r.Offset, r.Size = uint32(r.offset), uint32(r.size)
	}
	return nil
}

// MarshalCSV returns the table as a CSV file, byte for byte as Espressif's
// generator makes it. It fails with [ErrLabel] if a label cannot be written
// so that it is read back, with [ErrFlags] if flags have no name, and as
// [Table.MarshalBinary] does. [ParseCSV] reads it back only if the partitions
// are in the order of the flash and pass [Table.Check]. NoMD5 is lost.
func (t *Table) MarshalCSV() ([]byte, error) {
	if err := t.encodable(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("# ESP-IDF Partition Table\n# Name, Type, SubType, Offset, Size, Flags\n")
	for i, p := range t.Partitions {
		at := int64(i * entrySize)
		if !fitsCSV(p.Label) {
			return nil, formatError(at+labelAt, ErrLabel, "%q cannot be written as CSV", p.Label)
		}
		if p.Flags&^namedFlags != 0 {
			return nil, formatError(at+flagsAt, ErrFlags, "flags 0x%x of %q have no name", uint32(p.Flags&^namedFlags), p.Label)
		}
		fmt.Fprintf(&b, "%s,%v,%s,0x%x,%s,%s\n", p.Label, p.Type, p.Type.SubtypeName(p.Subtype), p.Offset, formatSize(p.Size), formatFlags(p.Flags))
	}
	return b.Bytes(), nil
}

func fitsCSV(label string) bool {
	return utf8.ValidString(label) && strings.TrimSpace(label) == label && !strings.HasPrefix(label, "#") &&
		!strings.ContainsAny(label, ",$") && strings.IndexFunc(label, isLineBreak) < 0
}

func formatSize(n uint32) string {
	switch {
	case n%(1<<20) == 0:
		return fmt.Sprintf("%dM", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%dK", n>>10)
	}
	return fmt.Sprintf("0x%x", n)
}

func formatFlags(flags Flags) string {
	var names []string
	for _, n := range flagNames {
		if flags&n.flag != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ":")
}
