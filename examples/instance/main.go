// Instance runs a QuarkLink instance as a process, for real devices, for
// harnesses in any language and for people: it is what package quarklinktest is
// for a Go test.
//
//	go run ./examples/instance -state ./instance -batch lab
//
// It prints where devices find it and where it is controlled. The control
// address has a page for people, and an HTTP interface that README.md in this
// directory describes. It answers on loopback only, without a password: whoever
// can run programs on this machine can control it.
package main

import (
	"context"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command's flags.
type options struct {
	listen, control, state, root, batch string
	names                               []string
	tls12, verbose                      bool
}

const synopsis = `Usage: instance [flags]

Runs a QuarkLink instance for devices, with a page for people and an HTTP
interface for harnesses at its control address.

`

// run is the command, without the process around it. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if err := serve(ctx, o, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "instance:", err)
		return 1
	}
	return 0
}

func parse(args []string, stdout, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("instance", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is printed once, below
	flags.StringVar(&o.listen, "listen", "127.0.0.1:6000", "`address` for devices; port 0 takes a free one")
	flags.StringVar(&o.control, "control", "127.0.0.1:6080", "loopback `address` for the page and for harnesses")
	flags.StringVar(&o.state, "state", "", "`directory` that keeps everything; empty: in memory only")
	flags.StringVar(&o.root, "root", "", "`file` to write the root certificate to; empty: root.pem in -state, or print it")
	flags.StringVar(&o.batch, "batch", "", "`name` of a batch to add if it is not there")
	flags.Func("name", "host `name` or IP address at which devices reach the instance; may be repeated", func(name string) error {
		o.names = append(o.names, name)
		return nil
	})
	flags.BoolVar(&o.tls12, "tls12", false, "speak TLS 1.2 beside TLS 1.3")
	flags.BoolVar(&o.verbose, "v", false, "log each request to stderr")
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err == nil {
		err = checkControl(o.control)
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, synopsis)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
	case err != nil:
		fmt.Fprintf(stderr, "instance: %v\nRun with -h for the flags.\n", err)
	}
	return o, err
}

// checkControl refuses a control address that others could reach.
func checkControl(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("-control: %w", err)
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("-control %s: only a loopback address is allowed, such as 127.0.0.1:6080", addr)
	}
	return nil
}

// serve runs the instance and its control until ctx ends.
func serve(ctx context.Context, o options, stdout, stderr io.Writer) error {
	server, err := newServer(o, stderr)
	if err != nil {
		return err
	}
	defer server.Close()
	listener, err := net.Listen("tcp", o.control)
	if err != nil {
		return err
	}
	control := newControl(server, listener.Addr().String())
	history := make(chan struct{})
	go func() { defer close(history); control.history.follow(ctx, server) }()
	web := &http.Server{
		Handler:           control,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	if err := announce(o, server, listener.Addr().String(), stdout); err != nil {
		return errors.Join(err, listener.Close())
	}
	context.AfterFunc(ctx, func() { web.Close() })
	err = web.Serve(listener)
	<-history
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func newServer(o options, stderr io.Writer) (*quarklinktest.Server, error) {
	so := quarklinktest.Options{Addr: o.listen, Names: o.names, State: o.state}
	if o.tls12 {
		so.MinTLS = 0x0303
	}
	if o.verbose {
		so.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	if host, port, err := net.SplitHostPort(o.listen); err == nil && port == "0" && host == "127.0.0.1" {
		so.Addr = "" // the port that the state remembers, if any
	}
	server, err := quarklinktest.NewServer(so)
	if err != nil {
		return nil, err
	}
	for _, b := range server.Batches() {
		if b.Name == o.batch {
			return server, nil
		}
	}
	if o.batch != "" {
		if err := server.AddBatch(quarklinktest.Batch{Name: o.batch}); err != nil {
			server.Close()
			return nil, err
		}
	}
	return server, nil
}

// announce prints what a device, a person and a harness need.
func announce(o options, server *quarklinktest.Server, control string, stdout io.Writer) error {
	i := server.Instance()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Root.Raw})
	path := o.root
	if path == "" && o.state != "" {
		path = filepath.Join(o.state, "root.pem")
	}
	var text strings.Builder
	endpoint := "https://" + net.JoinHostPort(i.Endpoint, fmt.Sprint(i.Port))
	fmt.Fprintf(&text, "instance %s\n", endpoint)
	fmt.Fprintf(&text, "control  http://%s/\n", control)
	if path == "" {
		fmt.Fprintf(&text, "root\n%s", root)
	} else {
		if err := os.WriteFile(path, root, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&text, "root     %s\n", path)
		fmt.Fprintf(&text, "try      go run ./examples/quickstart -instance %s -root %s -control http://%s\n", endpoint, path, control)
	}
	_, err := io.WriteString(stdout, text.String())
	return err
}
