package main

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
)

func TestTPM(t *testing.T) {
	s, err := tpm2test.Start(t.Context(), tpm2test.Options{})
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("QUARKLINK_REAL") != "require" {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	records := t.TempDir()
	_, err = on(t, nil, "", "-tpm", s.Path(), "-records", records)
	require.ErrorContains(t, err, "-generate", "no key is made unasked")
	made, err := on(t, nil, "", "-tpm", s.Path(), "-records", records, "-generate")
	require.NoError(t, err)
	assert.Contains(t, made, "conformance:    passed")
	again, err := on(t, nil, "", "-tpm", s.Path(), "-records", records)
	require.NoError(t, err)
	assert.Equal(t, deviceID(t, made), deviceID(t, again))
	require.NoError(t, s.Clear())
	_, err = on(t, nil, "", "-tpm", s.Path(), "-records", records, "-generate")
	require.ErrorIs(t, err, tpm2.ErrCleared)

	for _, args := range [][]string{
		{"-tpm", s.Path()}, {"-records", records}, {"-tpm", s.Path(), "-software", records},
		{"-tpm", s.Path(), "-i2c", "bus", "-records", records},
	} {
		_, err := on(t, nil, "", args...)
		assert.Error(t, err, args)
	}
}
