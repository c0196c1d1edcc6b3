package tpm2

import (
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

const recordVersion = 1

// record is the payload of a key's record, in JSON. Members that are not known here
// are left to newer releases.
type record struct {
	Template    string `json:"template"`
	Parent      []byte `json:"parent"`                // Name (TPM 2.0 Part 1, section 16)
	Public      []byte `json:"public"`                // TPMT_PUBLIC
	Private     []byte `json:"private"`               // the contents of TPM2B_PRIVATE
	Endorsement []byte `json:"endorsement,omitempty"` // Name
	Handle      uint32 `json:"handle,omitempty"`
	Auth        bool   `json:"auth,omitempty"` // the key has an authorization value
	// What was persistent before this key and is to be removed.
	OldHandle uint32 `json:"old-handle,omitempty"`
	OldName   []byte `json:"old-name,omitempty"`
}

// RecordName returns the name of the record that holds a role's key: tpm-esk or
// tpm-dsk. An unknown role is fs.ErrInvalid.
func RecordName(role keystore.Role) (string, error) {
	switch role {
	case keystore.Enrolment, keystore.Device:
		return "tpm-" + string(role), nil
	}
	return "", fmt.Errorf("unknown role %q: %w", role, fs.ErrInvalid)
}

// maxPrivate is far more than any TPM wraps a P-256 key into.
const maxPrivate = 1024

func (k *key) encode(name string) ([]byte, error) {
	r := record{
		Template: templates[k.template].id, Parent: k.parent, Public: k.public, Private: k.private,
		Endorsement: k.endorsement, Handle: k.handle, Auth: k.hasAuth,
	}
	if k.replaces != nil {
		r.OldHandle, r.OldName = k.replaces.handle, k.replaces.name
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return store.EncodeRecord(name, recordVersion, payload), nil
}

// decodeKey takes apart what encode made.
func decodeKey(name string, data []byte) (*key, error) {
	version, payload, err := store.DecodeRecord(name, data)
	if err != nil {
		return nil, err
	}
	if version != recordVersion {
		return nil, fmt.Errorf("record %q: version %d is not known here, need %d: it was written by a newer release", name, version, recordVersion)
	}
	var r record
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, fmt.Errorf("record %q: %w: %w", name, store.ErrDamaged, err)
	}
	t, known := parseTemplate(r.Template)
	if !known {
		return nil, fmt.Errorf("record %q: %w: the template %q is not known here", name, ErrTemplate, r.Template)
	}
	const nameSize = 2 + 32 // algorithm, SHA-256
	isName := func(name []byte) bool { return len(name) == nameSize }
	isHandle := func(h uint32) bool { return checkHandle(h) == nil }
	if !isName(r.Parent) || len(r.Private) == 0 || len(r.Private) > maxPrivate || r.Endorsement != nil && !isName(r.Endorsement) ||
		r.Handle != 0 && !isHandle(r.Handle) || r.OldHandle != 0 && (!isHandle(r.OldHandle) || !isName(r.OldName)) {
		return nil, fmt.Errorf("record %q: %w: a member has a length or a value that cannot be", name, store.ErrDamaged)
	}
	k := &key{template: t, parent: r.Parent, public: r.Public, private: r.Private,
		endorsement: r.Endorsement, handle: r.Handle, hasAuth: r.Auth}
	if r.OldHandle != 0 {
		k.replaces = &placed{r.OldHandle, r.OldName}
	}
	if err := k.derivePublic(); err != nil {
		return nil, fmt.Errorf("record %q: %w: %w", name, store.ErrDamaged, err)
	}
	return k, nil
}
