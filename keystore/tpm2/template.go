package tpm2

import (
	"bytes"
	"fmt"

	gotpm "github.com/google/go-tpm/tpm2"
)

// Template says from which template the parent of a key is derived: a storage root
// key (SRK) on P-256. The whole template goes into the derivation, so that each
// gives another parent, and a key wrapped under one does not open under another.
type Template uint8

const (
	// EmptyUnique has an empty unique field and noDA. Keys are made under it;
	// openssl's tpm2 provider and the TSS2 PRIVATE KEY format mean it by parent
	// 0x40000001.
	EmptyUnique Template = iota
	// ZeroUnique has a unique field of two coordinates of 32 zero bytes, and
	// noDA: the TCG's Provisioning Guidance, and go-tpm's ECCSRKTemplate.
	ZeroUnique
	// WithoutNoDA has an empty unique field but not noDA: what tpm2_createprimary
	// -C o -G ecc makes if it is given no attributes.
	WithoutNoDA
)

var templates = []struct {
	id   string // in records
	text string
}{
	EmptyUnique: {"ecc-empty-unique", "EmptyUnique (parent 0x40000001 of TSS2 PRIVATE KEY)"},
	ZeroUnique:  {"ecc-zero-unique", "ZeroUnique (TCG Provisioning Guidance)"},
	WithoutNoDA: {"ecc-without-noda", "WithoutNoDA (tpm2_createprimary -G ecc)"},
}

// String returns the template's name and where it comes from.
func (t Template) String() string {
	if int(t) < len(templates) {
		return templates[t].text
	}
	return fmt.Sprintf("Template(%d)", uint8(t))
}

func parseTemplate(id string) (Template, bool) {
	for t, known := range templates {
		if known.id == id {
			return Template(t), true
		}
	}
	return 0, false
}

func (t Template) public() gotpm.TPMTPublic {
	public := gotpm.ECCSRKTemplate
	if t != ZeroUnique {
		public.Unique = gotpm.NewTPMUPublicID(gotpm.TPMAlgECC, &gotpm.TPMSECCPoint{})
	}
	public.ObjectAttributes.NoDA = t != WithoutNoDA
	return public
}

// parent is a storage root key that is loaded.
type parent struct {
	object
	public gotpm.TPMTPublic
}

func (p parent) auth() gotpm.AuthHandle {
	return gotpm.AuthHandle{Handle: p.handle, Name: gotpm.TPM2BName{Buffer: p.name}, Auth: gotpm.PasswordAuth(nil)}
}

// savedParent is a storage root key as the TPM has saved it: encrypted, and good
// until the TPM is reset or cleared. Loading it is quicker than deriving the key.
type savedParent struct {
	context gotpm.TPMSContext
	public  gotpm.TPMTPublic
	name    []byte
}

// loadParent loads the parent of that template.
func (w *work) loadParent(t Template) (parent, error) {
	if saved := w.tpm.saved[t]; saved != nil {
		o, err := w.load(saved.name, func() (gotpm.TPMHandle, error) {
			rsp, err := gotpm.ContextLoad{Context: saved.context}.Execute(w)
			if err != nil {
				return 0, err
			}
			return rsp.LoadedHandle, nil
		})
		if err == nil {
			return parent{o, saved.public}, nil
		}
		if _, isFull := full(err); isFull || !answered(err) {
			return parent{}, fmt.Errorf("load the parent key: %w", err)
		}
		delete(w.tpm.saved, t)
	}
	p, err := w.derive(gotpm.TPMRHOwner, t.public(), w.tpm.opts.OwnerAuth)
	if err != nil {
		return parent{}, fmt.Errorf("derive the parent key: %w", err)
	}
	rsp, err := gotpm.ContextSave{SaveHandle: p.handle}.Execute(w)
	if err != nil && !answered(err) {
		return parent{}, fmt.Errorf("save the parent key: %w", err)
	}
	if err == nil { // a TPM that cannot save it derives it each time
		w.tpm.saved[t] = &savedParent{rsp.Context, p.public, p.name}
	}
	return p, nil
}

// derive makes a primary key, which is the same each time.
func (w *work) derive(hierarchy gotpm.TPMHandle, template gotpm.TPMTPublic, secret authFunc) (parent, error) {
	auth, err := w.secret(secret)
	if err != nil {
		return parent{}, err
	}
	key := string(gotpm.Marshal(template))
	rsp, err := gotpm.CreatePrimary{
		PrimaryHandle: gotpm.AuthHandle{Handle: hierarchy, Auth: unsalted(auth)},
		InPublic:      gotpm.New2B(template),
	}.Execute(w)
	if err != nil && !answered(err) {
		w.tpm.lostTemplates[key] = true
	}
	if answered(err, gotpm.TPMRCBadAuth, gotpm.TPMRCAuthFail) {
		return parent{}, fmt.Errorf("%w: that of the hierarchy 0x%08x: %w", ErrAuth, uint32(hierarchy), err)
	}
	if err != nil {
		return parent{}, err
	}
	public, name, err := contents(rsp.OutPublic)
	p := parent{w.hold(rsp.ObjectHandle, name), public}
	if err != nil {
		return parent{}, err
	}
	if w.tpm.lostTemplates[key] {
		delete(w.tpm.lostTemplates, key)
		w.tpm.lost = append(w.tpm.lost, name)
		if handles, err := w.handles(gotpm.TPMHTTransient); err == nil {
			w.flushLost(handles)
		}
	}
	return p, nil
}

// contents takes apart what a TPM says is an object's public area, and computes the
// object's Name from it.
func contents(sized gotpm.TPM2BPublic) (gotpm.TPMTPublic, []byte, error) {
	public, err := sized.Contents()
	if err != nil {
		return gotpm.TPMTPublic{}, nil, err
	}
	name, err := gotpm.ObjectName(public)
	if err != nil {
		return gotpm.TPMTPublic{}, nil, err
	}
	return *public, name.Buffer, nil
}

// secret asks the caller for an authorization value.
func (w *work) secret(ask authFunc) ([]byte, error) {
	if ask == nil {
		return nil, nil
	}
	auth, err := ask(w.ctx)
	if err != nil {
		return nil, fmt.Errorf("get the authorization value: %w", err)
	}
	return auth, checkAuth(auth)
}

const maxAuth = 32 // the length of the Name algorithm's digest, SHA-256

// checkAuth refuses a value on which go-tpm and a TPM may disagree: a TPM cuts
// trailing zeros off, go-tpm cuts at the first zero.
func checkAuth(auth []byte) error {
	if len(auth) > maxAuth {
		return fmt.Errorf("%w: it has %d bytes, at most %d are possible", ErrAuth, len(auth), maxAuth)
	}
	if bytes.IndexByte(auth, 0) >= 0 {
		return fmt.Errorf("%w: it contains a zero byte; put a random one in hex", ErrAuth)
	}
	return nil
}

// unsalted is the authorization before any key is loaded that could protect it: an
// HMAC, so that the value itself is never sent.
func unsalted(auth []byte) gotpm.Session {
	if len(auth) == 0 {
		return gotpm.PasswordAuth(nil)
	}
	return gotpm.HMAC(gotpm.TPMAlgSHA256, nonceSize, gotpm.Auth(auth))
}

const nonceSize = 16

// authorize is the authorization for one command on a key with that value. Unless
// there is something to protect it costs nothing; else it is a session.
func (w *work) authorize(p parent, auth []byte) (gotpm.Session, error) {
	if len(auth) == 0 && !w.tpm.opts.Encrypt {
		return gotpm.PasswordAuth(nil), nil
	}
	return w.session(p, auth, gotpm.AESEncryption(128, gotpm.EncryptIn))
}

// session starts a session for one command. Only who holds the parent key can
// compute its secrets, so that nobody on the bus can read what it encrypts or alter
// what it authenticates. That is so because the parent's Name was compared with the
// one in the key's record: an impostor on the bus has another parent.
func (w *work) session(p parent, auth []byte, encryption gotpm.AuthOption) (gotpm.Session, error) {
	s := gotpm.HMAC(gotpm.TPMAlgSHA256, nonceSize, gotpm.Auth(auth), gotpm.Salted(p.handle, p.public), encryption)
	if err := s.Init(w); err != nil {
		return nil, fmt.Errorf("start a session: %w", err)
	}
	w.hold(s.Handle(), nil)
	return s, nil
}

// used notes that a session has served: the TPM or go-tpm has flushed it, unless the
// connection broke.
func (w *work) used(s gotpm.Session, handle gotpm.TPMHandle) {
	if s.Handle() != handle {
		w.drop(handle)
	}
}
