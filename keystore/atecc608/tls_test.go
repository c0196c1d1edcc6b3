package atecc608_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// selfSigned is a certificate for the signer's key.
func selfSigned(t *testing.T, signer crypto.Signer, usage x509.ExtKeyUsage) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "device"},
		DNSNames:              []string{"localhost"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// clientConfig shows the chip's certificate, and says which signatures it can
// make: a TLS 1.2 server may ask a P-256 key for SHA-384.
func clientConfig(t *testing.T, signer crypto.Signer, cert *x509.Certificate, roots *x509.CertPool, version uint16) *tls.Config {
	t.Helper()
	restricted, ok := signer.(keystore.Restricted)
	if !ok {
		t.Fatal("the signer does not say that it is restricted")
	}
	identity := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: signer}
	for _, s := range restricted.SignatureSchemes() {
		identity.SupportedSignatureAlgorithms = append(identity.SupportedSignatureAlgorithms, tls.SignatureScheme(s))
	}
	return &tls.Config{
		RootCAs:              roots,
		ServerName:           "localhost",
		MinVersion:           version,
		MaxVersion:           version,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &identity, nil },
	}
}

// serverIdentity is a key in software.
func serverIdentity(t *testing.T) (crypto.Signer, *x509.Certificate, *x509.CertPool) {
	t.Helper()
	keys, err := software.New(new(store.Mem), software.Options{
		Secret:     func(context.Context) ([]byte, error) { return bytes.Repeat([]byte("s"), 32), nil },
		Iterations: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := keys.Generate(t.Context(), keystore.Device)
	if err != nil {
		t.Fatal(err)
	}
	cert := selfSigned(t, signer, x509.ExtKeyUsageServerAuth)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return signer, cert, roots
}

var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

func TestMutualTLS(t *testing.T) {
	serverKey, serverCert, roots := serverIdentity(t)
	r := newRig(t, atecctest.Options{Config: provisioned(), Times: atecctest.MaxTimes}, atecc608.Options{})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Device)
	cert := selfSigned(t, signer, x509.ExtKeyUsageClientAuth)
	clients := x509.NewCertPool()
	clients.AddCert(cert)
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			server := tls.Server(far, &tls.Config{
				Certificates: []tls.Certificate{{Certificate: [][]byte{serverCert.Raw}, PrivateKey: serverKey}},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    clients,
			})
			done := make(chan error, 1)
			go func() {
				defer far.Close()
				line, err := bufio.NewReader(server).ReadString('\n')
				if err == nil {
					_, err = io.WriteString(server, line)
				}
				done <- err
			}()
			client := tls.Client(near, clientConfig(t, signer, cert, roots, version))
			near.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.WriteString(client, "hello\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "hello\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if peer := server.ConnectionState().PeerCertificates; len(peer) != 1 || !peer[0].Equal(cert) {
				t.Error("the server did not see the chip's certificate")
			}
		})
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// OpenSSL's server verifies the chip's signature in the handshake.
func TestMutualTLSWithOpenSSL(t *testing.T) {
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serverCert := selfSigned(t, serverKey, x509.ExtKeyUsageServerAuth)
	roots := x509.NewCertPool()
	roots.AddCert(serverCert)
	r := newRig(t, atecctest.Options{Config: provisioned(), Times: atecctest.MaxTimes}, atecc608.Options{})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Device)
	cert := selfSigned(t, signer, x509.ExtKeyUsageClientAuth)
	id := tls.Certificate{Certificate: [][]byte{serverCert.Raw}, PrivateKey: serverKey}
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			addr := counterpart.SServer(t, id, []*x509.Certificate{cert})
			conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			client := tls.Client(conn, clientConfig(t, signer, cert, roots, version))
			if _, err := io.WriteString(client, "hello\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "olleh\n" {
				t.Fatalf("%q, %v", line, err)
			}
		})
	}
}

// OpenSSL verifies a signature of the chip's, and names the same DeviceID.
func TestSignatureWithOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	dir := t.TempDir()
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	message := []byte("message")
	digest := crypto.SHA256.New()
	digest.Write(message)
	signature, err := signer.Sign(nil, digest.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	writePEM(t, file("public"), "PUBLIC KEY", public)
	for name, content := range map[string][]byte{"message": message, "signature": signature} {
		if err := os.WriteFile(file(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), openssl, "dgst", "-sha256", "-verify", file("public"), "-signature", file("signature"), file("message")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	spki, err := exec.CommandContext(t.Context(), openssl, "pkey", "-pubin", "-in", file("public"), "-outform", "DER").Output()
	if err != nil {
		t.Fatal(err)
	}
	id, err := quarklink.DeviceIDOf(signer.Public())
	if want := fmt.Sprintf("%x", sha256.Sum256(spki)); err != nil || string(id) != want {
		t.Errorf("DeviceID %s, %v; openssl says %s", id, err, want)
	}
}

// Without Options.ECDSA the keys are not for crypto/tls: New says so.
func TestClientWantsTheHostsECDSA(t *testing.T) {
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned()})
	model.SetClock(clock.Now)
	keys := openRaw(t, model, clock).KeyStore(atecc608.Slots{})
	_, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys})
	require.ErrorIs(t, err, quarklink.ErrInvalidParameter)
	assert.ErrorContains(t, err, "Options.ECDSA")
}

// A device with its keys in a chip enrols and connects to its hub.
func TestEnrolment(t *testing.T) {
	ctx := t.Context()
	for name, slots := range map[string]atecc608.Slots{"one key": {}, "two keys": {Device: 1}} {
		t.Run(name, func(t *testing.T) {
			instance, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
			if err != nil {
				t.Fatal(err)
			}
			defer instance.Close()
			r := newRig(t, atecctest.Options{Config: provisioned(), Times: atecctest.MaxTimes}, atecc608.Options{})
			device, err := quarklink.New(ctx, instance.Config(r.chip.KeyStore(slots)))
			if err != nil {
				t.Fatal(err)
			}
			defer device.Close()
			err = instance.AddBatch(quarklinktest.Batch{
				Name:    "chips",
				Devices: []quarklink.DeviceID{device.DeviceID()},
				Policy:  quarklinktest.Policy{Lifetime: 24 * time.Hour},
			})
			if err != nil {
				t.Fatal(err)
			}
			enrolment, err := device.Enrol(ctx)
			if err != nil {
				t.Fatal(err)
			}
			key, err := r.chip.PublicKey(ctx, slots.Device)
			if err != nil {
				t.Fatal(err)
			}
			if !key.Equal(enrolment.Certificate.PublicKey) {
				t.Error("the certificate is not for the key in the device's slot")
			}
			status, err := device.Status(ctx)
			if err != nil || status.State != quarklink.StateEnrolled {
				t.Fatalf("%v, %v", status.State, err)
			}
			connectHub(t, ctx, device, enrolment)
		})
	}
}

// connectHub meets a hub of our own that wants the certificate of the enrolment.
func connectHub(t *testing.T, ctx context.Context, device *quarklink.Client, enrolment *quarklink.Enrolment) {
	t.Helper()
	config, err := device.HubTLSConfig(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hubKey, hubCert, roots := serverIdentity(t)
	config.RootCAs, config.ServerName = roots, "localhost"
	near, far := net.Pipe()
	defer near.Close()
	hub := tls.Server(far, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{hubCert.Raw}, PrivateKey: hubKey}},
		ClientAuth:   tls.RequireAnyClientCert,
	})
	done := make(chan error, 1)
	go func() {
		err := hub.HandshakeContext(ctx)
		if err == nil {
			_, err = io.WriteString(hub, "welcome\n")
		}
		done <- err
	}()
	near.SetDeadline(time.Now().Add(30 * time.Second))
	client := tls.Client(near, config)
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "welcome\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if peer := hub.ConnectionState().PeerCertificates; len(peer) == 0 || !peer[0].Equal(enrolment.Certificate) {
		t.Error("the hub did not see the device's certificate")
	}
}
