// Package tpm2 keeps a device's keys in a TPM 2.0: the chip or firmware that most
// computers with embedded Linux have. A key is made in the TPM and never leaves it;
// what is stored is the key wrapped by the TPM, which no other TPM can open.
//
//	tpm, err := tpm2.Open(ctx, tpm2.Options{}) // /dev/tpmrm0
//	...
//	defer tpm.Close()
//	keys, err := tpm.KeyStore(store.Dir("/var/lib/agent"), tpm2.KeyOptions{})
//
// Keys are ECDSA keys on P-256 that sign digests of SHA-256. Each is a record,
// tpm-esk or tpm-dsk, of a [store.Creator]: the wrapped key, and what it takes to
// say why it does not open should that happen. [KeyOptions.Handles] makes a key
// persistent in the TPM as well. [Store.Export] and [Store.Import] exchange wrapped
// keys with openssl's tpm2 provider and others as TSS2 PRIVATE KEY files.
//
// Nothing here falls back on anything: not on keys in software, which would change
// the DeviceID, and not from /dev/tpmrm0 to /dev/tpm0, which only one program at a
// time can open.
//
// # How a signature is made
//
// The parent of every key is the storage root key on P-256 with an empty unique
// field and noDA, [EmptyUnique]. It is derived from the TPM's owner seed and used
// briefly, never made persistent. For each signature the parent is derived, or its
// saved context loaded; the key is loaded and the parent flushed; the key signs and
// is flushed. That takes two of the TPM's slots for objects, of which many TPMs have
// but three, and leaves nothing behind on any path. Every signature is verified
// before it is handed out. One lock for each opened TPM keeps its commands apart.
//
// If the TPM lost its memory meanwhile, as in a suspend, the key is loaded once more.
// If it does not answer, the call ends with its context or with [Options.Timeout],
// and later calls fail with [ErrUnanswered] until it does: two commands are never
// under way at once.
//
// # Limits
//
// After a connection broke in the middle of a command, what that command had loaded
// is found and flushed by the next call. /dev/tpmrm0 does that by itself. A session,
// which takes Options.Encrypt or an authorization value, cannot be found so on
// another connection, if the answer that was lost is the one that named it.
//
// Facts are from the TPM 2.0 Library Specification, revision 1.59, and the TCG TPM
// v2.0 Provisioning Guidance.
package tpm2
