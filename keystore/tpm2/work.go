package tpm2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
)

// work is one turn with the TPM. It is go-tpm's transport, and knows what it has
// loaded. When the context has ended it sends nothing any more but what flushes.
type work struct {
	tpm    *TPM
	ctx    context.Context
	loaded []object
	broken bool // the connection broke or the TPM was reset: handles may have changed hands
}

// object is something loaded that has to be flushed.
type object struct {
	handle gotpm.TPMHandle
	name   []byte // nil for a session
}

// Send implements go-tpm's transport.TPM.
func (w *work) Send(command []byte) ([]byte, error) {
	ctx := w.ctx
	if gotpm.TPMCC(binary.BigEndian.Uint32(command[6:])) == gotpm.TPMCCFlushContext {
		ctx = context.WithoutCancel(ctx)
	} else if err := ctx.Err(); err != nil {
		return nil, err
	}
	answer, err := w.tpm.link.sendUntilTaken(ctx, command)
	if err != nil {
		w.broken = w.broken || !answered(err)
		return nil, err
	}
	w.broken = w.broken || forgotten(answerCode(answer))
	return answer, nil
}

// begin looks at what others have loaded, and flushes what an earlier turn had to
// leave behind. With a resource manager there is neither.
func (w *work) begin() error {
	if w.tpm.link.managed {
		return nil
	}
	handles, err := w.handles(gotpm.TPMHTTransient)
	if answered(err, gotpm.TPMRCInitialize) {
		if err = w.startup(); err == nil {
			handles, err = w.handles(gotpm.TPMHTTransient)
		}
	}
	if err != nil {
		return fmt.Errorf("list what is loaded: %w", err)
	}
	handles = w.flushLost(handles)
	if len(w.tpm.lostTemplates) > 0 {
		return nil // what was there before the connection broke still counts
	}
	w.tpm.before = make(map[gotpm.TPMHandle]bool, len(handles))
	for _, h := range handles {
		w.tpm.before[h] = true
	}
	return nil
}

// startup is what firmware or the kernel does for a TPM on a device.
func (w *work) startup() error {
	_, err := gotpm.Startup{StartupType: gotpm.TPMSUClear}.Execute(w)
	if answered(err, gotpm.TPMRCInitialize) {
		return nil // it has been started up already
	}
	return err
}

// flushLost flushes those objects among the handles that were loaded by commands
// whose answers were lost: that were not there before, and are named as what was
// loaded. It returns the others.
func (w *work) flushLost(handles []gotpm.TPMHandle) []gotpm.TPMHandle {
	if len(w.tpm.lost) == 0 {
		return handles
	}
	lost := func(h gotpm.TPMHandle) bool {
		if w.tpm.before[h] || slices.ContainsFunc(w.loaded, func(o object) bool { return o.handle == h }) {
			return false
		}
		name, err := w.nameOf(h)
		return err == nil && slices.ContainsFunc(w.tpm.lost, func(lost []byte) bool { return bytes.Equal(lost, name) })
	}
	others := slices.DeleteFunc(handles, func(h gotpm.TPMHandle) bool {
		if !lost(h) {
			return false
		}
		gotpm.FlushContext{FlushHandle: h}.Execute(w) // should it fail the object is gone, or the connection is
		return true
	})
	w.tpm.lost = nil
	return others
}

// end flushes all that is still loaded.
func (w *work) end() {
	for _, o := range slices.Backward(slices.Clone(w.loaded)) {
		w.flush(o)
	}
}

// hold notes what has been loaded.
func (w *work) hold(handle gotpm.TPMHandle, name []byte) object {
	o := object{handle, name}
	w.loaded = append(w.loaded, o)
	return o
}

// drop forgets what the TPM has flushed by itself.
func (w *work) drop(handle gotpm.TPMHandle) {
	w.loaded = slices.DeleteFunc(w.loaded, func(o object) bool { return o.handle == handle })
}

// flush flushes what was loaded, unless it is flushed already. It has no error: an
// object that the TPM does not have is flushed, and one that cannot be reached, or
// whose handle may be another's by now, is left to the next turn.
func (w *work) flush(o object) {
	i := slices.IndexFunc(w.loaded, func(held object) bool { return held.handle == o.handle })
	if i < 0 {
		return
	}
	o = w.loaded[i]
	w.loaded = slices.Delete(w.loaded, i, i+1)
	if w.broken && !w.tpm.link.managed {
		if o.name != nil {
			w.tpm.lost = append(w.tpm.lost, o.name)
		}
		return
	}
	_, err := gotpm.FlushContext{FlushHandle: o.handle}.Execute(w)
	if err != nil && !answered(err) && o.name != nil {
		w.tpm.lost = append(w.tpm.lost, o.name)
	}
}

// load runs a command that loads an object of that name, and notes the object.
func (w *work) load(name []byte, command func() (gotpm.TPMHandle, error)) (object, error) {
	handle, err := command()
	if err != nil {
		if !answered(err) {
			w.tpm.lost = append(w.tpm.lost, name)
		}
		return object{}, err
	}
	return w.hold(handle, name), nil
}

// moved reports whether the object is at its handle no more, because the TPM was
// reset and perhaps somebody else's has got it. A command on it that was refused is
// not the key's fault then. With a resource manager handles are one's own.
func (w *work) moved(o object) bool {
	if w.tpm.link.managed || w.broken || o.name == nil {
		return false // known already, or it cannot be
	}
	name, err := w.nameOf(o.handle)
	w.broken = w.broken || err == nil && !bytes.Equal(name, o.name)
	return w.broken
}

// try runs f, which loads what it needs, again once if the TPM has lost what was
// loaded, and again for a while if the TPM is full.
func (w *work) try(f func() error) error {
	giveUp := time.Now().Add(w.tpm.opts.SlotWait)
	reloaded := false
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := f()
		what, isFull := full(err)
		switch {
		case (forgotten(err) || errors.Is(err, errMoved) || errors.Is(err, ErrWrongSignature)) && !reloaded:
			reloaded = true
			if err := w.reload(); err != nil {
				return err
			}
		case isFull && what != "persistent memory" && time.Now().Add(pause).Before(giveUp):
			w.end()
			// Programs that compete for slots must not keep step.
			if sleep(w.ctx, pause/2+rand.N(pause)) != nil {
				return w.explain(err)
			}
		default:
			return w.explain(err)
		}
	}
}

// reload prepares for loading everything anew after the TPM has lost its memory.
func (w *work) reload() error {
	w.end()
	w.broken = false
	return w.begin()
}

// explain makes an error of the TPM one that tells what to do, if there is one.
func (w *work) explain(err error) error {
	if err == nil {
		return nil
	}
	if answered(err, gotpm.TPMRCLockout) {
		return w.lockout(err)
	}
	if what, is := full(err); is {
		kind := map[string]gotpm.TPMHT{"slots for objects": gotpm.TPMHTTransient, "slots for sessions": gotpm.TPMHTHMACSession,
			"persistent memory": gotpm.TPMHTPersistent}[what]
		w.end() // one's own are not to be blamed
		return &SlotsError{What: what, Holders: w.holders(kind), Err: err}
	}
	return err
}

// lockout returns how long the lockout lasts.
func (w *work) lockout(err error) error {
	failures, err1 := w.property(gotpm.TPMPTLockoutCounter)
	interval, err2 := w.property(gotpm.TPMPTLockoutInterval)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%w: %w", ErrLockout, err)
	}
	return &LockoutError{Wait: time.Duration(interval) * time.Second, Failures: failures}
}

func (w *work) holders(kind gotpm.TPMHT) []Holder {
	handles, err := w.handles(kind)
	if err != nil {
		return nil
	}
	all := make([]Holder, len(handles))
	for i, h := range handles {
		all[i].Handle = uint32(h)
		if kind != gotpm.TPMHTHMACSession {
			all[i].Description = w.describe(h)
		}
	}
	return all
}

// describe says what an object is.
func (w *work) describe(h gotpm.TPMHandle) string {
	rsp, err := gotpm.ReadPublic{ObjectHandle: h}.Execute(w)
	if err != nil {
		return ""
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return ""
	}
	family := map[gotpm.TPMAlgID]string{gotpm.TPMAlgECC: "ECC", gotpm.TPMAlgRSA: "RSA",
		gotpm.TPMAlgKeyedHash: "keyed hash", gotpm.TPMAlgSymCipher: "symmetric"}[public.Type]
	use := "key"
	switch a := public.ObjectAttributes; {
	case a.Restricted && a.Decrypt:
		use = "storage key"
	case a.Restricted && a.SignEncrypt:
		use = "attestation key"
	case public.Type == gotpm.TPMAlgKeyedHash && !a.SignEncrypt && !a.Decrypt:
		use = "sealed data"
	case a.SignEncrypt && !a.Decrypt:
		use = "signing key"
	}
	return fmt.Sprintf("%s %s, name %.8x…", family, use, rsp.Name.Buffer[min(2, len(rsp.Name.Buffer)):])
}
