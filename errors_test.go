package quarklink_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"

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
		assert.Equal(t, test.value, int(test.code), "%v", test.code)
		text := test.code.String()
		assert.NotContains(t, texts, text, "code %d shares its text", test.value)
		assert.NotContains(t, text, "code ", "code %d has no text", test.value)
		texts[text] = true
		cause := fs.ErrClosed
		err := fmt.Errorf("outer: %w", &quarklink.Error{Op: "test", Code: test.code, Err: cause})
		assert.ErrorIs(t, err, cause, "code %d hides its cause", test.value)
		for _, other := range codes {
			if other.failure == nil {
				continue
			}
			assert.Equal(t, other.code == test.code, errors.Is(err, other.failure),
				"errors.Is(code %d, %v)", test.value, other.failure)
		}
	}
	assert.Equal(t, "code 99", quarklink.Code(99).String())
}

func TestRetryAfterOfOtherErrors(t *testing.T) {
	for _, err := range []error{nil, fs.ErrNotExist, context.Canceled,
		&quarklink.Error{Op: "x", Code: quarklink.CodeCommunication}} {
		d, ok := quarklink.RetryAfter(err)
		assert.False(t, ok, "%v", err)
		assert.Zero(t, d, "%v", err)
	}
}
