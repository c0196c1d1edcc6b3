package esp32ds_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// TestEnrol takes a blank ESP32-C3 to an enrolled device with RSA-3072 keys, and
// connects it to hubs that take every kind of signature.
func TestEnrol(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	must(t, d.boot(t).Initialise(ctx, esp32ds.InitialiseOptions{
		GenerateKey: keysFrom(loadKey(t, "rsa3072-dsk"), loadKey(t, "rsa3072-esk")),
	}))
	server, err := quarklinktest.NewServer(quarklinktest.Options{})
	must(t, err)
	t.Cleanup(server.Close)
	config := server.Config(d.boot(t))
	config.Store = d.records
	client, err := quarklink.New(ctx, config)
	must(t, err)
	t.Cleanup(func() { client.Close() })
	if want, err := quarklink.DeviceIDOf(loadKey(t, "rsa3072-esk").Public()); err != nil || client.DeviceID() != want {
		t.Fatalf("DeviceID %s, want %s", client.DeviceID(), want)
	}
	hub := newHub(t)
	must(t, server.AddBatch(quarklinktest.Batch{
		Name:    "My_ESP32_Batch",
		Devices: []quarklink.DeviceID{client.DeviceID()},
		Policy:  quarklinktest.Policy{Hub: &quarklink.Hub{Endpoint: "hub.test", Port: 8883, Roots: []*x509.Certificate{hub.Leaf}}},
	}))
	enrolment, err := client.Enrol(ctx)
	must(t, err)
	if pub, ok := enrolment.Certificate.PublicKey.(*rsa.PublicKey); !ok || !pub.Equal(loadKey(t, "rsa3072-dsk").Public()) {
		t.Fatal("the device certificate is not over the device key")
	}
	status, err := client.Status(ctx)
	if err != nil || status.Code() != quarklink.CodeEnrolled {
		t.Fatalf("status %v, %v", status, err)
	}

	connect := func(t *testing.T, addr string, version uint16) {
		t.Helper()
		cfg, err := client.HubTLSConfig(ctx)
		must(t, err)
		cfg.MinVersion, cfg.MaxVersion = version, version
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
		must(t, err)
		defer conn.Close()
		fmt.Fprint(conn, "quark\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "krauq\n" {
			t.Errorf("the hub answered %q, %v", line, err)
		}
	}
	issuing := server.IssuingCertificates()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("Go/"+tls.VersionName(version), func(t *testing.T) { connect(t, goHub(t, hub, issuing), version) })
	}
	pss := []string{"rsa_pss_rsae_sha256", "rsa_pss_rsae_sha384", "rsa_pss_rsae_sha512"}
	pkcs1 := []string{"rsa_pkcs1_sha256", "rsa_pkcs1_sha384", "rsa_pkcs1_sha512"}
	for _, scheme := range append(pkcs1, pss...) {
		t.Run("openssl/TLS 1.2/"+scheme, func(t *testing.T) {
			connect(t, counterpart.SServer(t, hub, issuing, "-tls1_2", "-client_sigalgs", scheme), tls.VersionTLS12)
		})
	}
	for _, scheme := range pss {
		t.Run("openssl/TLS 1.3/"+scheme, func(t *testing.T) {
			connect(t, counterpart.SServer(t, hub, issuing, "-tls1_3", "-client_sigalgs", scheme), tls.VersionTLS13)
		})
	}
}

func newHub(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"hub.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// goHub runs a server of crypto/tls that reverses one line, as openssl s_server
// -rev does, and insists on a certificate of the issuing authority.
func goHub(t *testing.T, id tls.Certificate, issuing []*x509.Certificate) string {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(issuing[len(issuing)-1])
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{id}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && line == "quark\n" {
			fmt.Fprint(conn, "krauq\n")
		}
	}()
	return l.Addr().String()
}
