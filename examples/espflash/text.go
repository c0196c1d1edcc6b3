package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

func writeJSON(w io.Writer, r *report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

func writeText(w io.Writer, r *report) error {
	state := "not encrypted"
	if r.Encrypted {
		state = "encrypted"
	}
	fmt.Fprintf(w, "%s, %s of flash, %s\n\n", r.Chip, sizeText(r.Size), state)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LABEL\tTYPE\tOFFSET\tSIZE\tHOLDS")
	fmt.Fprintf(tw, "%s\t%s\t0x%06x\t%s\t%s\n", r.Bootloader.Label, r.Bootloader.Type, r.Bootloader.Offset, sizeText(r.Bootloader.Size), r.Bootloader.holds())
	fmt.Fprintf(tw, "(table)\tpartition table\t0x%06x\t4 KiB\t%s\n", r.Table.Offset, r.Table.holds())
	for _, p := range r.Partitions {
		fmt.Fprintf(tw, "%s\t%s, %s\t0x%06x\t%s\t%s\n", printable(p.Label), p.Type, p.Subtype, p.Offset, sizeText(p.Size), p.holds())
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	writeSignatures(w, r)
	for _, p := range r.Partitions {
		if p.NVS != nil && len(p.NVS.Values)+len(p.NVS.Damage) > 0 {
			if err := writeNVS(w, p); err != nil {
				return err
			}
		}
	}
	writeBoot(w, r)
	return nil
}

func writeSignatures(w io.Writer, r *report) {
	fmt.Fprintln(w)
	for _, p := range append([]part{r.Bootloader}, r.Partitions...) {
		if p.Image == nil {
			continue
		}
		for _, s := range p.Image.Signatures {
			text := s.Algorithm + ", key " + s.Key
			if s.Problem != "" {
				text = s.Problem
			}
			fmt.Fprintf(w, "%s: signature %d: %s\n", printable(p.Label), s.Block, text)
		}
		if len(p.Image.Signatures) == 0 {
			fmt.Fprintf(w, "%s: not signed\n", printable(p.Label))
		}
	}
}

func writeNVS(w io.Writer, p part) error {
	fmt.Fprintf(w, "\n%s:\n", printable(p.Label))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range p.NVS.Values {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%d bytes", printable(v.Namespace), printable(v.Key), v.Type, v.Size)
		if v.Value != "" {
			fmt.Fprintf(tw, "\t%s", v.Value)
		}
		fmt.Fprintln(tw)
	}
	for _, d := range p.NVS.Damage {
		fmt.Fprintf(tw, "  %s\n", d)
	}
	return tw.Flush()
}

func writeBoot(w io.Writer, r *report) {
	if b := r.Boot; b != nil {
		fmt.Fprintf(w, "\n%s.\n", b.Reason)
		switch b.Starts {
		case b.Chosen:
		case "":
			fmt.Fprintln(w, "Nothing starts: no image is good.")
		default:
			fmt.Fprintf(w, "%s has no good image: %s starts.\n", b.Chosen, b.Starts)
		}
	}
	if r.Trust == nil {
		return
	}
	fmt.Fprintln(w, "\nChain of trust:")
	for _, l := range r.Trust.Links {
		mark := "holds "
		if !l.Holds {
			mark = "BROKEN"
		}
		fmt.Fprintf(w, "  %s  %s: %s\n", mark, l.Name, l.Detail)
	}
}

func (t tableReport) holds() string {
	var said []string
	if !t.MD5 {
		said = append(said, "no MD5")
	}
	if t.Problem != "" {
		said = append(said, t.Problem)
	}
	return strings.Join(said, "; ")
}

// holds says in a line what is in a part.
func (p part) holds() string {
	switch {
	case p.Image != nil:
		text := p.Image.Chip + " image"
		if p.Image.Project != "" || p.Image.Version != "" {
			text = fmt.Sprintf("%s %s, %s", printable(p.Image.Project), printable(p.Image.Version), p.Image.Chip)
		}
		if p.Problem != "" {
			text += "; " + p.Problem
		}
		return text
	case p.Problem != "":
		return p.Problem
	case p.Entries != nil:
		var said []string
		for _, e := range p.Entries {
			switch {
			case e.Erased:
				said = append(said, "erased")
			case !e.CRC:
				said = append(said, fmt.Sprintf("%d %s, wrong CRC", e.Sequence, e.State))
			default:
				said = append(said, fmt.Sprintf("%d %s", e.Sequence, e.State))
			}
		}
		return strings.Join(said, " | ")
	case p.NVS != nil:
		text := fmt.Sprintf("%d values", len(p.NVS.Values))
		if p.NVS.Encrypted {
			text += ", encrypted"
		}
		if n := len(p.NVS.Damage); n > 0 {
			text += fmt.Sprintf(", %d damaged", n)
		}
		return text
	case p.Type == "app":
		return "nothing"
	}
	return ""
}

// printable makes what comes from the flash fit for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F || r == '\uFFFD' || r >= 0x80 && r < 0xA0 {
			return '?'
		}
		return r
	}, s)
}

func sizeText(n int64) string {
	switch {
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
