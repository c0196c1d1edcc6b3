package main

import (
	"bytes"
	"cmp"
	"crypto/subtle"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

//go:embed page
var pageFiles embed.FS

// rowsPerPage bounds the table of a batch's devices.
const rowsPerPage = 1000

// policyOfPage lets a page load nothing from anywhere but this address, and be
// framed by nobody.
const policyOfPage = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
	"img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"ago": ago, "bytes": size, "short": short, "stamp": stamp, "percent": percent, "path": url.PathEscape,
	// pair gives a template a row beside the page that it stands in.
	"pair": func(v view, row any) any {
		return struct {
			View view
			Row  any
		}{v, row}
	},
}).ParseFS(pageFiles, "page/*.html"))

func (c *control) pages() {
	c.mux.HandleFunc("GET /{$}", c.overviewPage)
	c.mux.HandleFunc("GET /batches/{batch}", c.batchPage)
	c.mux.HandleFunc("GET /devices/{device}", c.devicePage)
	c.mux.HandleFunc("POST /batches", c.form(c.addBatchForm))
	c.mux.HandleFunc("POST /batches/{batch}/devices", c.form(c.addDeviceForm))
	c.mux.HandleFunc("POST /batches/{batch}/firmware", c.form(c.publishForm))
	c.mux.HandleFunc("POST /batches/{batch}/withdraw", c.form(func(r *http.Request) error {
		return c.server.Withdraw(r.PathValue("batch"))
	}))
	for action, do := range map[string]func(quarklink.DeviceID) error{
		"revoke": c.server.Revoke, "allow": c.server.AllowEnrolment,
	} {
		c.mux.HandleFunc("POST /devices/{device}/"+action, c.form(func(r *http.Request) error { return do(deviceID(r)) }))
	}
	for path, kind := range map[string]string{"style.css": "text/css", "live.js": "text/javascript"} {
		data, err := pageFiles.ReadFile("page/" + path)
		if err != nil {
			panic(err) // it is in the program
		}
		c.mux.HandleFunc("GET /"+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind+"; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Write(data)
		})
	}
}

// view is what every page's template gets.
type view struct {
	Title    string
	Path     string // of the page, to come back to
	Token    string
	Now      time.Time
	Endpoint string
	Stats    quarklinktest.Stats
	Error    string // of the form that was sent last
	Last     uint64 // number of the latest event: what the page shows
	Content  any
}

// view begins a page. What happens from here on makes the page load itself again,
// so the content is looked up after it.
func (c *control) view(r *http.Request) view {
	at := *r.URL
	q := at.Query()
	problem := q.Get("error")
	q.Del("error")
	at.RawQuery = q.Encode()
	stats := c.server.Stats()
	c.history.take(c.server, time.Now()) // the plot shows what the table shows
	return view{Path: at.RequestURI(), Token: c.token, Now: time.Now(), Endpoint: quarklinkURL(c.server.Instance()),
		Stats: stats, Last: stats.Events, Error: problem}
}

func (v view) render(w http.ResponseWriter, template, title string, content any) {
	v.Title, v.Content = title, content
	var out bytes.Buffer
	if err := pages.ExecuteTemplate(&out, template, v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policyOfPage)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	w.Write(out.Bytes())
}

func quarklinkURL(i quarklink.Instance) string {
	return fmt.Sprintf("https://%s:%d", i.Endpoint, i.Port)
}

// batchRow is a batch with its plot.
type batchRow struct {
	quarklinktest.BatchSummary
	Bar  []segment
	Plot template.HTML
}

// segment is a part of a bar: how many devices are in a state.
type segment struct {
	Class, Label string
	Count        int
	X, Width     float64 // percent of the bar
}

func (c *control) row(b quarklinktest.BatchSummary) batchRow {
	row := batchRow{BatchSummary: b, Plot: c.history.plot(b.Name, time.Now())}
	x := 0.0
	for _, state := range []quarklink.State{
		quarklink.StateEnrolled, quarklink.StatePendingRevoke, quarklink.StateNotEnrolled, quarklink.StateRevoked,
	} {
		if n := b.States[state]; n > 0 {
			width := 100 * float64(n) / float64(b.Devices)
			row.Bar = append(row.Bar, segment{state.String(), stateLabels[state], n, x, width})
			x += width
		}
	}
	return row
}

var stateLabels = map[quarklink.State]string{
	quarklink.StateNotEnrolled:   "not enrolled",
	quarklink.StateEnrolled:      "enrolled",
	quarklink.StatePendingRevoke: "about to be revoked",
	quarklink.StateRevoked:       "revoked",
}

func (c *control) overviewPage(w http.ResponseWriter, r *http.Request) {
	v := c.view(r)
	var rows []batchRow
	for _, b := range c.server.Batches() {
		rows = append(rows, c.row(b))
	}
	v.render(w, "overview.html", "Batches", rows)
}

// deviceRow is a device in a table.
type deviceRow struct {
	quarklinktest.Device
	Label   string
	Outcome *quarklinktest.Outcome // the latest
}

func rowOf(d quarklinktest.Device) deviceRow {
	row := deviceRow{Device: d, Label: stateLabels[d.State]}
	if n := len(d.Outcomes); n > 0 {
		row.Outcome = &d.Outcomes[n-1]
	}
	return row
}

type batchView struct {
	batchRow
	Rows       []deviceRow
	From, To   int // of how many, counted from 1
	Prev, Next int // pages; 0: none
}

func (c *control) batchPage(w http.ResponseWriter, r *http.Request) {
	page, name := c.view(r), r.PathValue("batch")
	batches := c.server.Batches()
	at := slices.IndexFunc(batches, func(b quarklinktest.BatchSummary) bool { return b.Name == name })
	if at < 0 {
		http.NotFound(w, r)
		return
	}
	v := batchView{batchRow: c.row(batches[at])}
	ids := c.server.Devices(name)
	n, err := strconv.Atoi(cmp.Or(r.URL.Query().Get("page"), "1"))
	if err != nil || n < 1 || n > (len(ids)+rowsPerPage-1)/rowsPerPage {
		n = 1
	}
	begin, end := (n-1)*rowsPerPage, min(n*rowsPerPage, len(ids))
	for _, id := range ids[begin:end] {
		if d, ok := c.server.Device(id); ok {
			v.Rows = append(v.Rows, rowOf(d))
		}
	}
	v.From, v.To = begin+1, end
	v.Prev = n - 1
	if end < len(ids) {
		v.Next = n + 1
	}
	page.render(w, "batch.html", name, v)
}

type deviceView struct {
	deviceRow
	Events []quarklinktest.Event // the latest first
}

// eventsShown bounds the time line of a device.
const eventsShown = 200

func (c *control) devicePage(w http.ResponseWriter, r *http.Request) {
	page := c.view(r)
	d, ok := c.server.Device(deviceID(r))
	if !ok {
		http.NotFound(w, r)
		return
	}
	v := deviceView{deviceRow: rowOf(d), Events: c.server.PastEvents(d.ID)}
	slices.Reverse(v.Events)
	v.Events = v.Events[:min(len(v.Events), eventsShown)]
	page.render(w, "device.html", "Device "+short(string(d.ID)), v)
}

// form handles a form of the page. It goes back to where the form stood, with the
// error if there is one. The token shows that the form is ours: another site can
// neither read nor guess it.
func (c *control) form(do func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxImage+maxJSON)
		if err := r.ParseMultipartForm(maxJSON); err != nil && !errors.Is(err, http.ErrNotMultipart) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if subtle.ConstantTimeCompare([]byte(r.PostFormValue("token")), []byte(c.token)) != 1 {
			http.Error(w, "this form is not of this page, or of an earlier run: load the page again", http.StatusForbidden)
			return
		}
		back, err := url.Parse(r.PostFormValue("back"))
		if err != nil || back.Host != "" || back.Scheme != "" || back.Path == "" || back.Path[0] != '/' {
			back = &url.URL{Path: "/"}
		}
		q := back.Query()
		q.Del("error")
		if err := do(r); err != nil {
			q.Set("error", err.Error())
		}
		back.RawQuery = q.Encode()
		http.Redirect(w, r, (&url.URL{Path: back.Path, RawPath: back.RawPath, RawQuery: back.RawQuery}).RequestURI(), http.StatusSeeOther)
	}
}

func (c *control) addBatchForm(r *http.Request) error {
	return c.server.AddBatch(quarklinktest.Batch{Name: r.PostFormValue("name")})
}

func (c *control) addDeviceForm(r *http.Request) error {
	return c.server.AddDevices(r.PathValue("batch"), quarklink.DeviceID(r.PostFormValue("device")))
}

func (c *control) publishForm(r *http.Request) error {
	file, _, err := r.FormFile("image")
	if err != nil {
		return fmt.Errorf("choose an image: %w", err)
	}
	defer file.Close()
	return c.publishImage(r.PathValue("batch"), file, r.PostFormValue("name"), r.PostFormValue("version"), r.PostFormValue("share"))
}

// ago says how long ago something was, roughly.
func ago(now, then time.Time) string {
	d := now.Sub(then)
	switch {
	case then.IsZero():
		return "never"
	case d < 5*time.Second:
		return "just now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

func size(n int64) string {
	if n < 10_000 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d KiB", (n+512)/1024)
}

func short(s string) string {
	if len(s) <= 16 {
		return s
	}
	return s[:8] + "…" + s[len(s)-4:]
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', -1, 64) + " %" }
