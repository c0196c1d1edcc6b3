package quarklink_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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

func TestRetryAfterOfOtherErrors(t *testing.T) {
	for _, err := range []error{nil, fs.ErrNotExist, context.Canceled, &quarklink.Error{Op: "x", Code: quarklink.CodeCommunication}} {
		if d, ok := quarklink.RetryAfter(err); ok || d != time.Duration(0) {
			t.Errorf("RetryAfter(%v) = %v, %v", err, d, ok)
		}
	}
}
