//go:build linux

package tpm2_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

// What does not open is refused by name, never taken for absent, and never replaced.
func TestRefusedKeys(t *testing.T) {
	const handle = 0x81000100
	for name, test := range map[string]struct {
		keys  tpm2.KeyOptions
		spoil func(t *testing.T, d *device)
		want  error
		not   error
	}{
		"cleared": {
			spoil: func(t *testing.T, d *device) { require.NoError(t, d.s.Clear()) },
			want:  tpm2.ErrCleared, not: tpm2.ErrOtherTPM},
		"cleared, persistent": {
			keys:  tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Enrolment: handle}},
			spoil: func(t *testing.T, d *device) { require.NoError(t, d.s.Clear()) },
			want:  tpm2.ErrCleared, not: tpm2.ErrOtherTPM},
		"another TPM": {
			spoil: func(t *testing.T, d *device) { d.s = start(t) },
			want:  tpm2.ErrOtherTPM, not: tpm2.ErrCleared},
		"another TPM, with an endorsement key that is not known": {
			spoil: func(t *testing.T, d *device) {
				d.edit(t, func(r map[string]any) { delete(r, "endorsement") })
				d.s = start(t)
			},
			want: tpm2.ErrOtherTPM},
		"cleared, with an endorsement key that is not known": {
			spoil: func(t *testing.T, d *device) {
				d.edit(t, func(r map[string]any) { delete(r, "endorsement") })
				require.NoError(t, d.s.Clear())
			},
			want: tpm2.ErrCleared},
		"the record names another template": {
			spoil: func(t *testing.T, d *device) {
				d.edit(t, func(r map[string]any) { r["template"] = "ecc-zero-unique" })
			},
			want: tpm2.ErrTemplate},
		"the record names another template and its parent": {
			spoil: func(t *testing.T, d *device) {
				parent := primaryName(t, d.s, gotpm.ECCSRKTemplate)
				d.edit(t, func(r map[string]any) { r["template"], r["parent"] = "ecc-zero-unique", parent })
			},
			want: tpm2.ErrTemplate},
		"a template that is not known": {
			spoil: func(t *testing.T, d *device) {
				d.edit(t, func(r map[string]any) { r["template"] = "rsa-2048" })
			},
			want: tpm2.ErrTemplate},
		"a damaged blob": {
			spoil: func(t *testing.T, d *device) { d.edit(t, func(r map[string]any) { flip(t, r, "private", 60) }) },
			want:  store.ErrDamaged},
		"a blob cut short": {
			spoil: func(t *testing.T, d *device) { d.edit(t, func(r map[string]any) { r["private"] = []byte{1, 2} }) },
			want:  store.ErrDamaged},
		"a damaged public point": {
			spoil: func(t *testing.T, d *device) { d.edit(t, func(r map[string]any) { flip(t, r, "public", 80) }) },
			want:  store.ErrDamaged},
		"a damaged record": {
			spoil: func(t *testing.T, d *device) {
				data, err := d.records.Get(t.Context(), "tpm-esk")
				require.NoError(t, err)
				data[len(data)/2] ^= 1
				require.NoError(t, d.records.Put(t.Context(), "tpm-esk", data))
			},
			want: store.ErrDamaged},
		"the handle holds another object": {
			keys: tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Enrolment: handle}},
			spoil: func(t *testing.T, d *device) {
				require.NoError(t, d.s.Evict(handle))
				persistForeign(t, d.s, handle)
			},
			want: tpm2.ErrHandleUsed},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			d := &device{s: s, tpm: open(t, s, tpm2.Options{}), records: new(store.Mem), options: test.keys}
			old := generate(t, d.keys(t))
			test.spoil(t, d)
			record, err := d.records.Get(t.Context(), "tpm-esk")
			require.NoError(t, err)
			before := holds(t, d.s)

			keys := keyStore(t, open(t, d.s, tpm2.Options{}), d.records, test.keys)
			_, err = keys.Signer(t.Context(), keystore.Enrolment)
			require.ErrorIs(t, err, test.want)
			assert.NotErrorIs(t, err, fs.ErrNotExist)
			if test.not != nil {
				assert.NotErrorIs(t, err, test.not)
			}
			_, err = keys.Generate(t.Context(), keystore.Enrolment)
			require.ErrorIs(t, err, fs.ErrExist, "never a new key by itself")
			now, err := d.records.Get(t.Context(), "tpm-esk")
			require.NoError(t, err)
			assert.Equal(t, record, now)
			assert.Equal(t, before, holds(t, d.s))

			if d.s == s && (test.want == tpm2.ErrCleared || test.want == tpm2.ErrHandleUsed) {
				require.ErrorIs(t, sign(old), test.want, "a signer that was opened before")
			}
		})
	}
}

// edit changes a record as only somebody who knows its checksum can.
func (d *device) edit(t *testing.T, change func(map[string]any)) {
	t.Helper()
	data, err := d.records.Get(t.Context(), "tpm-esk")
	require.NoError(t, err)
	version, payload, err := store.DecodeRecord("tpm-esk", data)
	require.NoError(t, err)
	var r map[string]any
	require.NoError(t, json.Unmarshal(payload, &r))
	change(r)
	payload, err = json.Marshal(r)
	require.NoError(t, err)
	require.NoError(t, d.records.Put(t.Context(), "tpm-esk", store.EncodeRecord("tpm-esk", version, payload)))
}

// flip changes one bit of a member that is bytes.
func flip(t *testing.T, r map[string]any, member string, at int) {
	t.Helper()
	var data []byte
	require.NoError(t, json.Unmarshal([]byte(`"`+r[member].(string)+`"`), &data))
	data[at] ^= 1
	r[member] = data
}

// direct is a connection of somebody else's, by go-tpm's own transport.
func direct(tb testing.TB, s *tpm2test.TPM) tpm2.Transport {
	tb.Helper()
	transport, err := linuxudstpm.Open(s.Direct())
	require.NoError(tb, err)
	return transport
}

func primaryName(t *testing.T, s *tpm2test.TPM, template gotpm.TPMTPublic) []byte {
	t.Helper()
	rsp, err := gotpm.CreatePrimary{PrimaryHandle: gotpm.TPMRHOwner, InPublic: gotpm.New2B(template)}.Execute(direct(t, s))
	require.NoError(t, err)
	_, err = gotpm.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(direct(t, s))
	require.NoError(t, err)
	return rsp.Name.Buffer
}

// persistForeign puts some other program's signing key at a handle.
func persistForeign(t *testing.T, s *tpm2test.TPM, handle uint32) {
	t.Helper()
	tpm := direct(t, s)
	template := gotpm.ECCSRKTemplate
	template.ObjectAttributes.Restricted, template.ObjectAttributes.Decrypt = false, false
	template.ObjectAttributes.SignEncrypt = true
	template.Parameters = gotpm.NewTPMUPublicParms(gotpm.TPMAlgECC, &gotpm.TPMSECCParms{CurveID: gotpm.TPMECCNistP256})
	rsp, err := gotpm.CreatePrimary{PrimaryHandle: gotpm.TPMRHOwner, InPublic: gotpm.New2B(template)}.Execute(tpm)
	require.NoError(t, err)
	_, err = gotpm.EvictControl{
		Auth:             gotpm.AuthHandle{Handle: gotpm.TPMRHOwner, Auth: gotpm.PasswordAuth(nil)},
		ObjectHandle:     gotpm.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
		PersistentHandle: gotpm.TPMIDHPersistent(handle),
	}.Execute(tpm)
	require.NoError(t, err)
	_, err = gotpm.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(tpm)
	require.NoError(t, err)
}

func TestRefusedHandles(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	for name, handles := range map[string]map[keystore.Role]uint32{
		"transient":       {keystore.Enrolment: 0x80000000},
		"of the platform": {keystore.Enrolment: 0x81800000},
		"RSA SRK":         {keystore.Enrolment: 0x81000001},
		"ECC SRK":         {keystore.Enrolment: 0x81000002},
		"zero":            {keystore.Enrolment: 0},
		"twice":           {keystore.Enrolment: 0x81000100, keystore.Device: 0x81000100},
		"unknown role":    {"other": 0x81000100},
	} {
		_, err := tpm.KeyStore(new(store.Mem), tpm2.KeyOptions{Handles: handles})
		assert.ErrorIs(t, err, fs.ErrInvalid, name)
	}
	_, err := tpm.KeyStore(nil, tpm2.KeyOptions{})
	assert.ErrorIs(t, err, fs.ErrInvalid)

	persistForeign(t, s, 0x81000100)
	records := new(store.Mem)
	keys := keyStore(t, tpm, records, tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Enrolment: 0x81000100}})
	_, err = keys.Generate(t.Context(), keystore.Enrolment)
	require.ErrorIs(t, err, tpm2.ErrHandleUsed)
	_, err = keys.Signer(t.Context(), keystore.Enrolment)
	require.ErrorIs(t, err, fs.ErrNotExist, "no key was made")
}

// TestNoRoomForPersistentKey fills the TPM's persistent memory.
func TestNoRoomForPersistentKey(t *testing.T) {
	s := start(t)
	for h := uint32(0x81000200); ; h++ {
		require.Less(t, h, uint32(0x81000300))
		if full := fillPersistent(t, s, h); full {
			break
		}
	}
	tpm := open(t, s, tpm2.Options{SlotWait: -1})
	handles := map[keystore.Role]uint32{keystore.Enrolment: 0x81000100}
	keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{Handles: handles})
	_, err := keys.Generate(t.Context(), keystore.Enrolment)
	require.ErrorIs(t, err, tpm2.ErrOutOfSlots)
	assert.ErrorContains(t, err, "0x81000200 (ECC storage key")
	_, err = keys.Signer(t.Context(), keystore.Enrolment)
	require.ErrorIs(t, err, fs.ErrNotExist, "no key was made")
}

func fillPersistent(t *testing.T, s *tpm2test.TPM, handle uint32) (full bool) {
	t.Helper()
	tpm := direct(t, s)
	rsp, err := gotpm.CreatePrimary{
		PrimaryHandle: gotpm.TPMRHOwner, InPublic: gotpm.New2B(gotpm.ECCSRKTemplate),
	}.Execute(tpm)
	require.NoError(t, err)
	_, evictErr := gotpm.EvictControl{
		Auth:             gotpm.AuthHandle{Handle: gotpm.TPMRHOwner, Auth: gotpm.PasswordAuth(nil)},
		ObjectHandle:     gotpm.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
		PersistentHandle: gotpm.TPMIDHPersistent(handle),
	}.Execute(tpm)
	_, err = gotpm.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(tpm)
	require.NoError(t, err)
	if evictErr != nil {
		require.ErrorIs(t, evictErr, gotpm.TPMRCNVSpace)
	}
	return evictErr != nil
}

// TestOpenRefuses opens what is no TPM, or is none for us. No error may look like a
// missing key, which would have a caller make one.
func TestOpenRefuses(t *testing.T) {
	dir, err := os.MkdirTemp("", "tpm")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(path("file"), nil, 0o600))
	stale, err := net.Listen("unix", path("stale"))
	require.NoError(t, err)
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	for name, test := range map[string]struct {
		o    tpm2.Options
		want error
	}{
		"nothing there":             {tpm2.Options{Path: path("absent")}, tpm2.ErrNoTPM},
		"a file":                    {tpm2.Options{Path: path("file")}, tpm2.ErrNoTPM},
		"a folder":                  {tpm2.Options{Path: dir}, tpm2.ErrNoTPM},
		"a socket without listener": {tpm2.Options{Path: path("stale")}, tpm2.ErrNoTPM},
		"another device":            {tpm2.Options{Path: "/dev/null"}, tpm2.ErrNoTPM},
		"TPM 1.2": {tpm2.Options{Transport: answers("\x00\xc4\x00\x00\x00\x0a\x00\x00\x00\x1e")},
			tpm2.ErrNoTPM},
		"half an answer": {tpm2.Options{Transport: answers("\x80\x01\x00\x00\x00\x0a\x00")}, tpm2.ErrNoTPM},
		"no answer":      {tpm2.Options{Transport: answers("")}, tpm2.ErrNoTPM},
		"path and transport": {tpm2.Options{Path: "/dev/tpmrm0", Transport: answers("")},
			fs.ErrInvalid},
		"negative time-out": {tpm2.Options{Timeout: -1}, fs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			test.o.OpenWait = 20 * time.Millisecond
			_, err := tpm2.Open(t.Context(), test.o)
			require.ErrorIs(t, err, test.want)
			assert.NotErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

// answers is a transport that always answers the same.
type answers string

func (a answers) Send([]byte) ([]byte, error) { return []byte(a), nil }

// TestPermissionAndBusy has the system refuse to open a device.
func TestPermissionAndBusy(t *testing.T) {
	for name, test := range map[string]struct{ system, want error }{
		"permission": {fs.ErrPermission, tpm2.ErrPermission},
		"busy":       {tpm2.EBUSY, tpm2.ErrBusy},
		"gone":       {fs.ErrNotExist, tpm2.ErrNoTPM},
		"broken":     {tpm2.EIO, tpm2.ErrConnection},
	} {
		t.Run(name, func(t *testing.T) {
			err := tpm2.ConnectionError("open", &os.PathError{Op: "open", Path: "/dev/tpm0", Err: test.system})
			require.ErrorIs(t, err, test.want)
			assert.NotErrorIs(t, err, fs.ErrNotExist)
		})
	}
	if os.Geteuid() == 0 {
		return // to whom nothing is forbidden
	}
	s := start(t)
	require.NoError(t, os.Chmod(s.Path(), 0))
	_, err := tpm2.Open(t.Context(), tpm2.Options{Path: s.Path()})
	require.ErrorIs(t, err, tpm2.ErrPermission)
	assert.ErrorContains(t, err, "tss")
}

// TestWithoutP256 opens a TPM that knows other curves only.
func TestWithoutP256(t *testing.T) {
	s := start(t)
	for name, rewrite := range map[string]func([]byte) []byte{
		"other curves": func(answer []byte) []byte {
			answer = answer[:10+1+4+4+2] // header, more data, capability, count, one curve
			binary.BigEndian.PutUint32(answer[2:], uint32(len(answer)))
			binary.BigEndian.PutUint32(answer[15:], 1)
			binary.BigEndian.PutUint16(answer[19:], uint16(gotpm.TPMECCNistP384))
			return answer
		},
		"no curves": func([]byte) []byte { return tpm2test.Answer(0x2c4) }, // TPM_RC_VALUE, parameter 1
	} {
		t.Run(name, func(t *testing.T) {
			s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
				answer, err := next(command)
				if err == nil && isCapability(command, gotpm.TPMCapECCCurves) {
					answer = rewrite(answer)
				}
				return answer, err
			})
			_, err := tpm2.Open(t.Context(), tpm2.Options{Path: s.Path()})
			require.ErrorIs(t, err, tpm2.ErrNoP256)
		})
	}
}

func isCapability(command []byte, c gotpm.TPMCap) bool {
	return tpm2test.Command(command) == gotpm.TPMCCGetCapability && binary.BigEndian.Uint32(command[10:]) == uint32(c)
}

// TestOwnerAuth uses a TPM whose owner has an authorization value.
func TestOwnerAuth(t *testing.T) {
	s := start(t)
	require.NoError(t, s.SetOwnerAuth([]byte("owner")))
	handle := uint32(0x81000100)
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		assert.NotContains(t, string(command), "owner", "it was sent in clear")
		return next(command)
	})
	for name, test := range map[string]struct {
		auth func(context.Context) ([]byte, error)
		want error
	}{
		"right":       {func(context.Context) ([]byte, error) { return []byte("owner"), nil }, nil},
		"wrong":       {func(context.Context) ([]byte, error) { return []byte("other"), nil }, tpm2.ErrAuth},
		"none":        {nil, tpm2.ErrAuth},
		"with a zero": {func(context.Context) ([]byte, error) { return []byte("own\x00er"), nil }, tpm2.ErrAuth},
		"too long":    {func(context.Context) ([]byte, error) { return make([]byte, 33), nil }, tpm2.ErrAuth},
		"fails":       {func(context.Context) ([]byte, error) { return nil, fs.ErrPermission }, fs.ErrPermission},
	} {
		t.Run(name, func(t *testing.T) {
			tpm := open(t, s, tpm2.Options{OwnerAuth: test.auth})
			handles := map[keystore.Role]uint32{keystore.Device: handle}
			keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{Handles: handles})
			for _, role := range []keystore.Role{keystore.Enrolment, keystore.Device} {
				signer, err := keys.Generate(t.Context(), role)
				if test.want == nil {
					require.NoError(t, err)
					assert.NoError(t, sign(signer))
				} else {
					require.ErrorIs(t, err, test.want)
					assert.Equal(t, name == "with a zero", strings.Contains(err.Error(), "zero byte"), "it tells why: %v", err)
				}
			}
			assert.Empty(t, holds(t, s).Transient)
			assert.Empty(t, holds(t, s).Sessions)
			handle++ // the next one's
		})
	}
}

// TestKeyAuth uses keys that have an authorization value.
func TestKeyAuth(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	records := new(store.Mem)
	var sent [][]byte
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		sent = append(sent, append([]byte{}, command...))
		return next(command)
	})
	with := func(auth string) tpm2.KeyOptions {
		return tpm2.KeyOptions{KeyAuth: func(context.Context, keystore.Role) ([]byte, error) { return []byte(auth), nil }}
	}
	require.NoError(t, sign(generate(t, keyStore(t, tpm, records, with("correct horse")))))
	s.Intercept(nil)
	for _, command := range sent {
		assert.NotContains(t, string(command), "correct horse", "it was sent in clear")
	}
	for name, o := range map[string]tpm2.KeyOptions{"wrong": with("battery"), "empty": with(""), "nobody to ask": {}} {
		for range 5 { // more wrong ones than a TPM takes, if it counts them
			signer, err := keyStore(t, tpm, records, o).Signer(t.Context(), keystore.Enrolment)
			require.NoError(t, err)
			require.ErrorIs(t, sign(signer), tpm2.ErrAuth, name)
		}
	}
	signer, err := keyStore(t, tpm, records, with("correct horse")).Signer(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	assert.NoError(t, sign(signer))
	assert.Empty(t, holds(t, s).Sessions)
}

// TestNewerRecord opens a record of a version that is not known yet.
func TestNewerRecord(t *testing.T) {
	s := start(t)
	records := new(store.Mem)
	tpm := open(t, s, tpm2.Options{})
	generate(t, keyStore(t, tpm, records, tpm2.KeyOptions{}))
	data, err := records.Get(t.Context(), "tpm-esk")
	require.NoError(t, err)
	_, payload, err := store.DecodeRecord("tpm-esk", data)
	require.NoError(t, err)
	require.NoError(t, records.Put(t.Context(), "tpm-esk", store.EncodeRecord("tpm-esk", 2, payload)))
	_, err = keyStore(t, tpm, records, tpm2.KeyOptions{}).Signer(t.Context(), keystore.Enrolment)
	require.ErrorContains(t, err, "newer release")
	assert.NotErrorIs(t, err, store.ErrDamaged)
	assert.NotErrorIs(t, err, fs.ErrNotExist)
}

// TestAnotherFamily opens a TPM that says it is of some other family.
func TestAnotherFamily(t *testing.T) {
	s := start(t)
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		answer, err := next(command)
		if err == nil && isCapability(command, gotpm.TPMCapTPMProperties) {
			copy(answer[len(answer)-4:], "3.0\x00")
		}
		return answer, err
	})
	_, err := tpm2.Open(t.Context(), tpm2.Options{Path: s.Path(), OpenWait: -1})
	require.ErrorIs(t, err, tpm2.ErrNoTPM)
}
