package main

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The map is drawn from low addresses at the top to high ones at the bottom. A part's
// height grows with its size, but slowly: a sector has to be read too.
const (
	svgWidth   = 760
	svgLeft    = 110
	svgBox     = 230
	svgMargin  = 20
	svgLeast   = 26
	svgDoubled = 7 // how much higher a part of twice the size is
)

// box is a part of the map.
type box struct {
	from, to           int64
	title, text, color string
}

func writeSVG(w io.Writer, r *report) error {
	boxes := layOut(r)
	var body strings.Builder
	y := svgMargin + 24
	for _, b := range boxes {
		h := height(b.to - b.from)
		fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s" stroke="#333"/>`+"\n", svgLeft, y, svgBox, h, b.color)
		fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end" class="address">0x%06x</text>`+"\n", svgLeft-8, y+5, b.from)
		fmt.Fprintf(&body, `<text x="%d" y="%d" class="title">%s</text>`+"\n", svgLeft+10, y+h/2+5, escape(b.title))
		fmt.Fprintf(&body, `<text x="%d" y="%d">%s</text>`+"\n", svgLeft+svgBox+12, y+h/2+5, escape(sizeText(b.to-b.from)+"  "+b.text))
		y += h
	}
	fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end" class="address">0x%06x</text>`+"\n", svgLeft-8, y+5, r.Size)
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">
<style>.address{font-family:monospace;font-size:11px}.title{font-weight:bold}</style>
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%d" y="%d" class="title">%s</text>
%s</svg>
`, svgWidth, y+svgMargin, svgLeft, svgMargin+8, escape(fmt.Sprintf("%s, %s of flash", r.Chip, sizeText(r.Size))), body.String())
	return err
}

// layOut returns the parts in the order of their addresses, and what is unused.
func layOut(r *report) []box {
	parts := []box{
		{r.Bootloader.Offset, r.Bootloader.Offset + r.Bootloader.Size, "bootloader", r.Bootloader.holds(), "#c9daf8"},
		{r.Table.Offset, r.Table.Offset + 0x1000, "partition table", r.Table.holds(), "#fff2cc"},
	}
	for _, p := range r.Partitions {
		color := "#eeeeee"
		switch {
		case p.Type == "app" && r.Boot != nil && p.Subtype == r.Boot.Starts:
			color = "#93c47d"
		case p.Type == "app":
			color = "#d9ead3"
		case p.NVS != nil:
			color = "#f4cccc"
		case p.Entries != nil:
			color = "#fce5cd"
		}
		parts = append(parts, box{p.Offset, p.Offset + p.Size, printable(p.Label), p.holds(), color})
	}
	slices.SortStableFunc(parts, func(a, b box) int { return cmp.Compare(a.from, b.from) })
	var all []box
	at := int64(0)
	for _, p := range parts {
		if p.from > at {
			all = append(all, box{at, p.from, "", "unused", "#ffffff"})
		}
		all = append(all, p)
		at = max(at, p.to)
	}
	if at < r.Size {
		all = append(all, box{at, r.Size, "", "unused", "#ffffff"})
	}
	return all
}

func height(size int64) int {
	h := svgLeast
	for n := size >> 12; n > 1; n >>= 1 {
		h += svgDoubled
	}
	return h
}

func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return ""
	}
	return b.String()
}
