//go:build linux

package tpm2_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

// bench is a folder in which other people's programs use the same TPM.
type bench struct {
	t   *testing.T
	s   *tpm2test.TPM
	dir string
}

func newBench(t *testing.T, s *tpm2test.TPM) bench {
	t.Helper()
	counterpart.Program(t, "socat")
	return bench{t, s, t.TempDir()}
}

func (b bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b bench) write(name string, data []byte) string {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(b.path(name), data, 0o600))
	return name
}

func (b bench) read(name string) []byte {
	b.t.Helper()
	data, err := os.ReadFile(b.path(name))
	require.NoError(b.t, err)
	return data
}

func (b bench) command(program string, args ...string) *exec.Cmd {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), counterpart.Program(b.t, program), args...)
	cmd.Dir = b.dir
	tcti := "cmd:socat - UNIX-CONNECT:" + b.s.Direct()
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti, "TPM2OPENSSL_TCTI="+tcti)
	return cmd
}

// run runs a program that has to succeed, and returns what it prints.
func (b bench) run(program string, args ...string) []byte {
	b.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := b.command(program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(b.t, cmd.Run(), "%s %q: %s", program, args, &stderr)
	return stdout.Bytes()
}

// openssl runs openssl with the tpm2 provider.
func (b bench) openssl(command string, args ...string) []byte {
	b.t.Helper()
	b.needProvider()
	return b.run("openssl", append([]string{command, "-provider", "tpm2", "-provider", "default"}, args...)...)
}

func (b bench) needProvider() {
	b.t.Helper()
	counterpart.Missing(b.t, b.command("openssl", "list", "-providers", "-provider", "tpm2").Run())
}

// publicPEM is a public key as openssl reads it.
func publicPEM(t *testing.T, signer crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// TestExportToOpenSSL has openssl's provider open an exported key and sign with it.
func TestExportToOpenSSL(t *testing.T) {
	for name, o := range map[string]tpm2.KeyOptions{
		"wrapped":    {},
		"persistent": {Handles: map[keystore.Role]uint32{keystore.Enrolment: 0x81000100}},
		"with authorization": {KeyAuth: func(context.Context, keystore.Role) ([]byte, error) {
			return []byte("secret"), nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			b := newBench(t, s)
			keys := keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), o)
			signer := generate(t, keys)
			exported, err := keys.Export(t.Context(), keystore.Enrolment)
			require.NoError(t, err)
			b.write("key.pem", exported)
			b.write("data", []byte("signed by openssl"))
			var pass []string
			if o.KeyAuth != nil {
				pass = []string{"-passin", "pass:secret"}
			}
			public := b.openssl("pkey", append([]string{"-in", "key.pem", "-pubout"}, pass...)...)
			require.Equal(t, string(publicPEM(t, signer)), string(public))
			b.openssl("pkeyutl", append([]string{"-sign", "-inkey", "key.pem", "-rawin", "-digest", "sha256",
				"-in", "data", "-out", "signature"}, pass...)...)
			b.write("public.pem", public)
			assert.Contains(t, string(b.run("openssl", "dgst", "-sha256", "-verify", "public.pem",
				"-signature", "signature", "data")), "Verified OK")
			assert.NoError(t, sign(signer))
		})
	}
}

// TestImportFromOpenSSL signs with keys that openssl's provider has made.
func TestImportFromOpenSSL(t *testing.T) {
	for name, auth := range map[string]string{"without authorization": "", "with authorization": "secret"} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			b := newBench(t, s)
			args := []string{"-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", "key.pem"}
			o := tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Device: 0x81000100}}
			if auth != "" {
				args = append(args, "-pkeyopt", "user-auth:"+auth)
				o.KeyAuth = func(context.Context, keystore.Role) ([]byte, error) { return []byte(auth), nil }
			}
			b.openssl("genpkey", args...)
			records := new(store.Mem)
			tpm := open(t, s, tpm2.Options{})
			for _, role := range []keystore.Role{keystore.Enrolment, keystore.Device} { // wrapped, persistent
				keys := keyStore(t, tpm, records, o)
				signer, err := keys.Import(t.Context(), role, b.read("key.pem"), tpm2.EmptyUnique)
				require.NoError(t, err)
				require.NoError(t, sign(signer))
				_, err = keys.Import(t.Context(), role, b.read("key.pem"), tpm2.EmptyUnique)
				require.ErrorIs(t, err, fs.ErrExist)
				again, err := keyStore(t, tpm, records, o).Signer(t.Context(), role)
				require.NoError(t, err)
				require.NoError(t, sign(again))
				exported, err := keys.Export(t.Context(), role)
				require.NoError(t, err)
				assert.Equal(t, parts(t, b.read("key.pem")), parts(t, exported), "the file has the same key again")
			}
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

// parts returns the TPM2B_PUBLIC and the TPM2B_PRIVATE of a file. openssl's provider
// writes TRUE in a way that DER does not allow, and encoding/asn1 refuses.
func parts(t *testing.T, file []byte) (parts [][]byte) {
	t.Helper()
	block, _ := pem.Decode(file)
	block.Bytes[bytes.Index(block.Bytes, []byte{0xa0, 3, 1, 1})+4] = 0xff
	var k tpmKey
	_, err := asn1.Unmarshal(block.Bytes, &k)
	require.NoError(t, err)
	return [][]byte{k.Public, k.Private}
}

// TestLockout gives wrong values for a key whose wrong values the TPM counts, as
// openssl's provider makes them.
func TestLockout(t *testing.T) {
	s := start(t)
	b := newBench(t, s)
	b.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "user-auth:secret", "-out", "key.pem")
	auth := "wrong"
	keys := keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{
		KeyAuth: func(context.Context, keystore.Role) ([]byte, error) { return []byte(auth), nil },
	})
	signer, err := keys.Import(t.Context(), keystore.Enrolment, b.read("key.pem"), tpm2.EmptyUnique)
	require.NoError(t, err)
	for i := 0; ; i++ {
		require.Less(t, i, 10)
		err = sign(signer)
		require.Error(t, err)
		if errors.Is(err, tpm2.ErrLockout) {
			break
		}
		require.ErrorIs(t, err, tpm2.ErrAuth)
	}
	auth = "secret" // right, but the TPM is not asked
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		assert.NotEqual(t, gotpm.TPMCCSign, tpm2test.Command(command))
		return next(command)
	})
	err = sign(signer)
	require.ErrorIs(t, err, tpm2.ErrLockout)
	var lockout *tpm2.LockoutError
	require.ErrorAs(t, err, &lockout)
	assert.Equal(t, uint32(3), lockout.Failures)
	assert.Equal(t, 1000*time.Second, lockout.Wait, "swtpm's interval")
	s.Intercept(nil)
	b.run("tpm2_dictionarylockout", "--clear-lockout")
	b.run("tpm2_flushcontext", "-t")
	require.NoError(t, sign(signer))
}

// parents are how tpm2-tools make the parent of each template.
var parents = map[tpm2.Template][]string{
	tpm2.EmptyUnique: {"-C", "o", "-G", "ecc", "-a",
		"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"},
	tpm2.ZeroUnique: {"-C", "o", "-G", "ecc", "-a",
		"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt", "-u", "unique"},
	tpm2.WithoutNoDA: {"-C", "o", "-G", "ecc"},
}

// createPrimary has tpm2-tools make a parent, as the file parent.ctx.
func (b bench) createPrimary(template tpm2.Template) {
	b.t.Helper()
	// Two TPM2B_ECC_PARAMETER as a little-endian processor has them in memory.
	point := append([]byte{32, 0}, make([]byte, 128)...)
	b.write("unique", append(point, point...))
	b.run("tpm2_createprimary", append([]string{"-c", "parent.ctx"}, parents[template]...)...)
	b.run("tpm2_flushcontext", "-t")
}

// TestExportToTPM2Tools has tpm2-tools load the two halves of an exported key and sign.
func TestExportToTPM2Tools(t *testing.T) {
	s := start(t)
	b := newBench(t, s)
	counterpart.Program(t, "tpm2_createprimary")
	handles := map[keystore.Role]uint32{keystore.Device: 0x81000100}
	keys := keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{Handles: handles})
	signer := generate(t, keys)
	exported, err := keys.Export(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	block, _ := pem.Decode(exported)
	var file tpmKey
	rest, err := asn1.Unmarshal(block.Bytes, &file)
	require.NoError(t, err)
	require.Empty(t, rest)
	b.write("key.pub", file.Public)
	b.write("key.priv", file.Private)
	b.write("data", []byte("signed by tpm2_sign"))
	b.createPrimary(tpm2.EmptyUnique)
	b.run("tpm2_load", "-C", "parent.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
	b.run("tpm2_flushcontext", "-t")
	b.run("tpm2_sign", "-c", "key.ctx", "-g", "sha256", "-f", "plain", "-o", "signature", "data")
	b.run("tpm2_flushcontext", "-t")
	b.write("public.pem", publicPEM(t, signer))
	assert.Contains(t, string(b.run("openssl", "dgst", "-sha256", "-verify", "public.pem",
		"-signature", "signature", "data")), "Verified OK")

	persistent, err := keys.Generate(t.Context(), keystore.Device)
	require.NoError(t, err)
	b.run("tpm2_readpublic", "-c", "0x81000100", "-f", "pem", "-o", "persistent.pem")
	assert.Equal(t, string(publicPEM(t, persistent)), string(b.read("persistent.pem")))
	assert.Contains(t, string(b.run("tpm2_getcap", "handles-persistent")), "0x81000100")
	assert.Contains(t, string(b.run("tpm2_readpublic", "-c", "0x81000100")),
		"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n")
}

// tpmKey is the file as encoding/asn1 sees it.
type tpmKey struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"explicit,tag:0,optional"`
	Parent    int64
	Public    []byte
	Private   []byte
}

// TestImportFromTPM2Tools signs with keys that tpm2-tools have made under each of the
// parents in the wild, and refuses them under the name of another.
func TestImportFromTPM2Tools(t *testing.T) {
	s := start(t)
	b := newBench(t, s)
	counterpart.Program(t, "tpm2_createprimary")
	tpm := open(t, s, tpm2.Options{})
	for template := range parents {
		t.Run(template.String(), func(t *testing.T) {
			b := bench{t, s, b.dir}
			b.createPrimary(template)
			b.run("tpm2_create", "-C", "parent.ctx", "-G", "ecc256:ecdsa-sha256", "-u", "key.pub", "-r", "key.priv",
				"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign")
			b.run("tpm2_flushcontext", "-t")
			file := file(t, tpmKey{loadable, true, 0x40000001, b.read("key.pub"), b.read("key.priv")})
			for other := range parents {
				if other == template {
					continue
				}
				keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{})
				_, err := keys.Import(t.Context(), keystore.Enrolment, file, other)
				require.ErrorIs(t, err, tpm2.ErrTemplate)
				assert.ErrorContains(t, err, template.String())
				_, err = keys.Signer(t.Context(), keystore.Enrolment)
				require.ErrorIs(t, err, fs.ErrNotExist, "nothing was stored")
			}
			records := new(store.Mem)
			_, err := keyStore(t, tpm, records, tpm2.KeyOptions{}).Import(t.Context(), keystore.Enrolment, file, template)
			require.NoError(t, err)
			keys := keyStore(t, tpm, records, tpm2.KeyOptions{})
			signer, err := keys.Signer(t.Context(), keystore.Enrolment)
			require.NoError(t, err)
			require.NoError(t, sign(signer))
			exported, err := keys.Export(t.Context(), keystore.Enrolment)
			if template == tpm2.EmptyUnique {
				require.NoError(t, err)
				assert.Equal(t, string(file), string(exported))
			} else {
				require.ErrorIs(t, err, tpm2.ErrTemplate)
				assert.ErrorContains(t, err, template.String())
			}
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

// TestImportRefuses imports what is no such key.
func TestImportRefuses(t *testing.T) {
	s := start(t)
	b := newBench(t, s)
	tpm := open(t, s, tpm2.Options{})
	other := keyStore(t, open(t, start(t), tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{})
	generate(t, other)
	foreign, err := other.Export(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	b.openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "bits:2048", "-out", "rsa.pem")
	b.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-384", "-out", "p384.pem")
	b.createPrimary(tpm2.EmptyUnique)
	made := func(attributes string, algorithm ...string) []byte {
		b.run("tpm2_create", "-C", "parent.ctx", "-G", "ecc256"+strings.Join(algorithm, ""),
			"-u", "k.pub", "-r", "k.priv", "-a", attributes)
		b.run("tpm2_flushcontext", "-t")
		return file(t, tpmKey{loadable, true, 0x40000001, b.read("k.pub"), b.read("k.priv")})
	}
	const good = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
	whole := made(good)
	const ours = tpm2.EmptyUnique
	otherPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"})
	emptyPEM := pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY"})
	decrypting := made("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|decrypt")
	edit := func(change func(*tpmKey)) []byte { return edited(t, whole, change) }
	for name, test := range map[string]struct {
		file     []byte
		template tpm2.Template
		want     error
	}{
		"whole":                  {whole, ours, nil},
		"nothing":                {nil, ours, fs.ErrInvalid},
		"too large":              {make([]byte, 1<<20), ours, fs.ErrInvalid},
		"another kind of PEM":    {otherPEM, ours, fs.ErrInvalid},
		"no DER":                 {emptyPEM, ours, fs.ErrInvalid},
		"of another TPM":         {foreign, ours, tpm2.ErrOtherTPM},
		"RSA":                    {b.read("rsa.pem"), ours, fs.ErrInvalid},
		"P-384":                  {b.read("p384.pem"), ours, fs.ErrInvalid},
		"an unknown template":    {whole, tpm2.Template(9), fs.ErrInvalid},
		"it may leave the TPM":   {made("sensitivedataorigin|userwithauth|noda|sign"), ours, fs.ErrInvalid},
		"restricted":             {made(good+"|restricted", ":ecdsa-sha256:null"), ours, fs.ErrInvalid},
		"not for signing":        {decrypting, ours, fs.ErrInvalid},
		"a persistent parent":    {edit(func(k *tpmKey) { k.Parent = 0x81000001 }), ours, fs.ErrInvalid},
		"sealed data":            {edit(func(k *tpmKey) { k.Type[5] = 5 }), ours, fs.ErrInvalid},
		"public cut short":       {edit(func(k *tpmKey) { k.Public = k.Public[:40] }), ours, fs.ErrInvalid},
		"public with more":       {edit(func(k *tpmKey) { k.Public = append(k.Public, 0) }), ours, fs.ErrInvalid},
		"private cut short":      {edit(func(k *tpmKey) { k.Private = k.Private[:40] }), ours, fs.ErrInvalid},
		"a point off the curve":  {edit(func(k *tpmKey) { k.Public[60] ^= 1 }), ours, fs.ErrInvalid},
		"a damaged private part": {edit(func(k *tpmKey) { k.Private[60] ^= 1 }), ours, tpm2.ErrOtherTPM},
	} {
		t.Run(name, func(t *testing.T) {
			keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{})
			_, err := keys.Import(t.Context(), keystore.Enrolment, test.file, test.template)
			if test.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, test.want)
			_, err = keys.Signer(t.Context(), keystore.Enrolment)
			require.ErrorIs(t, err, fs.ErrNotExist, "nothing was stored")
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

var loadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

func file(t *testing.T, k tpmKey) []byte {
	t.Helper()
	der, err := asn1.Marshal(k)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der})
}

// edited returns the file with a change.
func edited(t *testing.T, data []byte, change func(*tpmKey)) []byte {
	t.Helper()
	block, _ := pem.Decode(data)
	var k tpmKey
	_, err := asn1.Unmarshal(block.Bytes, &k)
	require.NoError(t, err)
	change(&k)
	return file(t, k)
}
