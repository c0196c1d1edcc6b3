package batchfile_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/transport/uart/batchfile"
)

func id(n int) string { return fmt.Sprintf("%064x", n) }

// What stations write at the same time, a batch loads.
func TestBatchLoadsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "batch.json")
	f, err := batchfile.Open(path)
	require.NoError(t, err)
	assert.Empty(t, f.DeviceIDs())
	assert.NoFileExists(t, path)
	var ports sync.WaitGroup
	for n := range 20 {
		ports.Go(func() { assert.NoError(t, f.Add(id(n%15))) })
	}
	ports.Wait()
	assert.Len(t, f.DeviceIDs(), 15)

	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	loaded, err := quarklinktest.ParseDevices(file)
	require.NoError(t, err)
	assert.Len(t, loaded, 15)

	again, err := batchfile.Open(path)
	require.NoError(t, err)
	assert.Equal(t, f.DeviceIDs(), again.DeviceIDs())
	require.NoError(t, again.Add(id(99)))
	assert.Equal(t, id(99), again.DeviceIDs()[15])
	assert.NoFileExists(t, path+".new")
}

func TestRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "batch.json")
	f, err := batchfile.Open(path)
	require.NoError(t, err)
	for _, bad := range []string{"", "00", strings.ToUpper(id(0xab)), id(1) + "0", strings.Repeat("g", 64)} {
		assert.ErrorIs(t, f.Add(bad), fs.ErrInvalid, bad)
	}
	assert.NoFileExists(t, path)

	for name, text := range map[string]string{
		"empty": "", "half": `{"devices": ["` + id(1), "a list": `["` + id(1) + `"]`, "null": `{"devices": null}`,
		"more": `{"devices": []} {}`, "another member": `{"devices": [], "batch": 1}`,
		"twice": `{"devices": ["` + id(1) + `", "` + id(1) + `"]}`, "capitals": `{"devices": ["` + strings.ToUpper(id(0xab)) + `"]}`,
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := batchfile.Open(path)
		assert.ErrorIs(t, err, batchfile.ErrDamaged, name)
	}
	gone, err := batchfile.Open(filepath.Join(t.TempDir(), "no", "batch.json"))
	require.NoError(t, err)
	assert.ErrorIs(t, gone.Add(id(1)), fs.ErrNotExist)
	assert.Empty(t, gone.DeviceIDs(), "what could not be written is not told to be there")
}
