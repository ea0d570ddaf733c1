// Package nerdctl runs the real nerdctl on a test's own containerd, with images from a
// registry that can be closed, so that a test can ask what is left without one.
package nerdctl

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
)

// limit is how long one command may take on a busy machine.
const limit = 2 * time.Minute

// Rig is a containerd with nerdctl and a registry.
type Rig struct {
	*daemon.Daemon
	// Namespace is containerd's, in which nerdctl works.
	Namespace string
	Program   string // path of nerdctl
	t         testing.TB
	registry  *httptest.Server
	once      sync.Once
	binary    string // of the images' program
}

// Start starts all of it. It skips like daemon.Start.
func Start(t testing.TB) *Rig {
	t.Helper()
	r := &Rig{Daemon: daemon.Start(t), Namespace: "apps", t: t, Program: need.Tool(t, "nerdctl")}
	r.registry = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(r.registry.Close)
	return r
}

// program is what runs in the images: "wait" waits for ever, "is TEXT" ends well if that
// is the image's text. Of a container that ends at once nerdctl may lose the output, but
// never the exit code.
const program = `package main

import (
	"os"
	"time"
)

func main() {
	switch text, err := os.ReadFile("/text"); {
	case len(os.Args) == 2 && os.Args[1] == "wait":
		time.Sleep(1 << 62)
	case err != nil || len(os.Args) != 3 || os.Args[1] != "is" || os.Args[2] != string(text):
		os.Exit(3)
	}
}
`

// Push makes an image with a text, pushes it under a name of the registry, and returns
// the whole name and the digest.
func (r *Rig) Push(repository, text string) (ref, digest string) {
	r.t.Helper()
	ref = strings.TrimPrefix(r.registry.URL, "http://") + "/" + repository
	img := r.image(text)
	tag, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(tag, img)
	}
	if err != nil {
		r.t.Fatalf("pushing %s: %v", ref, err)
	}
	id, err := img.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	return ref, id.String()
}

func (r *Rig) image(text string) v1.Image {
	r.t.Helper()
	r.once.Do(r.compile)
	dir := r.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte(text), 0o644); err != nil { // #nosec read by the container
		r.t.Fatal(err)
	}
	img := empty.Image
	for _, from := range []string{filepath.Dir(r.binary), dir} {
		archive := filepath.Join(r.t.TempDir(), "layer.tar")
		if out, err := exec.Command("tar", "-C", from, "-cf", archive, ".").CombinedOutput(); err != nil {
			r.t.Fatalf("%v\n%s", err, out)
		}
		layer, err := tarball.LayerFromFile(archive)
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		r.t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config.Entrypoint = "linux", "amd64", []string{"/say"}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		r.t.Fatal(err)
	}
	return img
}

func (r *Rig) compile() {
	dir := r.t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.binary = filepath.Join(dir, "root", "say")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", r.binary, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("building the containers' program: %v\n%s", err, out)
	}
}

// CloseRegistry takes the network away: what is not here cannot be had.
func (r *Rig) CloseRegistry() { r.registry.Close() }

// Run runs nerdctl, which must succeed, and returns what it says on stdout.
func (r *Rig) Run(args ...string) string {
	r.t.Helper()
	out, err := r.Try(args...)
	if err != nil {
		r.t.Fatalf("nerdctl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// Args are the arguments of a command with those before it that lead to this rig.
func (r *Rig) Args(args ...string) []string {
	return append([]string{
		"--address", r.Address, "--namespace", r.Namespace, "--data-root", filepath.Join(r.Root, "nerdctl"),
		"--cni-netconfpath", filepath.Join(r.Root, "cni"), "--cni-path", r.plugins(), "--cgroup-manager", "cgroupfs",
	}, args...)
}

// plugins is a folder in which nerdctl sees that there are plugins for networks, as
// compose insists on. There are none: the networks none and host need none.
func (r *Rig) plugins() string {
	r.t.Helper()
	dir := filepath.Join(r.Root, "plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec of one test
		r.t.Fatal(err)
	}
	for _, name := range []string{"bridge", "host-local", "portmap", "firewall", "tuning"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/false\n"), 0o755); err != nil { // #nosec nerdctl looks whether it could run it
			r.t.Fatal(err)
		}
	}
	return dir
}

// Try runs nerdctl.
func (r *Rig) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Program, r.Args(args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), &failure{err, stderr.String()}
	}
	return strings.TrimSpace(string(out)), nil
}

// failure is how a command ended, with what it said.
type failure struct {
	error
	said string
}

func (f *failure) Error() string { return f.error.Error() + "\n" + f.said }

func (f *failure) Unwrap() error { return f.error }
