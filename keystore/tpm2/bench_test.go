//go:build linux

package tpm2_test

import (
	"crypto"
	"crypto/sha256"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/store"
)

// BenchmarkSign compares a signature with the same sequence written straight on
// go-tpm, on the same swtpm and in turn with it: CreatePrimary, Load, FlushContext,
// Sign, FlushContext. The ratio is to be at most 1.1.
func BenchmarkSign(b *testing.B) {
	s := start(b)
	tpm, err := tpm2.Open(b.Context(), tpm2.Options{Path: s.Direct()})
	require.NoError(b, err)
	b.Cleanup(func() { tpm.Close() })
	signer := generate(b, keyStore(b, tpm, new(store.Mem), tpm2.KeyOptions{}))
	by, err := linuxudstpm.Open(s.Direct())
	require.NoError(b, err)
	plain := newPlainKey(b, by)
	digest := sha256.Sum256([]byte("benchmark"))

	var ours, theirs time.Duration
	for b.Loop() {
		begin := time.Now()
		_, err := signer.Sign(nil, digest[:], crypto.SHA256)
		middle := time.Now()
		require.NoError(b, err)
		between := time.Now()
		plain.sign(b, digest[:])
		ours += middle.Sub(begin)
		theirs += time.Since(between)
	}
	b.ReportMetric(float64(ours)/float64(theirs), "ratio")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "µs/sign")
	b.ReportMetric(float64(theirs.Microseconds())/float64(b.N), "µs/plain")
	b.ReportMetric(0, "ns/op") // of both together, which says nothing
}

// plainKey is a wrapped key as somebody uses it who writes the sequence by hand.
type plainKey struct {
	tpm     transport.TPM
	public  gotpm.TPM2BPublic
	private gotpm.TPM2BPrivate
}

func newPlainKey(b *testing.B, tpm transport.TPM) *plainKey {
	b.Helper()
	k := &plainKey{tpm: tpm}
	parent := k.parent(b)
	rsp, err := gotpm.Create{
		ParentHandle: gotpm.NamedHandle{Handle: parent.ObjectHandle, Name: parent.Name},
		InPublic: gotpm.New2B(gotpm.TPMTPublic{
			Type:    gotpm.TPMAlgECC,
			NameAlg: gotpm.TPMAlgSHA256,
			ObjectAttributes: gotpm.TPMAObject{
				FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
			},
			Parameters: gotpm.NewTPMUPublicParms(gotpm.TPMAlgECC, &gotpm.TPMSECCParms{
				Scheme: gotpm.TPMTECCScheme{
					Scheme:  gotpm.TPMAlgECDSA,
					Details: gotpm.NewTPMUAsymScheme(gotpm.TPMAlgECDSA, &gotpm.TPMSSigSchemeECDSA{HashAlg: gotpm.TPMAlgSHA256}),
				},
				CurveID: gotpm.TPMECCNistP256,
			}),
		}),
	}.Execute(tpm)
	require.NoError(b, err)
	k.public, k.private = rsp.OutPublic, rsp.OutPrivate
	k.flush(b, parent.ObjectHandle)
	return k
}

func (k *plainKey) parent(b *testing.B) *gotpm.CreatePrimaryResponse {
	rsp, err := gotpm.CreatePrimary{
		PrimaryHandle: gotpm.TPMRHOwner, InPublic: gotpm.New2B(gotpm.ECCSRKTemplate),
	}.Execute(k.tpm)
	require.NoError(b, err)
	return rsp
}

func (k *plainKey) flush(b *testing.B, h gotpm.TPMHandle) {
	_, err := gotpm.FlushContext{FlushHandle: h}.Execute(k.tpm)
	require.NoError(b, err)
}

func (k *plainKey) sign(b *testing.B, digest []byte) {
	parent := k.parent(b)
	key, err := gotpm.Load{
		ParentHandle: gotpm.NamedHandle{Handle: parent.ObjectHandle, Name: parent.Name},
		InPrivate:    k.private, InPublic: k.public,
	}.Execute(k.tpm)
	require.NoError(b, err)
	k.flush(b, parent.ObjectHandle)
	_, err = gotpm.Sign{
		KeyHandle: gotpm.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
		Digest:    gotpm.TPM2BDigest{Buffer: digest},
		InScheme: gotpm.TPMTSigScheme{
			Scheme:  gotpm.TPMAlgECDSA,
			Details: gotpm.NewTPMUSigScheme(gotpm.TPMAlgECDSA, &gotpm.TPMSSchemeHash{HashAlg: gotpm.TPMAlgSHA256}),
		},
		Validation: gotpm.TPMTTKHashCheck{Tag: gotpm.TPMSTHashCheck},
	}.Execute(k.tpm)
	require.NoError(b, err)
	k.flush(b, key.ObjectHandle)
}
