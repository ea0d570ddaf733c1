package daemon

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Nerdctl runs the real nerdctl on this containerd, in its namespace default, and
// returns what it prints. The networks none and host work; for others this machine has
// no plugins, and nerdctl only wants to see that there are some.
func (d *Daemon) Nerdctl(t testing.TB, args ...string) string {
	t.Helper()
	plugins := d.path("cni")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bridge", "host-local", "portmap", "firewall", "tuning"} {
		if err := os.WriteFile(filepath.Join(plugins, name), []byte("#!/bin/false\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(filepath.Dir(d.binary), "nerdctl")
	if _, err := os.Stat(binary); err != nil {
		unavailable(t, "nerdctl is not built: %v; run make tools", err)
	}
	cmd := exec.CommandContext(t.Context(), binary, append([]string{
		"--address", d.Address, "--data-root", d.path("nerdctl"), "--cni-path", plugins, "--cni-netconfpath", d.path("nets"),
	}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nerdctl %q: %v\n%s%s", args, err, out, errs.Bytes())
	}
	return string(out)
}

// LoadApp gives nerdctl an image of the program of package app with the given labels,
// whose containers wait unless they are told something else. root is of BuildApp.
func (d *Daemon) LoadApp(t testing.TB, root, image string, labels map[string]string) {
	t.Helper()
	img, err := appImage(filepath.Join(root, "app"), labels)
	if err != nil {
		t.Fatalf("making image %s: %v", image, err)
	}
	tag, err := name.NewTag(image)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatalf("making image %s: %v", image, err)
	}
	d.Nerdctl(t, "load", "-i", archive)
}

func appImage(binary string, labels map[string]string) (v1.Image, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading its configuration: %w", err)
	}
	config.Architecture, config.OS = "amd64", "linux"
	config.Config = v1.Config{Entrypoint: []string{"/app"}, Cmd: []string{"wait"}, Labels: labels}
	return mutate.ConfigFile(img, config)
}
