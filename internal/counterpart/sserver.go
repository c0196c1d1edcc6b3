package counterpart

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// SServer runs openssl s_server on loopback for one connection and returns its
// address. It is id; it insists on a client certificate that issuing vouch for;
// and it answers a line with the same line reversed, or, given "-www", a request
// for a page with what it knows of the connection. The arguments are added to the
// command's, such as "-tls1_3".
func SServer(tb testing.TB, id tls.Certificate, issuing []*x509.Certificate, args ...string) string {
	tb.Helper()
	openssl := Program(tb, "openssl")
	key, err := x509.MarshalPKCS8PrivateKey(id.PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	var cas bytes.Buffer
	for _, cert := range issuing {
		pem.Encode(&cas, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	dir := tb.TempDir()
	for name, data := range map[string][]byte{
		"ca.pem":   cas.Bytes(),
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.Certificate[0]}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	if !slices.Contains(args, "-www") {
		args = append(slices.Clone(args), "-rev")
	}
	cmd := exec.CommandContext(tb.Context(), openssl, append([]string{"s_server", "-accept", "127.0.0.1:0", "-naccept", "1",
		"-cert", "cert.pem", "-key", "key.pem", "-CAfile", "ca.pem", "-Verify", "3", "-verify_return_error"}, args...)...)
	cmd.Dir = dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if addr, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok { // it listens
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				for lines.Scan() {
				}
			}()
			tb.Cleanup(func() { <-drained; cmd.Wait() })
			return addr
		}
	}
	cmd.Wait()
	tb.Fatalf("openssl s_server did not start: %s", errs.String())
	return ""
}
