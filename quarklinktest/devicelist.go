package quarklinktest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink"
)

// maxBatchFile is how much ParseDevices reads: some 120000 devices.
const maxBatchFile = 8 << 20

// ParseDevices reads the JSON file in which QuarkLink has a batch's devices:
//
//	{"devices": ["<64 hexadecimal digits>", …]}
//
// It takes that and nothing else: other members, duplicates, anything that
// quarklink.ParseDeviceID refuses, bytes after the end, and files of more than
// 8 MiB are errors. An empty list is not an error.
func ParseDevices(r io.Reader) ([]quarklink.DeviceID, error) {
	limited := &io.LimitedReader{R: r, N: maxBatchFile + 1}
	ids, err := parseDevices(json.NewDecoder(limited))
	if limited.N == 0 {
		err = fmt.Errorf("the file is larger than %d bytes", maxBatchFile)
	}
	if err != nil {
		return nil, fmt.Errorf("quarklinktest: batch file: %w", err)
	}
	return ids, nil
}

func parseDevices(d *json.Decoder) ([]quarklink.DeviceID, error) {
	for _, want := range []json.Token{json.Delim('{'), "devices", json.Delim('[')} {
		if err := expect(d, want); err != nil {
			return nil, err
		}
	}
	ids := []quarklink.DeviceID{}
	listed := map[quarklink.DeviceID]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		text, ok := token.(string)
		if !ok {
			return nil, fmt.Errorf("device %d is not a string", len(ids)+1)
		}
		id, err := quarklink.ParseDeviceID(text)
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", len(ids)+1, err)
		}
		if listed[id] {
			return nil, fmt.Errorf("device %d: %s is listed twice", len(ids)+1, id)
		}
		listed[id] = true
		ids = append(ids, id)
	}
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if err := expect(d, want); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after the end")
	}
	return ids, nil
}

func expect(d *json.Decoder, want json.Token) error {
	got, err := d.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%.80q where %q belongs", fmt.Sprint(got), fmt.Sprint(want))
	}
	return nil
}
