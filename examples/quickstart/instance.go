package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/transport"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// instance is the QuarkLink instance of a run.
type instance interface {
	// carrier reaches it. Nil: TCP.
	carrier() transport.Transport
	// tool is the provisioning tool that leads devices to it.
	tool() *uart.Tool
	// join returns when it knows the device.
	join(context.Context, *quarklink.Client) error
	// publish offers the image to the batch.
	publish(ctx context.Context, img []byte) error
	// stats are its counters, if they can be had.
	stats() (quarklinktest.Stats, bool)
	// save keeps it for the next run.
	save() error
	close()
}

var wifi = quarklink.Network{SSID: "workshop", Password: "correct horse"}

// inProcess is an instance that lives in this process.
type inProcess struct {
	*quarklinktest.Server
	files files
	batch string
}

func (p *play) startInProcess() (instance, error) {
	snapshot, err := p.files.snapshot()
	if err != nil {
		return nil, err
	}
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true, Snapshot: snapshot})
	if err != nil {
		return nil, fmt.Errorf("start the instance that is kept in %s (delete the directory to start over): %w", p.files.dir, err)
	}
	i := inProcess{server, p.files, p.batch}
	if err := errors.Join(server.AddBatch(quarklinktest.Batch{Name: p.batch}), i.save()); err != nil {
		server.Close()
		return nil, err
	}
	how := "a new one"
	if snapshot != nil {
		how = "the one of the last run"
	}
	p.say("instance", "%s:%d in this process, %s", server.Instance().Endpoint, server.Instance().Port, how)
	return i, nil
}

func (i inProcess) carrier() transport.Transport                  { return i.Carrier() }
func (i inProcess) tool() *uart.Tool                              { return quarklinktest.NewTool(i.Server, i.batch, wifi) }
func (i inProcess) join(context.Context, *quarklink.Client) error { return nil }
func (i inProcess) stats() (quarklinktest.Stats, bool)            { return i.Stats(), true }
func (i inProcess) save() error                                   { return i.files.saveSnapshot(i.Server) }
func (i inProcess) close()                                        { i.Close() }

func (i inProcess) publish(_ context.Context, img []byte) error {
	return i.Publish(i.batch, quarklinktest.Firmware{Image: bytes.NewReader(img), AsIs: true})
}

// running is an instance that runs elsewhere, such as examples/instance.
type running struct {
	*screen
	at      quarklink.Instance
	control string // URL; "": somebody else controls it
	batch   string
	wait    time.Duration
}

func (p *play) useRunning() (instance, error) {
	p.say("instance", "%s:%d, a running one", p.at.Endpoint, p.at.Port)
	r := &running{screen: p.screen, at: p.at, control: strings.TrimSuffix(p.control, "/"), batch: p.batch, wait: p.wait}
	if err := r.tool().Check(); err != nil {
		return nil, fmt.Errorf("a device cannot be told of this instance: %w", err)
	}
	return r, nil
}

func (r *running) carrier() transport.Transport       { return nil }
func (r *running) stats() (quarklinktest.Stats, bool) { return quarklinktest.Stats{}, false }
func (r *running) save() error                        { return nil }
func (r *running) close()                             {}

func (r *running) tool() *uart.Tool {
	return &uart.Tool{
		Endpoint: r.at.Endpoint,
		Port:     r.at.Port,
		RootCA:   r.at.Root.Raw,
		SSID:     wifi.SSID,
		Password: uart.Secret(wifi.Password),
		Instance: transport.TCP(net.JoinHostPort(r.at.Endpoint, strconv.Itoa(int(r.at.Port)))),
		Random:   rand.Reader,
	}
}

// add adds a device to the batch, which it makes if there is none.
func (r *running) add(ctx context.Context, id string) error {
	err := r.call(ctx, http.MethodGet, r.batchPath(""), nil)
	if status := (statusError{}); errors.As(err, &status) && status.code == http.StatusNotFound {
		err = r.call(ctx, http.MethodPost, "/v1/batches", jsonOf(map[string]string{"name": r.batch}))
	}
	if err != nil {
		return err
	}
	return r.call(ctx, http.MethodPost, r.batchPath("/devices"), jsonOf(map[string][]string{"devices": {id}}))
}

func (r *running) batchPath(rest string) string {
	return "/v1/batches/" + url.PathEscape(r.batch) + rest
}

func jsonOf(value any) []byte {
	data, _ := json.Marshal(value) // strings in a map always encode
	return data
}

// join asks for the status until the instance knows the device.
func (r *running) join(ctx context.Context, device *quarklink.Client) error {
	if _, err := device.Status(ctx); !errors.Is(err, quarklink.ErrDeviceDoesNotExist) {
		return err
	}
	id := device.DeviceID().String()
	if r.control != "" {
		if err := r.add(ctx, id); err != nil {
			return fmt.Errorf("add the device to batch %q: %w", r.batch, err)
		}
		r.say("control", "added the device to batch %q", r.batch)
		return nil
	}
	r.say("status", "the instance does not know the device: add it to a batch within %v, by the page at its control", r.wait)
	r.say("", "address or, if that is 127.0.0.1:6080 and there is a batch %q, by", r.batch)
	r.print(fmt.Sprintf("curl -sS http://127.0.0.1:6080%s -d '%s'\n", r.batchPath("/devices"),
		jsonOf(map[string][]string{"devices": {id}})))
	limit, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	for {
		select {
		case <-limit.Done():
			if err := ctx.Err(); err != nil {
				return err
			}
			return fmt.Errorf("nobody has added the device within %v: %w", r.wait, quarklink.ErrDeviceDoesNotExist)
		case <-time.After(time.Second):
		}
		_, err := device.Status(limit)
		if !errors.Is(err, quarklink.ErrDeviceDoesNotExist) && limit.Err() == nil {
			return err
		}
	}
}

// publish puts the image to the control. Without one nothing is published:
// what the batch has is what the device is offered.
func (r *running) publish(ctx context.Context, img []byte) error {
	if err := r.call(ctx, http.MethodPut, r.batchPath("/firmware"), img); err != nil {
		return fmt.Errorf("publish the image: %w", err)
	}
	return nil
}

// statusError is what the control answers to a call that it refuses.
type statusError struct {
	code int
	text string
}

func (e statusError) Error() string {
	return fmt.Sprintf("control: %s (HTTP status %d)", e.text, e.code)
}

// call makes one call to the control of examples/instance, whose README.md
// lists them.
func (r *running) call(ctx context.Context, method, path string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, r.control+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var why struct{ Error string }
	if json.Unmarshal(answer, &why) != nil || why.Error == "" {
		why.Error = "this is not the control of examples/instance"
	}
	return statusError{resp.StatusCode, why.Error}
}

// place names an instance in the state of a device.
func (s *settings) place() string {
	if s.url == "" {
		return "the one in this process"
	}
	return "the one at " + net.JoinHostPort(s.at.Endpoint, fmt.Sprint(s.at.Port))
}
