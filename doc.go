// Package quarklink gives a device its identity and links it to a QuarkLink
// instance: it provisions the device over a serial line, asks for its status,
// enrols it, and installs signed firmware. It is a port of Crypto Quantique's
// quarklink-client library to Go, that can be read and can be tested without
// hardware.
//
// # Quick start
//
// What follows is of examples/device, the whole program of a device. A [Client]
// needs a key store, a store for its records, and what firmware runs. Whether a
// blank device may make its identity is for the build or the unit file to say,
// never for the store: in the field an empty store is a mount that is missing.
//
//	keys, err := software.New(records, software.Options{Secret: read})
//	check(err)
//	device, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records, RequireIdentity: !*factory,
//		Firmware: quarklink.FirmwareInfo{Version: version}, Logger: slog.Default()})
//	check(err)
//
// [Client.Run] is the device's life: it provisions, asks the instance, updates,
// enrols and renews, and keeps the connection to the hub.
//
//	check(device.Run(ctx, quarklink.Loop{
//		Firmware: updates,
//		Provision: func(ctx context.Context, o quarklink.ProvisionOptions) error {
//			line, err := os.OpenFile(*tty, os.O_RDWR|syscall.O_NOCTTY, 0)
//			if err == nil {
//				defer line.Close()
//				_, err = device.Provision(ctx, line, o)
//			}
//			return err
//		},
//		Hub: func(ctx context.Context, _ *quarklink.Enrolment) error {
//			conn, err := device.DialHub(ctx) // mutual TLS: give it to your MQTT library
//			if err == nil {
//				context.AfterFunc(ctx, func() { conn.Close() })
//				_, err = io.Copy(io.Discard, conn) // your application, until the connection ends
//			}
//			return err
//		},
//	}))
//
// # By hand
//
// A program with a loop of its own makes the calls in this order. [Client.Renew]
// belongs where [Status.NeedsRenewal] says so, before the certificate expires.
//
//	var ask quarklink.ProvisionOptions
//	if b.factory || device.NeedsProvisioning(ask) {
//		if _, err := device.Provision(ctx, b.uart, ask); err != nil {
//			return err
//		}
//	}
//	status, err := device.Status(ctx)
//	if err != nil {
//		return err // errors.Is(err, quarklink.ErrDeviceDoesNotExist): not in a batch yet, ask again later
//	}
//	if status.NeedsUpdate() {
//		_, err := device.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: b.slot, Verifier: verifier})
//		if err == nil {
//			return b.restart()
//		}
//		slog.Error("the device keeps what it runs", "error", err)
//	}
//	if status.NeedsEnrolment() {
//		if _, err := device.Enrol(ctx); err != nil {
//			return err
//		}
//	}
//	if status.NeedsRenewal() {
//		if _, err := device.Renew(ctx, quarklink.RenewOptions{}); err != nil {
//			slog.Error("the device keeps its certificate", "error", err)
//		}
//	}
//	hub, err := device.HubTLSConfig(ctx) // mutual TLS; or give your library Client.DialHub
//
// Package quarklinktest has an instance and a provisioning tool to run all this
// against in one process.
//
// # Trust model
//
// A device is its enrolment key: the [DeviceID] is the SHA-256 of its public
// half, and the private half never leaves the key store. The instance is its
// root certificate, which provisioning delivers: nothing else is trusted for
// the instance, never the system's pool, and no switch turns verification off.
// Connections are TLS 1.3 (TLS 1.2 if [Config].MinTLS allows it) with the hybrid
// key exchange X25519MLKEM768 offered first. The issuing certificates that
// enrolment fetches vouch for the device certificate; they are never trusted
// for the instance.
//
// Firmware is trusted for its signature alone: a [Verifier] judges the image as
// it was read back from the [Slot], before the slot is activated. What the
// instance says of an image ([Manifest]) is not trusted; but what is activated has
// the digest that it announced.
//
// Who holds the cable at provisioning decides about the instance.
//
// # State
//
// The client keeps the records "instance", "network", "enrolment", "csr" and
// "update" in its [store.Store], and "time" if it lives by [Client.Run]; a software
// key store keeps "key-esk" and "key-dsk" beside them, and "key-dsk-next" while a key
// is being replaced. Each has a version and a checksum. Each is written before the step that
// relies on it, so that a power cut at any instant leaves a device that carries
// on: a [Client.Enrol] that was cut short sends the same CSR again and gets the
// same certificate. "update" remembers the image that was installed last, until
// Config.Firmware reports it, or the one that was refused, so that neither happens
// again and again.
//
// A damaged key fails [New] and is never made anew, because a new key is a new
// identity. A damaged instance or enrolment is ErrStorage until it is replaced; a
// damaged update counts as none.
//
// # Key stores
//
// Anything that yields a [crypto.Signer] for a role can hold the keys: see
// [keystore.KeyStore]. A store that can make keys is a [keystore.Generator]. There
// is no fallback from one store to another, which would change the identity.
// Package keystore/keystoretest checks that a store keeps the contract.
//
// # Errors
//
// Calls return an [*Error]: which call, the C library's [Code], and the cause.
// errors.Is tells the codes apart by their Err… values, besides [ErrClock],
// [ErrNoVerifier], [ErrSlotTooSmall], [ErrAwaitsRestart], [ErrRefusedBefore] and the sentinels of the packages below,
// such as fs.ErrNotExist for an absent key. [RetryAfter] finds how long the
// instance wants to be left alone. A call that its context ended is that
// context's error and has no code.
//
// Requests that may succeed the next time (a lost connection; the statuses 202,
// 408, 425, 429, 500, 502, 503, 504) are repeated, five times in all, with
// growing random waits and never sooner than the instance asked for; all else
// is returned at once. A wait of more than ten minutes, or beyond the context's
// deadline, is the caller's.
//
// # Compatibility with quarklink-client
//
// The functions of quarklink.h 1.5.2 (29, with 25 result codes), and what to use
// here:
//
//	quarklink_init, quarklink_loadStoredContext    New
//	quarklink_setEndpoint, quarklink_setRootCert,
//	quarklink_persistContext                       Client.SetInstance (stores at once)
//	quarklink_persistEnrolmentContext              Client.Enrol (stores at once)
//	quarklink_status, quarklink_isDevice…          Client.Status, Status.Code
//	quarklink_enrol                                Client.Enrol
//	quarklink_firmwareUpdate                       Client.FirmwareUpdate
//	quarklink_getDeviceID                          Client.DeviceID
//	quarklink_getEndpoint, …Port, …URL, …RootCert  Client.Instance
//	quarklink_getDeviceCert, …IoTHub…              Client.Enrolment, Client.HubTLSConfig
//	quarklink_deleteEnrolmentContext               Client.ForgetEnrolment
//	quarklink_deleteContext                        Client.ForgetInstance
//	quarklink_getEnrolmentKey, …DeviceKey          none: private keys stay in their store
//	quarklink_getTempCert                          none: it stays in memory
//	quarklink_esp32_getDSData (for the ESP32)      none: keystore/esp32ds signs with it
//
// Clients up to 1.4 connect to port 6000, which is [DefaultPort]; since 1.5.1 the
// header's default is 443, and token, URI, database and data source are not in the
// C library's context any more. Here they are in [Enrolment].Database.
//
// Files and flash contents of the C library are not read by this version.
package quarklink
