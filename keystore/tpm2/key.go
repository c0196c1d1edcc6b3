package tpm2

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"math/big"

	gotpm "github.com/google/go-tpm/tpm2"

	"github.com/quarklink-go/quarklink/store"
)

// key is a wrapped key: what its record says of it.
type key struct {
	template Template
	parent   []byte // the parent's Name
	public   []byte // TPMT_PUBLIC
	private  []byte // the contents of TPM2B_PRIVATE
	// endorsement is the Name of the TPM's endorsement key, which clearing the
	// TPM does not change; nil if it was not to be had.
	endorsement []byte
	handle      uint32  // persistent; 0: none
	replaces    *placed // what was persistent before, and is to be removed; nil: nothing
	hasAuth     bool

	// These follow from public.
	name []byte
	ecc  *ecdsa.PublicKey
	noDA bool // a wrong authorization value is not counted
}

// keyTemplate is what keys are made from (TPM 2.0 Part 2, section 8.3).
func keyTemplate() gotpm.TPMTPublic {
	return gotpm.TPMTPublic{
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
	}
}

// derivePublic fills in what follows from the public area, and refuses one that is
// no key for signing that stays in its TPM.
func (k *key) derivePublic() error {
	public, err := gotpm.Unmarshal[gotpm.TPMTPublic](k.public)
	if err != nil {
		return fmt.Errorf("the public area is cut short: %w", err)
	}
	if public.Type != gotpm.TPMAlgECC || public.NameAlg != gotpm.TPMAlgSHA256 {
		return errors.New("not an ECC key with a SHA-256 Name")
	}
	parms, err := public.Parameters.ECCDetail()
	if err != nil {
		return fmt.Errorf("no ECC parameters: %w", err)
	}
	if parms.CurveID != gotpm.TPMECCNistP256 {
		return fmt.Errorf("curve 0x%04x, need P-256", uint16(parms.CurveID))
	}
	if err := checkScheme(parms.Scheme); err != nil {
		return err
	}
	if err := checkAttributes(public.ObjectAttributes); err != nil {
		return err
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return fmt.Errorf("no public point: %w", err)
	}
	k.ecc = &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(point.X.Buffer), Y: new(big.Int).SetBytes(point.Y.Buffer)}
	if _, err := k.ecc.ECDH(); err != nil {
		return fmt.Errorf("the public point: %w", err)
	}
	name, err := gotpm.ObjectName(public)
	if err != nil {
		return err
	}
	if !bytes.Equal(gotpm.Marshal(public), k.public) {
		return errors.New("the public area has something behind it")
	}
	k.name, k.noDA = name.Buffer, public.ObjectAttributes.NoDA
	return nil
}

// checkScheme takes ECDSA with SHA-256, and a key that leaves the scheme to each
// signature, as openssl's provider makes them.
func checkScheme(s gotpm.TPMTECCScheme) error {
	if s.Scheme == gotpm.TPMAlgNull {
		return nil
	}
	if details, err := s.Details.ECDSA(); s.Scheme != gotpm.TPMAlgECDSA || err != nil || details.HashAlg != gotpm.TPMAlgSHA256 {
		return fmt.Errorf("signature scheme 0x%04x is not ECDSA with SHA-256", uint16(s.Scheme))
	}
	return nil
}

func checkAttributes(a gotpm.TPMAObject) error {
	switch {
	case !a.SignEncrypt:
		return errors.New("the key is not for signing")
	case a.Restricted:
		return errors.New("the key is restricted: it signs only what the TPM has digested")
	case !a.FixedTPM || !a.FixedParent:
		return errors.New("the key can leave its TPM: fixedTPM and fixedParent are not set")
	case !a.SensitiveDataOrigin:
		return errors.New("the key was not made in a TPM: sensitiveDataOrigin is not set")
	case !a.UserWithAuth:
		return errors.New("the key is used with a policy: userWithAuth is not set")
	}
	return nil
}

// create makes a key under the parent of new keys. It is not stored anywhere yet.
func (w *work) create(auth []byte) (*key, error) {
	k := &key{template: EmptyUnique, hasAuth: len(auth) > 0}
	err := w.try(func() error {
		p, err := w.loadParent(k.template)
		if err != nil {
			return err
		}
		session := gotpm.PasswordAuth(nil)
		if len(auth) > 0 || w.tpm.opts.Encrypt {
			session, err = w.session(p, nil, gotpm.AESEncryption(128, gotpm.EncryptInOut))
		}
		if err != nil {
			return err
		}
		var rsp *gotpm.CreateResponse
		h := gotpm.AuthHandle{Handle: p.handle, Name: gotpm.TPM2BName{Buffer: p.name}, Auth: session}
		err = w.command(h, func(h gotpm.AuthHandle) (err error) {
			rsp, err = gotpm.Create{
				ParentHandle: h,
				InSensitive:  gotpm.TPM2BSensitiveCreate{Sensitive: &gotpm.TPMSSensitiveCreate{UserAuth: gotpm.TPM2BAuth{Buffer: auth}}},
				InPublic:     gotpm.New2B(keyTemplate()),
			}.Execute(w)
			return err
		})
		w.flush(p.object)
		if answered(err, gotpm.TPMRCCurve) {
			return fmt.Errorf("%w: %w", ErrNoP256, err)
		}
		if err != nil {
			return fmt.Errorf("create the key: %w", err)
		}
		k.parent, k.public, k.private = p.name, rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := k.derivePublic(); err != nil {
		return nil, fmt.Errorf("the TPM created something else than was asked for: %w", err)
	}
	k.endorsement, err = w.endorsementName()
	return k, err
}

// endorsementName returns the Name of the endorsement key on P-256, nil if the TPM
// has none or the hierarchy is closed.
func (w *work) endorsementName() ([]byte, error) {
	var name []byte
	err := w.try(func() error {
		p, err := w.derive(gotpm.TPMRHEndorsement, gotpm.ECCEKTemplate, nil)
		if err == nil {
			name = p.name
			w.flush(p.object)
		}
		return err
	})
	if err != nil && answered(err) && !errors.Is(err, ErrOutOfSlots) {
		return nil, nil
	}
	return name, err
}

// loadKey loads a wrapped key and the parent that it was made under.
func (w *work) loadKey(k *key) (object, parent, error) {
	p, err := w.keyParent(k)
	if err != nil {
		return object{}, parent{}, err
	}
	o, err := w.loadUnder(p, k)
	if err == nil {
		return o, p, nil
	}
	if answered(err) && w.moved(p.object) {
		return object{}, parent{}, fmt.Errorf("load the key: %w: %w", errMoved, err)
	}
	if _, isFull := full(err); isFull || !answered(err) || forgotten(err) {
		return object{}, parent{}, fmt.Errorf("load the key: %w", err)
	}
	w.flush(p.object)
	return object{}, parent{}, w.tellBlobsApart(k, err)
}

// keyParent loads the parent that a key was made under.
func (w *work) keyParent(k *key) (parent, error) {
	p, err := w.loadParent(k.template)
	if err != nil {
		return parent{}, err
	}
	if !bytes.Equal(p.name, k.parent) {
		w.flush(p.object)
		return parent{}, w.tellParentsApart(k)
	}
	return p, nil
}

func (w *work) loadUnder(p parent, k *key) (object, error) {
	return w.load(k.name, func() (gotpm.TPMHandle, error) {
		rsp, err := gotpm.Load{
			ParentHandle: p.auth(),
			InPrivate:    gotpm.TPM2BPrivate{Buffer: k.private},
			InPublic:     gotpm.BytesAs2B[gotpm.TPMTPublic](k.public),
		}.Execute(w)
		if err != nil {
			return 0, err
		}
		return rsp.ObjectHandle, nil
	})
}

// tellParentsApart says why the parent that the key's template gives is not the one
// that the key was made under.
func (w *work) tellParentsApart(k *key) error {
	for t := range templates {
		if Template(t) == k.template {
			continue
		}
		p, err := w.loadParent(Template(t))
		if err != nil {
			return err
		}
		w.flush(p.object)
		if bytes.Equal(p.name, k.parent) {
			return fmt.Errorf("%w: it was made under %v, and its record says %v", ErrTemplate, Template(t), k.template)
		}
	}
	now, err := w.endorsementName()
	switch {
	case err != nil:
		return err
	case now == nil || k.endorsement == nil:
		return fmt.Errorf("the TPM was cleared or replaced, and it cannot be told which, for its endorsement key is not to be had: %w; %w", ErrCleared, ErrOtherTPM)
	case bytes.Equal(now, k.endorsement):
		return ErrCleared
	}
	return ErrOtherTPM
}

// tellBlobsApart says why a key does not load under the parent that its record names.
func (w *work) tellBlobsApart(k *key, refusal error) error {
	t, found, err := w.findTemplate(k)
	switch {
	case err != nil:
		return err
	case found:
		return fmt.Errorf("%w: it was made under %v, and its record says %v", ErrTemplate, t, k.template)
	}
	return fmt.Errorf("%w: the TPM does not load the wrapped key, though its parent is the right one: %w", store.ErrDamaged, refusal)
}

// findTemplate looks for another template than the key's under which it loads.
func (w *work) findTemplate(k *key) (Template, bool, error) {
	for t := range templates {
		if Template(t) == k.template {
			continue
		}
		p, err := w.loadParent(Template(t))
		if err != nil {
			return 0, false, err
		}
		o, err := w.loadUnder(p, k)
		w.flush(p.object)
		if err == nil {
			w.flush(o)
			return Template(t), true, nil
		}
		if _, isFull := full(err); isFull || !answered(err) || forgotten(err) {
			return 0, false, err
		}
	}
	return 0, false, nil
}

// useKey runs one command on the key: f gets what authorizes it.
func (w *work) useKey(k *key, secret authFunc, f func(gotpm.AuthHandle) error) error {
	auth, err := w.keyAuth(k, secret)
	if err != nil {
		return err
	}
	err = w.try(func() error {
		if k.handle != 0 {
			if err, gone := w.usePersistent(k, auth, f); !gone {
				return err
			}
		}
		o, p, err := w.loadKey(k)
		if err != nil {
			return err
		}
		session, err := w.authorize(p, auth)
		w.flush(p.object)
		if err != nil {
			return err
		}
		defer w.flush(o)
		err = w.command(gotpm.AuthHandle{Handle: o.handle, Name: gotpm.TPM2BName{Buffer: o.name}, Auth: session}, f)
		if err != nil && w.moved(o) {
			err = fmt.Errorf("%w: %w", errMoved, err)
		}
		return err
	})
	if answered(err, gotpm.TPMRCBadAuth, gotpm.TPMRCAuthFail) && !errors.Is(err, ErrAuth) {
		return fmt.Errorf("%w: KeyOptions.KeyAuth gives another than the key was made with: %w", ErrAuth, err)
	}
	return err
}

// usePersistent runs one command on a key at its handle. gone says that there is
// nothing at the handle: somebody has removed it, or the TPM was cleared.
func (w *work) usePersistent(k *key, auth []byte, f func(gotpm.AuthHandle) error) (err error, gone bool) {
	session := gotpm.PasswordAuth(nil)
	if len(auth) > 0 || w.tpm.opts.Encrypt {
		p, err := w.keyParent(k)
		if err != nil {
			return err, false
		}
		session, err = w.authorize(p, auth)
		w.flush(p.object)
		if err != nil {
			return err, false
		}
	}
	h := gotpm.AuthHandle{Handle: gotpm.TPMHandle(k.handle), Name: gotpm.TPM2BName{Buffer: k.name}, Auth: session}
	err = w.command(h, f)
	if err == nil || !answered(err) && !errors.Is(err, ErrWrongSignature) {
		return err, false
	}
	name, nameErr := w.nameOf(h.Handle)
	switch {
	case answered(nameErr, gotpm.TPMRCHandle):
		return nil, true
	case nameErr == nil && !bytes.Equal(name, k.name):
		return fmt.Errorf("%w: 0x%08x", ErrHandleUsed, k.handle), false
	}
	return err, false
}

// command runs f, whose session is flushed with that.
func (w *work) command(h gotpm.AuthHandle, f func(gotpm.AuthHandle) error) error {
	session := h.Auth.Handle()
	err := f(h)
	w.used(h.Auth, session)
	return err
}

// keyAuth asks for the key's authorization value, unless it is empty. For a key
// whose wrong values are counted it asks the TPM first whether it takes any.
func (w *work) keyAuth(k *key, secret authFunc) ([]byte, error) {
	if !k.hasAuth {
		return nil, nil
	}
	if secret == nil {
		return nil, fmt.Errorf("%w: the key has one, so KeyOptions.KeyAuth is required", ErrAuth)
	}
	if !k.noDA {
		const inLockout = 1 << 9 // TPMA_PERMANENT, TPM 2.0 Part 2, section 8.6
		permanent, err := w.property(gotpm.TPMPTPermanent)
		if err != nil {
			return nil, err
		}
		if permanent&inLockout != 0 {
			return nil, w.lockout(nil)
		}
	}
	auth, err := w.secret(secret)
	if err == nil && len(auth) == 0 {
		err = fmt.Errorf("%w: KeyOptions.KeyAuth returned none, and the key has one", ErrAuth)
	}
	return auth, err
}
