package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

func ExampleServer_Fault() {
	s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	// The instance is overloaded twice. Then the line breaks at the worst moment,
	// when the certificate has been issued and has not arrived.
	s.Fault(quarklinktest.CallEnrol, quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 30*time.Second).Times(2))
	s.Fault(quarklinktest.CallEnrol, quarklinktest.LoseAnswer().Times(1))
	// Every download is slow, and breaks off after 4000 bytes.
	s.Fault(quarklinktest.CallFirmware, quarklinktest.Delay(2*time.Second))
	s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(4000))
	// Output:
}

func newBatchServer(t testing.TB) (*quarklinktest.Server, *rawDevice) {
	t.Helper()
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	return s, newDevice(t, s, "b")
}

func TestRefuseHoldThenWell(t *testing.T) {
	s, d := newBatchServer(t)
	s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable,
		1500*time.Millisecond).Times(1))
	s.Fault(quarklinktest.CallStatus, quarklinktest.Hold(7*time.Second).Times(2))
	s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(429, "", 0).Times(1))
	c := d.client(d.identity)
	for i, want := range []struct {
		status      int
		after       string
		contentType string
		problem     string
	}{
		{503, "2", "application/problem+json", "unavailable"},
		{202, "7", "", ""},
		{202, "7", "", ""},
		{429, "", "application/problem+json", ""},
		{200, "", "application/json", ""},
	} {
		r := d.get(c, pathStatus)
		assert.Equal(t, want.status, r.status, i)
		assert.Equal(t, want.after, r.header.Get("Retry-After"), i)
		assert.Equal(t, want.contentType, r.header.Get("Content-Type"), i)
		if r.status >= 400 {
			assert.Equal(t, want.problem, r.problem(t), "request %d: %s", i, r.body)
		}
		// Other calls are as well as ever.
		assert.Equal(t, 200, d.get(c, pathCACerts).status, "cacerts")
	}
	st := s.Stats()
	assert.Equal(t, 10, st.Requests)
	assert.Equal(t, 5, st.Calls[quarklinktest.CallStatus])
	assert.Equal(t, 5, st.Calls[quarklinktest.CallCACerts])
	assert.Equal(t, 1, st.Handshakes)
	s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(500, "", 0))
	for range 3 {
		assert.Equal(t, 500, d.get(c, pathStatus).status, "always")
	}
	s.ClearFaults()
	assert.Equal(t, 200, d.get(c, pathStatus).status, "cleared")
}

func TestLostOnTheWay(t *testing.T) {
	s, d := newBatchServer(t)
	temporary, csr := d.temporary(), d.csr(d.dsk)
	c := d.client(temporary)
	for _, test := range []struct {
		fault  quarklinktest.Fault
		issued int // certificates afterwards
	}{
		{quarklinktest.LoseRequest(), 0},
		{quarklinktest.LoseAnswer(), 1},
	} {
		s.Fault(quarklinktest.CallEnrol, test.fault)
		// A method that is not repeated by net/http itself.
		_, err := try(t.Context(), c, "POST", pathEnrol, encode(csr), "Content-Type", "application/pkcs10")
		assert.Error(t, err, "answered with HTTP")
		assert.Equal(t, test.issued, len(s.Certificates(d.id)))
		s.ClearFaults()
	}
	assert.True(t, d.post(c, pathEnrol, csr).certs(t)[0].Equal(s.Certificates(d.id)[0]),
		"the certificate whose answer was lost is not the one that is answered now")
	assert.Len(t, s.Certificates(d.id), 1,
		"the certificate whose answer was lost is not the one that is answered now")
}

func TestCutOffAndDamage(t *testing.T) {
	s, d := newBatchServer(t)
	img := minimal(t, "1")
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(img)}))
	c := d.client(d.identity)
	n := len(img)
	for _, cut := range []int{0, 1, 100, n - 1} {
		s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(int64(cut)).Times(1))
		r, err := try(t.Context(), c, "GET", pathFirmware, nil)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF, len(r.body))
		assert.Equal(t, 200, r.status, len(r.body))
		assert.Equal(t, img[:cut], r.body, len(r.body))
	}
	for _, cut := range []int{n, n + 1} {
		s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(int64(cut)).Times(1))
		assert.Equal(t, img, d.get(c, pathFirmware).body, "%v, %v", cut, n)
	}
	for _, at := range []int{0, 1, n / 2, n - 1} {
		s.Fault(quarklinktest.CallFirmware, quarklinktest.Damage(int64(at)).Times(1))
		want := bytes.Clone(img)
		want[at] ^= 1
		assert.Equal(t, want, d.get(c, pathFirmware).body)
	}
	// They add up, and apply to a resumed download as to any body.
	s.Fault(quarklinktest.CallFirmware, quarklinktest.Damage(3).Times(1))
	s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(10).Times(1))
	want := bytes.Clone(img[100:110])
	want[3] ^= 1
	r, err := try(t.Context(), c, "GET", pathFirmware, nil, "Range", "bytes=100-")
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "damaged and cut off")
	assert.Equal(t, 206, r.status, "damaged and cut off")
	assert.Equal(t, want, r.body, "damaged and cut off")
	assert.Equal(t, img, d.get(c, pathFirmware).body, "the faults outlast their times")
	// An empty body can be neither.
	s.Fault(quarklinktest.CallOutcome, quarklinktest.Damage(0))
	s.Fault(quarklinktest.CallOutcome, quarklinktest.CutOff(0))
	body := fmt.Appendf(nil, `{"sha256":"%064x","outcome":"installed"}`, 1)
	assert.Equal(t, 204, d.do(c, "POST", pathOutcome, body, "Content-Type", "application/json").status,
		"empty body")
}

func TestForgedCertificates(t *testing.T) {
	s, d := newBatchServer(t)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range s.IssuingCertificates() {
		roots.AddCert(cert)
		intermediates.AddCert(cert)
	}
	trusted := func(cert *x509.Certificate) bool {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err == nil
	}
	temporary, csr := d.temporary(), d.csr(d.dsk)
	c := d.client(temporary)
	enrolWith := func(f quarklinktest.Fault) []*x509.Certificate {
		s.Fault(quarklinktest.CallEnrol, f.Times(1))
		return d.post(c, pathEnrol, csr).certs(t)
	}
	got := enrolWith(quarklinktest.WrongKey())
	require.Len(t, got, 1, "WrongKey: not one trusted certificate over another key")
	assert.False(t, d.dsk.PublicKey.Equal(got[0].PublicKey),
		"WrongKey: not one trusted certificate over another key")
	assert.True(t, trusted(got[0]), "WrongKey: not one trusted certificate over another key")
	got = enrolWith(quarklinktest.TwoCertificates())
	require.Len(t, got, 2, "TwoCertificates: not two, of which the first is right")
	assert.True(t, d.dsk.PublicKey.Equal(got[0].PublicKey),
		"TwoCertificates: not two, of which the first is right")
	got = enrolWith(quarklinktest.ForeignIssuer())
	require.Len(t, got, 1, "ForeignIssuer: not one untrusted certificate over the right key")
	assert.True(t, d.dsk.PublicKey.Equal(got[0].PublicKey),
		"ForeignIssuer: not one untrusted certificate over the right key")
	assert.False(t, trusted(got[0]), "ForeignIssuer: not one untrusted certificate over the right key")
	right := d.post(c, pathEnrol, csr).certs(t)
	all := s.Certificates(d.id)
	require.Len(t, all, 1, "certificates were issued, want the right one alone")
	require.Len(t, right, 1, "certificates were issued, want the right one alone")
	assert.True(t, all[0].Equal(right[0]), "certificates were issued, want the right one alone")
	assert.True(t, trusted(right[0]), "certificates were issued, want the right one alone")
	s.Fault(quarklinktest.CallCACerts, quarklinktest.ForeignIssuer().Times(1))
	got = d.get(c, pathCACerts).certs(t)
	require.Len(t, got, 1, "ForeignIssuer: cacerts is not one foreign authority")
	assert.False(t, trusted(got[0]), "ForeignIssuer: cacerts is not one foreign authority")
	assert.True(t, got[0].IsCA, "ForeignIssuer: cacerts is not one foreign authority")
	s.Fault(quarklinktest.CallTemporary, quarklinktest.WrongKey())
	got = d.post(d.client(d.identity), pathTemporary, d.csr(d.esk)).certs(t)
	require.Len(t, got, 1, "WrongKey: the temporary certificate is right")
	assert.False(t, d.esk.PublicKey.Equal(got[0].PublicKey),
		"WrongKey: the temporary certificate is right")
}

func TestAnswer(t *testing.T) {
	s, d := newBatchServer(t)
	s.Fault(quarklinktest.CallOutcome, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		w.WriteHeader(299)
		fmt.Fprintf(w, "%s %v", body, err)
	})))
	r := d.do(d.client(d.identity), "POST", pathOutcome, []byte("garbage"))
	assert.Equal(t, 299, r.status)
	assert.Equal(t, "garbage <nil>", string(r.body))
	// What hijacks is no reason for Close to wait.
	hijacked := make(chan struct{})
	s.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		assert.NoError(t, err)
		io.WriteString(conn, "HTTP/9 nonsense\r\n\r\n")
		close(hijacked)
	})))
	_, err := try(t.Context(), d.client(d.identity), "GET", pathStatus, nil)
	assert.Error(t, err, "nonsense is no error")
	<-hijacked
	s.Close()
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newBatchServer(t)
		s.Fault(quarklinktest.CallStatus, quarklinktest.Delay(time.Hour))
		c := d.client(d.identity)
		start := time.Now()
		assert.Equal(t, 200, d.get(c, pathStatus).status)
		assert.Equal(t, time.Hour, time.Since(start))
		// Two delays make one; what ends them is that the client goes away.
		temporary := d.temporary()
		s.Fault(quarklinktest.CallEnrol, quarklinktest.Delay(time.Minute))
		s.Fault(quarklinktest.CallEnrol, quarklinktest.Delay(time.Minute))
		ctx, cancel := context.WithTimeout(t.Context(), 119*time.Second)
		defer cancel()
		_, err := try(ctx, d.client(temporary), "POST", pathEnrol, encode(d.csr(d.dsk)), "Content-Type", "application/pkcs10")
		assert.ErrorIs(t, err, context.DeadlineExceeded, "impatient client")
		synctest.Wait()
		time.Sleep(time.Hour) // of the bubble's time
		assert.Empty(t, s.Certificates(d.id), "a request whose client has gone was processed")
	})
}
