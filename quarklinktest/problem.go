package quarklinktest

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/quarklink-go/quarklink/internal/problem"
)

// The problem types, for [Refuse]. What a client makes of each is documented at
// the [quarklink.Problem] of the same name.
const (
	ProblemDeviceUnknown     = problem.DeviceUnknown
	ProblemDeviceRevoked     = problem.DeviceRevoked
	ProblemNotEnrolled       = problem.NotEnrolled
	ProblemBadCSR            = problem.BadCSR
	ProblemBadToken          = problem.BadToken
	ProblemAzureProvisioning = problem.AzureProvisioning
	ProblemNoFirmware        = problem.NoFirmware
	ProblemUnavailable       = problem.Unavailable
)

// refusal is an error that the device is told.
type refusal struct {
	status     int
	problem    string // a Problem constant, or "" if the status says it all
	detail     string
	retryAfter time.Duration // 0: not said
	header     map[string]string
}

func refuse(status int, problem, detail string) error {
	return &refusal{status: status, problem: problem, detail: detail}
}

func (r *refusal) Error() string { return r.detail }

// problemOf makes the answer that tells an error (RFC 9457).
func problemOf(err error) *answer {
	var r *refusal
	if !errors.As(err, &r) {
		r = &refusal{status: http.StatusInternalServerError, detail: err.Error()}
	}
	return r.answer()
}

func (r *refusal) answer() *answer {
	document := map[string]any{"title": http.StatusText(r.status), "status": r.status}
	if r.problem != "" {
		document["type"] = problem.Prefix + r.problem
	}
	if r.detail != "" {
		document["detail"] = r.detail
	}
	body, err := json.Marshal(document)
	if err != nil {
		body = nil // strings and a number: cannot be
	}
	a := content("application/problem+json", body)
	a.status = r.status
	a.header = map[string]string{}
	for name, value := range r.header {
		a.header[name] = value
	}
	if r.retryAfter > 0 {
		// Whole seconds is all that the field can say: never less than was meant.
		seconds := (r.retryAfter + time.Second - 1) / time.Second
		a.header["Retry-After"] = strconv.FormatInt(int64(seconds), 10)
	}
	return a
}
