package quarklink_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// A blank device is provisioned over its serial line, then asks how it stands
// and enrols.
func Example() {
	ctx := context.Background()

	// Stand-ins for the instance and the tool at the other end of the cable.
	instance, err := quarklinktest.NewServer(quarklinktest.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer instance.Close()
	if err := instance.AddBatch(quarklinktest.Batch{Name: "My_MQTT_Batch"}); err != nil {
		log.Fatal(err)
	}
	port, host := quarklinktest.Pipe()
	go quarklinktest.NewTool(instance, "My_MQTT_Batch", quarklink.Network{SSID: "workshop", Password: "correct horse"}).Serve(ctx, host)

	// The device. A real one keeps its records in a store.Dir, and the secret
	// where the records are not.
	records := new(store.Mem)
	keys, err := software.New(records, software.Options{
		Secret: func(context.Context) ([]byte, error) { return []byte("a secret of thirty-two characters"), nil }, Iterations: 1})
	if err != nil {
		log.Fatal(err)
	}
	device, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records})
	if err != nil {
		log.Fatal(err)
	}
	defer device.Close()

	network, err := device.Provision(ctx, port, quarklink.ProvisionOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("join", network.SSID, "with", network.Password)

	status, err := device.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("in", status.Batch, "and", status.State)

	if status.NeedsEnrolment() {
		enrolment, err := device.Enrol(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("connect to port", enrolment.Hub.Port)
	}
	// Output:
	// join workshop with [redacted]
	// in My_MQTT_Batch and not_enrolled
	// connect to port 8883
}

// partition is a Slot in memory.
type partition struct {
	flash  [64 << 10]byte
	active int64
}

func (p *partition) Size() int64 { return int64(len(p.flash)) }

func (p *partition) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(p.flash[:]).ReadAt(b, off)
}

func (p *partition) WriteAt(b []byte, off int64) (int, error) { return copy(p.flash[off:], b), nil }

func (p *partition) Activate(_ context.Context, size int64) error {
	p.active = size
	return nil
}

// An update is installed for its signature alone, and told apart by what is
// wrong with it.
func ExampleClient_FirmwareUpdate() {
	ctx := context.Background()
	signingKey, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		log.Fatal(err)
	}
	digest, err := sbsign.KeyDigest(signingKey.Public())
	if err != nil {
		log.Fatal(err)
	}
	firmware, err := image.Minimal(image.ESP32C3, image.App{Project: "blinky", Version: "1.8.1"})
	if err != nil {
		log.Fatal(err)
	}
	device, instance := enrolledDevice(ctx, quarklinktest.Batch{
		SigningKey: signingKey, // the instance signs what is published
		Firmware:   &quarklinktest.Firmware{Image: bytes.NewReader(firmware)},
	})
	defer instance.Close()
	defer device.Close()

	slot := new(partition)
	verifier := secureboot.Verifier{
		Chip:    image.ESP32C3,
		Schemes: []secureboot.Scheme{secureboot.RSA()},
		Trusted: []secureboot.Digest{{1, 2, 3}},
	}
	options := quarklink.FirmwareOptions{Slot: slot, Verifier: verifier}
	_, err = device.FirmwareUpdate(ctx, options)
	fmt.Println("a key that is not trusted:", errors.Is(err, quarklink.ErrWrongSignature), "active:", slot.active)

	verifier.Trusted = []secureboot.Digest{digest}
	options.Verifier = verifier
	options.Again = true // what was refused before is else not even fetched
	done, err := device.FirmwareUpdate(ctx, options)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("installed:", done.Installed, done.Manifest.Name, done.Manifest.Version, "active:", slot.active)
	// Output:
	// a key that is not trusted: true active: 0
	// installed: true blinky 1.8.1 active: 8192
}

// enrolledDevice is the device of the example before, in a batch.
func enrolledDevice(ctx context.Context, batch quarklinktest.Batch) (*quarklink.Client, *quarklinktest.Server) {
	instance, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		log.Fatal(err)
	}
	batch.Name = "batch"
	if err := instance.AddBatch(batch); err != nil {
		log.Fatal(err)
	}
	device, err := instance.NewDevice(ctx, batch.Name)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := device.Enrol(ctx); err != nil {
		log.Fatal(err)
	}
	return device, instance
}

// DialHub is the dial function of an MQTT library, say; here of an HTTP client.
func ExampleClient_DialHub() {
	ctx := context.Background()
	hub := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	hub.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	hub.StartTLS()
	defer hub.Close()
	addr := hub.Listener.Addr().(*net.TCPAddr)
	device, instance := enrolledDevice(ctx, quarklinktest.Batch{Policy: quarklinktest.Policy{Hub: &quarklink.Hub{
		Endpoint: "127.0.0.1", Port: uint16(addr.Port), Roots: []*x509.Certificate{hub.Certificate()}}}})
	defer instance.Close()
	defer device.Close()

	client := http.Client{Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return device.DialHub(ctx) }}}
	answer, err := client.Get(hub.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	name, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the hub sees the device:", string(name) == string(device.DeviceID()))
	// Output: the hub sees the device: true
}

// A Verifier of one's own names the C library's code by a method.
type fixedSize int64

func (v fixedSize) Verify(_ context.Context, image io.ReaderAt, size int64) error {
	if size != int64(v) {
		return unsigned{}
	}
	return nil
}

type unsigned struct{}

func (unsigned) Error() string     { return "no signature that we know" }
func (unsigned) FirmwareCode() int { return int(quarklink.CodeMissingSignature) }

func ExampleVerifier() {
	var v quarklink.Verifier = fixedSize(4096)
	fmt.Println(v.Verify(context.Background(), nil, 100))
	// Output: no signature that we know
}

func ExampleParseDeviceID() {
	id, err := quarklink.ParseDeviceID("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")
	fmt.Println(id, err)
	_, err = quarklink.ParseDeviceID("9F86")
	fmt.Println(err)
	// Output:
	// 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 <nil>
	// quarklink: parse DeviceID: invalid parameter (-2): 4 characters, need 64
}

// How a program's own loop treats what it gets.
func ExampleRetryAfter() {
	wait := func(err error) time.Duration {
		if after, ok := quarklink.RetryAfter(err); ok {
			return after
		}
		return time.Minute
	}
	err := error(&quarklink.Error{Op: "status", Code: quarklink.CodeCommunication, Err: io.ErrUnexpectedEOF})
	fmt.Println(errors.Is(err, quarklink.ErrCommunication), wait(err))
	// Output: true 1m0s
}
