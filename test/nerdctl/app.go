package nerdctl

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// LoadApp loads an image of the program of package daemon/app with the given labels, whose
// containers wait unless they are told something else. root is of daemon.BuildApp.
func (r *Rig) LoadApp(root, image string, labels map[string]string) {
	r.t.Helper()
	img, err := appImage(filepath.Join(root, "app"), labels)
	if err != nil {
		r.t.Fatalf("making image %s: %v", image, err)
	}
	tag, err := name.NewTag(image)
	if err != nil {
		r.t.Fatal(err)
	}
	archive := filepath.Join(r.t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		r.t.Fatalf("making image %s: %v", image, err)
	}
	r.Run("load", "-i", archive)
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
