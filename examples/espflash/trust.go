package main

import (
	"context"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
)

// trust is the chain from the ROM to the application that starts.
type trust struct {
	Links  []link `json:"links"`
	Broken string `json:"broken,omitempty"` // the first link that does not hold
}

type link struct {
	Name   string `json:"name"`
	Holds  bool   `json:"holds"`
	Detail string `json:"detail"`
}

// add appends a link; err is what is against it.
func (t *trust) add(name, holds string, err error) {
	l := link{Name: name, Holds: err == nil, Detail: holds}
	if err != nil {
		l.Detail = err.Error()
		if t.Broken == "" {
			t.Broken = name + ": " + l.Detail
		}
	}
	t.Links = append(t.Links, l)
}

// walk follows the chain: ROM, bootloader, table, otadata, application. The table and
// otadata are not signed: the bootloader believes them, and what they point to has to
// be signed.
func (c *chip) walk(ctx context.Context) *trust {
	t := &trust{}
	size := c.tableAt - c.bootloader
	err := c.verifier().Verify(ctx, io.NewSectionReader(c.flash, c.bootloader, size), size)
	t.add("bootloader", "signed by a trusted key", err)

	layout := partition.Layout{TableOffset: uint32(c.tableAt), FlashSize: c.flash.Size()}
	t.add("partition table", c.tableDetail(), c.table.Check(layout))

	b := c.lookAtBoot(ctx)
	if b == nil {
		t.add("otadata", "", fmt.Errorf("cannot be read"))
		return t
	}
	t.add("otadata", b.Reason+" (not signed)", nil)

	slots, _ := c.slots()
	chosen, ok := slots[otadata.Factory]
	for slot, p := range slots {
		if slotName(slot) == b.Chosen {
			chosen, ok = p, true
		}
	}
	if !ok {
		t.add("application", "", fmt.Errorf("the table has no %s", b.Chosen))
		return t
	}
	err = c.good(ctx, chosen)
	if err != nil && b.Starts != "" {
		err = fmt.Errorf("%w; %s would start instead", err, b.Starts)
	}
	t.add("application "+b.Chosen, "signed by a trusted key", err)
	return t
}

func (c *chip) tableDetail() string {
	if c.table.NoMD5 {
		return "no checksum, and not signed"
	}
	return "its MD5 is right; it is not signed"
}
