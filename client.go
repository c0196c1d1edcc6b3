package quarklink

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

// Config says what a Client works with.
type Config struct {
	// KeyStore holds the device's keys. Required. A keystore.Generator makes
	// them when they are absent, unless RequireIdentity forbids it.
	KeyStore keystore.KeyStore
	// RequireIdentity says that the device has its enrolment key already, so New
	// never makes one: an absent key is fs.ErrNotExist. Without it a volume that
	// is not mounted, or a wrong path, looks like a blank device, and New would
	// give it a new identity. Set it wherever devices run that have been
	// initialised, in the build or the unit file, never from what the store
	// says. A device key is still made when it is missing.
	RequireIdentity bool
	// Instance overrides the one in Store and is not stored. Nil: the stored
	// one, which Provision or SetInstance puts there.
	Instance *Instance
	// Store keeps the client's records. Nil: memory only.
	//
	// Processes may share one, such as an agent that enrols and an application
	// that talks to the hub: what one enrols or forgets the others see at their
	// next call, and at the next handshake with the hub. The instance and the
	// network are read by New alone. Let one process enrol: of two at the same
	// time each may be issued a certificate, and the last to be stored counts.
	Store store.Store
	// Transport carries the stream to the instance. Nil: TCP. Over a plain
	// Transport the client runs TLS, pinned to the instance's roots; a
	// transport.Authenticator brings its own trust, and then SetInstance and
	// provisioning an instance fail.
	Transport transport.Transport
	// Firmware is what runs now.
	Firmware FirmwareInfo
	// MinTLS is the lowest TLS version for the instance. 0: TLS 1.3.
	MinTLS uint16
	// Logger gets one record for each step. Nil: silent.
	Logger *slog.Logger
	// Now tells the time, against which certificates are checked. Nil: time.Now.
	Now func() time.Time
	// ClockFloor is a time before which the device's clock cannot be right, such
	// as the day on which its firmware was built. A clock below it that finds a
	// certificate of the instance not valid is ErrClock, even if the certificate
	// looks expired. Zero: none.
	ClockFloor time.Time
	// RenewShare is the share of a certificate's lifetime after which it is due
	// to be renewed, above 0 and below 1. 0: two thirds. Devices spread by a
	// sixth of the lifetime to either side.
	RenewShare float64
}

// check refuses what could only fail later, before a key is made for it.
func (cfg Config) check() error {
	if cfg.KeyStore == nil {
		return errors.New("Config.KeyStore is nil")
	}
	if cfg.MinTLS != 0 && cfg.MinTLS != tls.VersionTLS12 && cfg.MinTLS != tls.VersionTLS13 {
		return fmt.Errorf("Config.MinTLS is %#04x: need TLS 1.2 (0x0303) or TLS 1.3 (0x0304)", cfg.MinTLS)
	}
	if cfg.Instance != nil {
		_, bringsTrust := cfg.Transport.(transport.Authenticator)
		if err := cfg.Instance.check(!bringsTrust); err != nil {
			return err
		}
	}
	if s := cfg.RenewShare; !(s >= 0 && s < 1) {
		return fmt.Errorf("Config.RenewShare is %v: need a share between 0 and 1", s)
	}
	return cfg.Firmware.check()
}

// Client is one device's link to its instance.
//
// It is safe for concurrent use. Calls that use the network or change state
// take turns, in no particular order; a call that waits for its turn obeys its
// context. What a call is given to call back (Progress, a Slot, a Verifier, a
// Logger, a signer) must not make such a call itself; it may call Close and what
// needs no turn: DeviceID, Instance, Network, NeedsProvisioning, Enrolment,
// HubTLSConfig, DialHub.
//
// A call ends when its context ends, and so does its connection. A call without a
// deadline ends too: an instance that stays silent for two minutes in the middle
// of an exchange, or has not answered within five minutes however steadily the
// answer drips in, counts as lost. (A download has limits of its own: see
// FirmwareUpdate.) Waits that the instance asks for by Retry-After, up to ten
// minutes each, come on top, and a lost exchange is repeated four times.
type Client struct {
	keys      keystore.KeyStore
	mustExist bool // the enrolment key
	store     store.Store
	transport transport.Transport
	firmware  FirmwareInfo
	minTLS    uint16
	log       *slog.Logger
	now       func() time.Time
	// A time before which now cannot be right.
	clockFloor time.Time
	renewShare float64

	id   DeviceID
	esk  crypto.Signer
	life context.Context // ends with Close
	end  context.CancelFunc
	turn chan struct{} // holds one token while a call runs
	line chan struct{} // holds one token while a connection is being opened

	signing atomic.Pointer[error] // how the last signature in a handshake failed; nil if none did

	// What the running call alone uses.
	identity *tls.Certificate // self-signed, made at first use
	session  *session         // the one open connection, if any
	kept     keptStream       // the identity's
	// The CSR for a temporary certificate, until the instance has answered it.
	temporaryCSR []byte
	doubtful     map[string]bool // records whose last write failed

	running atomic.Bool // Run

	mu    sync.Mutex // guards what follows
	state state
}

// state is what the records say; an error stands for a damaged one.
type state struct {
	instance     *Instance
	instanceErr  error
	network      *Network
	networkErr   error
	enrolment    *enrolled // as last read or written here, possibly incomplete
	enrolmentErr error

	hint, storedHint time.Time // see TimeHint
}

// New loads the stored state and opens the enrolment key. It makes that key if
// it is absent, the KeyStore is a keystore.Generator and Config.RequireIdentity
// is not set; if it is absent otherwise, New fails with fs.ErrNotExist. A key
// that is there but damaged, or whose store does not answer, fails New: a new
// key would be a new identity.
//
// New uses no network and works without an Instance; the calls that need one
// then return ErrNotInitialised. A damaged instance or enrolment record does
// not fail New but the calls that need it, with ErrStorage, until it is
// replaced; a damaged network is asked for anew. ctx bounds New alone, not the
// Client's life.
func New(ctx context.Context, cfg Config) (*Client, error) {
	const op = "new client"
	c := &Client{
		keys: cfg.KeyStore, mustExist: cfg.RequireIdentity, store: cfg.Store, transport: cfg.Transport,
		firmware: cfg.Firmware, minTLS: cfg.MinTLS, log: cfg.Logger,
		turn: make(chan struct{}, 1), line: make(chan struct{}, 1),
		doubtful: make(map[string]bool),
	}
	if err := cfg.check(); err != nil {
		return nil, fail(ctx, op, CodeInvalidParameter, err)
	}
	if c.store == nil {
		c.store = new(store.Mem)
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.now = clock(cfg.Now)
	c.clockFloor = cfg.ClockFloor
	c.renewShare = cmp.Or(cfg.RenewShare, defaultRenewal)
	esk, err := c.key(ctx, keystore.Enrolment)
	if err != nil {
		return nil, fail(ctx, op, CodeGeneral, err)
	}
	c.esk = esk
	if c.id, err = DeviceIDOf(esk.Public()); err != nil {
		return nil, err
	}
	if err := usableInTLS(esk.Public()); err != nil {
		return nil, fail(ctx, op, CodeInvalidParameter, err)
	}
	if err := c.load(ctx); err != nil {
		return nil, fail(ctx, op, CodeStorage, err)
	}
	if cfg.Instance != nil {
		i := cfg.Instance.normal()
		c.state.instance, c.state.instanceErr = &i, nil
	}
	c.life, c.end = context.WithCancel(context.WithoutCancel(ctx))
	c.log.LogAttrs(ctx, slog.LevelInfo, "device identity", slog.String("deviceID", string(c.id)))
	return c, nil
}

// clock returns a clock that is never the zero time, for which crypto/x509 takes
// the system's instead.
func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return func() time.Time {
		t := now()
		if t.IsZero() {
			t = t.Add(1)
		}
		return t
	}
}

// key opens the key of that role, or makes it if it is absent and the store is
// able to.
func (c *Client) key(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	signer, err := c.keys.Signer(ctx, role)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return checkKey("open key", role, signer, err)
	}
	if role == keystore.Enrolment && c.mustExist {
		return nil, fmt.Errorf("key %s is absent, and Config.RequireIdentity says that this device has one, "+
			"so none was made: check that the volume with the keys is mounted and the path is right; "+
			"to initialise a blank device, clear RequireIdentity: %w", role, err)
	}
	generator, ok := c.keys.(keystore.Generator)
	if !ok {
		return nil, fmt.Errorf("key %s is absent and the key store cannot make it: %w", role, err)
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "make key", slog.String("role", string(role)))
	signer, err = generator.Generate(ctx, role)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		signer, err = c.keys.Signer(ctx, role)
	}
	return checkKey("make key", role, signer, err)
}

func checkKey(step string, role keystore.Role, signer crypto.Signer, err error) (crypto.Signer, error) {
	if err == nil && signer == nil {
		err = errors.New("the key store returned neither a key nor an error")
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", step, role, err)
	}
	return signer, nil
}

// DeviceID returns the device's identity.
func (c *Client) DeviceID() DeviceID { return c.id }

// ForgetEnrolment deletes what Enrol stored: the device certificate, what came
// with it, the CSR, and what a renewal has begun. It keeps both keys, the
// instance and the network.
func (c *Client) ForgetEnrolment(ctx context.Context) error {
	return c.run(ctx, "forget enrolment", func(ctx context.Context) error {
		if err := c.delete(ctx, recordEnrolment); err != nil {
			return err
		}
		c.setEnrolment(nil)
		c.temporaryCSR = nil
		if err := c.delete(ctx, recordCSR); err != nil {
			return err
		}
		return c.discardStaged(ctx)
	})
}

// Close ends the call that is running, if any, without waiting for it, and
// closes the connection. Later calls that need the network or change state
// return an error that is net.ErrClosed. It does not close the KeyStore, the
// Store or the Transport. Closing again does nothing.
func (c *Client) Close() error {
	c.end()
	c.closeAfterEnd()
	return nil
}

// closeAfterEnd closes the connection unless a call is running, which does that
// itself when it has ended.
func (c *Client) closeAfterEnd() {
	select {
	case c.turn <- struct{}{}:
		c.closeSession()
		<-c.turn
	default:
	}
}

// run runs one call at a time, ends it with ctx or Close, and makes its error
// an *Error.
func (c *Client) run(ctx context.Context, op string, call func(context.Context) error) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return fail(ctx, op, CodeGeneral, ctx.Err())
	case <-c.life.Done():
		return fail(ctx, op, CodeGeneral, errClosed)
	}
	defer func() {
		<-c.turn
		if c.life.Err() != nil {
			c.closeAfterEnd()
		}
	}()
	if c.life.Err() != nil {
		return fail(ctx, op, CodeGeneral, errClosed)
	}
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	err := call(callCtx)
	if err == nil {
		return nil
	}
	var verdict codedError
	switch {
	case errors.As(err, &verdict) && verdict.stands:
		err = newError(op, CodeGeneral, err)
	case c.life.Err() != nil && ctx.Err() == nil:
		err = newError(op, CodeGeneral, errClosed)
	default:
		err = fail(ctx, op, CodeGeneral, err)
	}
	c.log.LogAttrs(ctx, slog.LevelWarn, op+" failed", slog.Any("error", err))
	return err
}

var errClosed = fmt.Errorf("client: %w", net.ErrClosed)
