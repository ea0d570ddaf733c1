// Command shop is one service of the application in the stories of the machine test.
// What it does wrong is not in it but in the volume that its services share, so that
// one image plays every part and a test can say at any time what goes wrong where:
//
//	shop -name web [-listen :8080]
//	shop -ask
//
// Each line of /data/orders is an order: the version of the operating system that it
// is for ("*" is any, /os-release of the host tells), the service, and what it does:
//
//	1.1 db crash 20s
//	1.1 web late 15s
//	* old mute
//
// A service that crashes ends that long after its start, one that is late begins to
// work that long after its start, one that is mute never does. One that works answers
// shop -ask in its network namespace, and with -listen over HTTP: "/" counts and keeps a
// visit, everything else is answered without.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// socket is in the abstract namespace: it leaves nothing behind when its owner dies.
const socket = "@shop"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("shop", flag.ContinueOnError)
	flags.SetOutput(stderr)
	name := flags.String("name", "", "`name` of the service")
	listen := flags.String("listen", "", "`address` to serve HTTP on")
	ask := flags.Bool("ask", false, "ask the service that runs here whether it works")
	data := flags.String("data", "/data", "`folder` that the services share")
	release := flags.String("os-release", "/os-release", "`file` that says which system this is")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *ask {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	todo, err := orders(*data+"/orders", *release, *name)
	if err != nil {
		return err
	}
	s := &service{data: *data, name: *name}
	return s.work(ctx, todo, *listen)
}

// order is what a service was told to do wrong; the zero value is nothing.
type order struct {
	late, crash time.Duration
	mute        bool
}

// orders are those for a service on this system.
func orders(file, release, name string) (order, error) {
	var o order
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return o, nil
	}
	if err != nil {
		return o, err
	}
	system, err := os.ReadFile(release)
	if err != nil {
		return o, err
	}
	for line := range strings.Lines(string(text)) {
		f := append(strings.Fields(line), "")
		if len(f) < 4 || f[1] != name || f[0] != "*" && !strings.Contains(string(system), "IMAGE_VERSION="+f[0]+"\n") {
			continue
		}
		switch f[2] {
		case "late":
			o.late, err = time.ParseDuration(f[3])
		case "crash":
			o.crash, err = time.ParseDuration(f[3])
		case "mute":
			o.mute = true
		default:
			err = errors.New("no such deed")
		}
		if err != nil {
			return o, fmt.Errorf("order %q: %w", line, err)
		}
	}
	return o, nil
}

type service struct {
	data, name string
	mu         sync.Mutex
}

// work does what the service is there for, until the context ends.
func (s *service) work(ctx context.Context, todo order, listen string) error {
	if err := s.count("starts"); err != nil {
		return err
	}
	var crash <-chan time.Time
	if todo.crash > 0 {
		crash = time.After(todo.crash)
	}
	ready := time.After(todo.late)
	if todo.mute {
		ready = nil
	}
	failed := make(chan error, 2)
	for {
		select {
		case <-ready:
			ready = nil
			fmt.Fprintln(os.Stderr, "shop: works")
			if err := s.open(listen, failed); err != nil {
				return err
			}
		case <-crash:
			return errors.New("crashed, as ordered")
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// open begins to answer.
func (s *service) open(listen string, failed chan<- error) error {
	local, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() { failed <- http.Serve(local, s) }() //nolint:gosec // asked by ourselves only
	if listen == "" {
		return nil
	}
	public, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	go func() { failed <- http.Serve(public, s) }() //nolint:gosec // in a test
	return nil
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		fmt.Fprintln(w, s.name, "works")
		return
	}
	if err := s.count("visits"); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	info, err := os.Stat(s.data + "/" + s.name + ".visits")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "hello from %s, visit %d\n", s.name, info.Size())
}

// count makes a file longer by one byte, which is on the disk before it returns: a cut
// of the power takes nothing away.
func (s *service) count(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.OpenFile(s.data+"/"+s.name+"."+what, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(".")
	return errors.Join(err, f.Sync(), f.Close())
}
