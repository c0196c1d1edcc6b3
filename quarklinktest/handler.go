package quarklinktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
)

// request is a call that is being answered.
type request struct {
	*http.Request
	caller
	body  []byte
	forge forgery // what to answer instead of the right certificates; may be nil
}

// answer is what will be sent.
type answer struct {
	status      int
	contentType string
	header      map[string]string
	body        io.Reader
	size        int64
}

func content(contentType string, body []byte) *answer {
	return &answer{status: http.StatusOK, contentType: contentType, body: bytes.NewReader(body), size: int64(len(body))}
}

// handler routes requests to the calls.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, c := range calls {
		mux.HandleFunc(c.pattern, func(w http.ResponseWriter, r *http.Request) {
			s.handle(w, r, c.call, func(q *request) (*answer, error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				q.caller = s.identify(q.Request) // it may have changed while a fault waited
				if err := s.authorise(q.caller, c.accepts, c.whileRevoked); err != nil {
					return nil, err
				}
				if err := errors.Join(s.hear(q), s.used(q.cert)); err != nil {
					return nil, err
				}
				return c.answer(s, q)
			})
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.handle(w, r, "", func(*request) (*answer, error) {
			return nil, refuse(http.StatusNotFound, "", "there is no such call")
		})
	})
	return mux
}

// handle answers one request, as well or as badly as the faults allow.
func (s *Server) handle(w http.ResponseWriter, r *http.Request, call Call, process func(*request) (*answer, error)) {
	s.mu.Lock()
	q := &request{Request: r, caller: s.identify(r)}
	s.count(call, q.device)
	e := s.takeFaults(call, q.device)
	q.forge = e.forge
	s.mu.Unlock()

	// Until the body has been read net/http does not notice that a client
	// goes away.
	var err error
	q.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBody))
	if err != nil { // if it is not too large its sender has gone
		process = func(*request) (*answer, error) {
			return nil, refuse(http.StatusRequestEntityTooLarge, "", fmt.Sprintf("read the request: %v", err))
		}
	}
	if !e.wait(r.Context(), s.done) || e.loseRequest {
		s.answered(q, call, 0)
		cut(r)
	}
	real := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var a *answer
		if e.instead != nil {
			a = e.instead
		} else if a, err = process(q); err != nil {
			a = problemOf(err)
		}
		s.logRequest(q, call, a, err)
		if e.loseAnswer {
			s.answered(q, call, 0)
			cut(r)
		}
		s.answered(q, call, a.status)
		s.send(w, r, e.spoil(a))
	})
	if e.intercept != nil {
		r.Body = io.NopCloser(bytes.NewReader(q.body))
		e.intercept(w, r, real)
		return
	}
	real(w, r)
}

// answered tells of a request that was answered with an HTTP status, or broken
// off (0).
func (s *Server) answered(q *request, call Call, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Event{Kind: EventRequest, Call: call, Status: status}
	if q.device != nil {
		e.DeviceID, e.Batch = q.device.id, q.device.batch.Name
	}
	s.happened(e)
}

func (s *Server) logRequest(q *request, call Call, a *answer, err error) {
	attrs := []slog.Attr{
		slog.String("call", string(call)), slog.String("path", q.URL.Path), slog.Int("status", a.status),
	}
	if q.device != nil {
		attrs = append(attrs, slog.String("deviceID", string(q.device.id)))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	s.log.LogAttrs(q.Context(), slog.LevelInfo, "request", attrs...)
}

// send sends an answer. One whose body ends early cuts the connection.
func (s *Server) send(w http.ResponseWriter, r *http.Request, a *answer) {
	h := w.Header()
	h.Set("Date", s.now().UTC().Format(http.TimeFormat))
	if a.status != http.StatusNoContent { // RFC 9110 section 8.6
		h.Set("Content-Length", strconv.FormatInt(a.size, 10))
	}
	if a.contentType != "" {
		h.Set("Content-Type", a.contentType)
	}
	for name, value := range a.header {
		h.Set(name, value)
	}
	w.WriteHeader(a.status)
	if r.Method == http.MethodHead || a.size == 0 {
		return
	}
	n, err := io.Copy(w, a.body)
	if err != nil || n < a.size {
		http.NewResponseController(w).Flush()
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "answer cut off", slog.Int64("after", n), slog.Any("error", err))
		cut(r)
	}
}
