package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// image is one built, signed and pushed OS image.
type image struct {
	version    string
	ref        string
	layout     string
	digest     digest.Digest
	packs      []ocispec.Descriptor
	compressed int64
	size       int64
	build      cost
}

// publish builds, signs and pushes a tree as an image of the given size in MiB.
func (m *machine) publish(b *testing.B, tree, version string, mib string) image {
	b.Helper()
	i := image{version: version, layout: filepath.Join(m.dir, "layout-"+version), ref: m.registry.Addr + "/bench/os:" + version}
	i.build = m.run(b, m.osctl, "build", "--rootfs", tree, "--product", "bench", "--version", version, "--size", mib,
		"--created", "2026-01-01T00:00:00Z", "--progress", "none", "-o", i.layout)
	m.run(b, m.osctl, "sign", i.layout, "--key", filepath.Join(m.dir, "cosign.key"))
	m.run(b, m.osctl, "push", "--progress", "none", i.layout, i.ref)

	var index ocispec.Index
	i.read(b, "index.json", &index)
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == version {
			i.digest = d.Digest
		}
	}
	var manifest ocispec.Manifest
	i.read(b, i.blob(i.digest), &manifest)
	i.packs = manifest.Layers
	for _, p := range i.packs {
		i.compressed += p.Size
	}
	var config osimage.Config
	i.read(b, i.blob(manifest.Config.Digest), &config)
	i.size = config.Rootfs.Size
	return i
}

func (i *image) blob(d digest.Digest) string { return filepath.Join("blobs/sha256", d.Encoded()) }

func (i *image) read(b *testing.B, name string, v any) {
	b.Helper()
	data, err := os.ReadFile(filepath.Join(i.layout, name))
	check(b, err)
	check(b, json.Unmarshal(data, v))
}

// raw decodes the image: all packs in order.
func (i *image) raw(b *testing.B) io.Reader {
	b.Helper()
	var parts []io.Reader
	for _, p := range i.packs {
		file, err := os.Open(filepath.Join(i.layout, i.blob(p.Digest)))
		check(b, err)
		b.Cleanup(func() { file.Close() })
		parts = append(parts, file)
	}
	d, err := zstd.NewReader(io.MultiReader(parts...), zstd.WithDecoderConcurrency(1))
	check(b, err)
	return d
}

// difference is the number of bytes in the blocks of 4 KiB in which two readers
// of equal length differ.
func difference(b *testing.B, x, y io.Reader) int64 {
	b.Helper()
	const block = 4096
	var n int64
	p, q := make([]byte, block), make([]byte, block)
	for {
		_, errX := io.ReadFull(x, p)
		_, errY := io.ReadFull(y, q)
		if errors.Is(errX, io.EOF) && errors.Is(errY, io.EOF) {
			return n
		}
		check(b, errors.Join(errX, errY))
		if !bytes.Equal(p, q) {
			n += block
		}
	}
}
