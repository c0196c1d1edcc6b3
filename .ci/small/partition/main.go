// A device that finds its slots by the partition table.
package main

import (
	"bytes"
	"os"

	"github.com/quarklink-go/quarklink/esp/partition"
)

func main() {
	flash := bytes.NewReader(make([]byte, 1<<20))
	table, err := partition.Read(flash, partition.Layout{TableOffset: partition.QuarkLinkOffset})
	if err != nil {
		os.Exit(1)
	}
	if err := table.Check(partition.Layout{TableOffset: partition.QuarkLinkOffset}); err != nil {
		os.Exit(1)
	}
}
