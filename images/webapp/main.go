// Command webapp is the application of the demonstration: a web server that
// counts its visitors in a file, so that one can see whether its data outlived
// an update of the operating system.
//
//	webapp [-listen :8080] [-data /data]
//
// Every GET is a visit and is answered with one line of text. The count is on
// the disk before the answer is sent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// version is what the application says of itself.
const version = "1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "webapp:", err)
		os.Exit(1)
	}
}

// run serves until the context ends.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("webapp", flag.ContinueOnError)
	flags.SetOutput(stderr)
	listen := flags.String("listen", ":8080", "`address` to listen on")
	data := flags.String("data", "/data", "`folder` that keeps the count")
	if err := flags.Parse(args); err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("asking for the host name: %w", err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(stderr, "webapp: listening on", listener.Addr())
	server := &http.Server{
		Handler:           &app{hostname: hostname, counter: counter{path: filepath.Join(*data, "visits")}},
		ReadHeaderTimeout: 10 * time.Second,
	}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// app answers visitors.
type app struct {
	hostname string
	counter  counter
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	visits, err := a.counter.next()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "hello from webapp %s in %s, visit %d\n", version, a.hostname, visits)
}

// counter is a number in a file.
type counter struct {
	mu   sync.Mutex
	path string
}

// next raises the number by one and returns it. A file that does not exist
// counts as zero; one that holds no number is an error, not a fresh start.
func (c *counter) next() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	text, err := os.ReadFile(c.path)
	switch {
	case err == nil:
		if n, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return 0, fmt.Errorf("reading the count in %s: %w", c.path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("reading the count: %w", err)
	}
	n++
	if err := c.store(n); err != nil {
		return 0, fmt.Errorf("keeping the count: %w", err)
	}
	return n, nil
}

// store replaces the file as a whole, so that a power cut leaves the old number
// or the new one.
func (c *counter) store(n int) error {
	file, err := os.Create(c.path + ".new")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(file, n)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), c.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(c.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
