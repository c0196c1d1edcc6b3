package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

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
	if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	return s, newDevice(t, s, "b")
}

func TestRefuseHoldThenWell(t *testing.T) {
	s, d := newBatchServer(t)
	s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 1500*time.Millisecond).Times(1))
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
		if r.status != want.status || r.header.Get("Retry-After") != want.after || r.header.Get("Content-Type") != want.contentType {
			t.Errorf("request %d: HTTP %d, Retry-After %q, type %q", i, r.status, r.header.Get("Retry-After"), r.header.Get("Content-Type"))
		}
		if r.status >= 400 && r.problem(t) != want.problem {
			t.Errorf("request %d: %s", i, r.body)
		}
		// Other calls are as well as ever.
		if r := d.get(c, pathCACerts); r.status != 200 {
			t.Errorf("cacerts: HTTP %d", r.status)
		}
	}
	if st := s.Stats(); st.Requests != 10 || st.Calls[quarklinktest.CallStatus] != 5 || st.Calls[quarklinktest.CallCACerts] != 5 || st.Handshakes != 1 {
		t.Errorf("%+v", st)
	}
	s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(500, "", 0))
	for range 3 {
		if r := d.get(c, pathStatus); r.status != 500 {
			t.Errorf("always: HTTP %d", r.status)
		}
	}
	s.ClearFaults()
	if r := d.get(c, pathStatus); r.status != 200 {
		t.Errorf("cleared: HTTP %d", r.status)
	}
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
		if r, err := try(t.Context(), c, "POST", pathEnrol, encode(csr), "Content-Type", "application/pkcs10"); err == nil {
			t.Errorf("answered with HTTP %d", r.status)
		}
		if n := len(s.Certificates(d.id)); n != test.issued {
			t.Errorf("%d certificates, want %d", n, test.issued)
		}
		s.ClearFaults()
	}
	if cert := d.post(c, pathEnrol, csr).certs(t)[0]; !cert.Equal(s.Certificates(d.id)[0]) || len(s.Certificates(d.id)) != 1 {
		t.Error("the certificate whose answer was lost is not the one that is answered now")
	}
}

func TestCutOffAndDamage(t *testing.T) {
	s, d := newBatchServer(t)
	img := minimal(t, "1")
	if err := s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(img)}); err != nil {
		t.Fatal(err)
	}
	c := d.client(d.identity)
	n := len(img)
	for _, cut := range []int{0, 1, 100, n - 1} {
		s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(int64(cut)).Times(1))
		r, err := try(t.Context(), c, "GET", pathFirmware, nil)
		if !errors.Is(err, io.ErrUnexpectedEOF) || r.status != 200 || !bytes.Equal(r.body, img[:cut]) {
			t.Errorf("cut off at %d: HTTP %d, %d bytes, %v", cut, r.status, len(r.body), err)
		}
	}
	for _, cut := range []int{n, n + 1} {
		s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(int64(cut)).Times(1))
		if r := d.get(c, pathFirmware); !bytes.Equal(r.body, img) {
			t.Errorf("cut off at %d of %d: other bytes", cut, n)
		}
	}
	for _, at := range []int{0, 1, n / 2, n - 1} {
		s.Fault(quarklinktest.CallFirmware, quarklinktest.Damage(int64(at)).Times(1))
		want := bytes.Clone(img)
		want[at] ^= 1
		if r := d.get(c, pathFirmware); !bytes.Equal(r.body, want) {
			t.Errorf("damage at %d: other bytes", at)
		}
	}
	// They add up, and apply to a resumed download as to any body.
	s.Fault(quarklinktest.CallFirmware, quarklinktest.Damage(3).Times(1))
	s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(10).Times(1))
	want := bytes.Clone(img[100:110])
	want[3] ^= 1
	r, err := try(t.Context(), c, "GET", pathFirmware, nil, "Range", "bytes=100-")
	if !errors.Is(err, io.ErrUnexpectedEOF) || r.status != 206 || !bytes.Equal(r.body, want) {
		t.Errorf("damaged and cut off: HTTP %d, %x, %v", r.status, r.body, err)
	}
	if r := d.get(c, pathFirmware); !bytes.Equal(r.body, img) {
		t.Error("the faults outlast their times")
	}
	// An empty body can be neither.
	s.Fault(quarklinktest.CallOutcome, quarklinktest.Damage(0))
	s.Fault(quarklinktest.CallOutcome, quarklinktest.CutOff(0))
	body := fmt.Appendf(nil, `{"sha256":"%064x","outcome":"installed"}`, 1)
	if r := d.do(c, "POST", pathOutcome, body, "Content-Type", "application/json"); r.status != 204 {
		t.Errorf("empty body: HTTP %d", r.status)
	}
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
	if got := enrolWith(quarklinktest.WrongKey()); len(got) != 1 || d.dsk.PublicKey.Equal(got[0].PublicKey) || !trusted(got[0]) {
		t.Error("WrongKey: not one trusted certificate over another key")
	}
	if got := enrolWith(quarklinktest.TwoCertificates()); len(got) != 2 || !d.dsk.PublicKey.Equal(got[0].PublicKey) {
		t.Error("TwoCertificates: not two, of which the first is right")
	}
	if got := enrolWith(quarklinktest.ForeignIssuer()); len(got) != 1 || !d.dsk.PublicKey.Equal(got[0].PublicKey) || trusted(got[0]) {
		t.Error("ForeignIssuer: not one untrusted certificate over the right key")
	}
	right := d.post(c, pathEnrol, csr).certs(t)
	if all := s.Certificates(d.id); len(all) != 1 || len(right) != 1 || !all[0].Equal(right[0]) || !trusted(right[0]) {
		t.Errorf("%d certificates were issued, want the right one alone", len(all))
	}
	s.Fault(quarklinktest.CallCACerts, quarklinktest.ForeignIssuer().Times(1))
	if got := d.get(c, pathCACerts).certs(t); len(got) != 1 || trusted(got[0]) || !got[0].IsCA {
		t.Error("ForeignIssuer: cacerts is not one foreign authority")
	}
	s.Fault(quarklinktest.CallTemporary, quarklinktest.WrongKey())
	if got := d.post(d.client(d.identity), pathTemporary, d.csr(d.esk)).certs(t); len(got) != 1 || d.esk.PublicKey.Equal(got[0].PublicKey) {
		t.Error("WrongKey: the temporary certificate is right")
	}
}

func TestAnswer(t *testing.T) {
	s, d := newBatchServer(t)
	s.Fault(quarklinktest.CallOutcome, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		w.WriteHeader(299)
		fmt.Fprintf(w, "%s %v", body, err)
	})))
	if r := d.do(d.client(d.identity), "POST", pathOutcome, []byte("garbage")); r.status != 299 || string(r.body) != "garbage <nil>" {
		t.Errorf("HTTP %d: %s", r.status, r.body)
	}
	// What hijacks is no reason for Close to wait.
	hijacked := make(chan struct{})
	s.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
		}
		io.WriteString(conn, "HTTP/9 nonsense\r\n\r\n")
		close(hijacked)
	})))
	if _, err := try(t.Context(), d.client(d.identity), "GET", pathStatus, nil); err == nil {
		t.Error("nonsense is no error")
	}
	<-hijacked
	s.Close()
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newBatchServer(t)
		s.Fault(quarklinktest.CallStatus, quarklinktest.Delay(time.Hour))
		c := d.client(d.identity)
		start := time.Now()
		if r := d.get(c, pathStatus); r.status != 200 || time.Since(start) != time.Hour {
			t.Errorf("HTTP %d after %v", r.status, time.Since(start))
		}
		// Two delays make one; what ends them is that the client goes away.
		temporary := d.temporary()
		s.Fault(quarklinktest.CallEnrol, quarklinktest.Delay(time.Minute))
		s.Fault(quarklinktest.CallEnrol, quarklinktest.Delay(time.Minute))
		ctx, cancel := context.WithTimeout(t.Context(), 119*time.Second)
		defer cancel()
		_, err := try(ctx, d.client(temporary), "POST", pathEnrol, encode(d.csr(d.dsk)), "Content-Type", "application/pkcs10")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("impatient client: %v", err)
		}
		synctest.Wait()
		time.Sleep(time.Hour) // of the bubble's time
		if n := len(s.Certificates(d.id)); n > 0 {
			t.Error("a request whose client has gone was processed")
		}
	})
}
