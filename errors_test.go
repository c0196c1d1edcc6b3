package quarklink_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink"
)

// codes is quarklink_return_t of the C library's public header.
var codes = []struct {
	code    quarklink.Code
	value   int
	failure error // nil: a result
}{
	{quarklink.CodeGeneral, -1, quarklink.ErrGeneral},
	{quarklink.CodeInvalidParameter, -2, quarklink.ErrInvalidParameter},
	{quarklink.CodeCACerts, -3, quarklink.ErrCACerts},
	{quarklink.CodeCommunication, -4, quarklink.ErrCommunication},
	{quarklink.CodeValueNotAvailable, -5, quarklink.ErrValueNotAvailable},
	{quarklink.CodeStorage, -6, quarklink.ErrStorage},
	{quarklink.CodeNotInitialised, -7, quarklink.ErrNotInitialised},
	{quarklink.CodeAzureProvisioning, -8, quarklink.ErrAzureProvisioning},
	{quarklink.CodeSuccess, 0, nil},
	{quarklink.CodeEnrolled, 10, nil},
	{quarklink.CodeUpdateRequired, 11, nil},
	{quarklink.CodeNotEnrolled, 12, nil},
	{quarklink.CodeCertificateExpired, 13, nil},
	{quarklink.CodeRevoked, 14, nil},
	{quarklink.CodeWrongSignature, 20, quarklink.ErrWrongSignature},
	{quarklink.CodeMissingSignature, 21, quarklink.ErrMissingSignature},
	{quarklink.CodeUpdate, 22, quarklink.ErrUpdate},
	{quarklink.CodeNoUpdate, 23, quarklink.ErrNoUpdate},
	{quarklink.CodeUpdated, 24, nil},
	{quarklink.CodeConnectionLost, 25, quarklink.ErrConnectionLost},
	{quarklink.CodeDeviceDoesNotExist, 30, quarklink.ErrDeviceDoesNotExist},
	{quarklink.CodeDeviceRevoked, 31, quarklink.ErrDeviceRevoked},
	{quarklink.CodeNoCredentials, 40, quarklink.ErrNoCredentials},
	{quarklink.CodeNoEnrolment, 41, quarklink.ErrNoEnrolment},
	{quarklink.CodeNothingStored, 42, quarklink.ErrNothingStored},
}

func TestCodes(t *testing.T) {
	texts := map[string]bool{}
	for _, test := range codes {
		if int(test.code) != test.value {
			t.Errorf("%v is %d, want %d", test.code, int(test.code), test.value)
		}
		if text := test.code.String(); texts[text] || strings.HasPrefix(text, "code ") {
			t.Errorf("code %d has the text %q: missing or not its own", test.value, text)
		} else {
			texts[text] = true
		}
		cause := fs.ErrClosed
		err := fmt.Errorf("outer: %w", &quarklink.Error{Op: "test", Code: test.code, Err: cause})
		if !errors.Is(err, cause) {
			t.Errorf("code %d hides its cause", test.value)
		}
		for _, other := range codes {
			if other.failure == nil {
				continue
			}
			if got, want := errors.Is(err, other.failure), other.code == test.code; got != want {
				t.Errorf("errors.Is(code %d, %v) = %v", test.value, other.failure, got)
			}
		}
	}
	if got := quarklink.Code(99).String(); got != "code 99" {
		t.Errorf("unknown code: %q", got)
	}
}

func TestStatusCode(t *testing.T) {
	due := &quarklink.Manifest{}
	for _, test := range []struct {
		status quarklink.Status
		code   quarklink.Code
		needs  bool
	}{
		{quarklink.Status{State: quarklink.StateRevoked, Firmware: due, CertificateExpired: true}, quarklink.CodeRevoked, false},
		{quarklink.Status{State: quarklink.StateNotEnrolled, Firmware: due}, quarklink.CodeUpdateRequired, true},
		{quarklink.Status{State: quarklink.StateNotEnrolled, CertificateExpired: true}, quarklink.CodeNotEnrolled, true},
		{quarklink.Status{State: quarklink.StateEnrolled, CertificateExpired: true, HasEnrolment: true}, quarklink.CodeCertificateExpired, true},
		{quarklink.Status{State: quarklink.StateEnrolled, HasEnrolment: true}, quarklink.CodeEnrolled, false},
		{quarklink.Status{State: quarklink.StateEnrolled}, quarklink.CodeEnrolled, true},
		{quarklink.Status{State: quarklink.StatePendingRevoke}, quarklink.CodeEnrolled, false},
		{quarklink.Status{State: quarklink.StatePendingRevoke, CertificateExpired: true}, quarklink.CodeCertificateExpired, false},
		{quarklink.Status{}, quarklink.CodeGeneral, true},
	} {
		if got := test.status.Code(); got != test.code {
			t.Errorf("%+v: code %d, want %d", test.status, int(got), int(test.code))
		}
		if got := test.status.NeedsEnrolment(); got != test.needs {
			t.Errorf("%+v: needs enrolment %v, want %v", test.status, got, test.needs)
		}
	}
}

func TestParseDeviceID(t *testing.T) {
	good := strings.Repeat("0123456789abcdef", 4)
	if id, err := quarklink.ParseDeviceID(good); err != nil || string(id) != good {
		t.Errorf("good DeviceID: %q, %v", id, err)
	}
	for _, bad := range []string{
		"", good[1:], good + "0", strings.ToUpper(good), " " + good[1:], good[:63] + "\n", good[:63] + "g", good[:62] + "é",
	} {
		if id, err := quarklink.ParseDeviceID(bad); !errors.Is(err, quarklink.ErrInvalidParameter) || id != "" {
			t.Errorf("ParseDeviceID(%q) = %q, %v", bad, id, err)
		}
	}
}

func TestSecret(t *testing.T) {
	const hidden = "hunter2hunter2"
	secret := quarklink.Secret(hidden)
	network := quarklink.Network{SSID: "lab", Password: secret}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("secret", "s", secret, "n", network)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("secret", "s", secret, "n", network)
	asJSON, err := json.Marshal(network)
	if err != nil {
		t.Fatal(err)
	}
	for how, text := range map[string]string{
		"slog": log.String(),
		"json": string(asJSON),
		"fmt": fmt.Sprint(secret, network, &network, []quarklink.Secret{secret}) +
			fmt.Sprintf("%s %q %v %+v %#v %x %X %d %10s", secret, secret, secret, network, network, secret, secret, secret, secret),
		"error": fmt.Errorf("oops: %v", secret).Error(),
	} {
		if strings.Contains(text, hidden) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", hidden)) {
			t.Errorf("%s shows the secret: %s", how, text)
		}
		if !strings.Contains(text, "[redacted]") {
			t.Errorf("%s: %s", how, text)
		}
	}
	if string(secret) != hidden {
		t.Error("the secret itself is lost")
	}
}

func TestRetryAfterOfOtherErrors(t *testing.T) {
	for _, err := range []error{nil, fs.ErrNotExist, context.Canceled, &quarklink.Error{Op: "x", Code: quarklink.CodeCommunication}} {
		if d, ok := quarklink.RetryAfter(err); ok || d != time.Duration(0) {
			t.Errorf("RetryAfter(%v) = %v, %v", err, d, ok)
		}
	}
}
