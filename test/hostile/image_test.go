package hostile

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/publish"
)

// crafted is an artifact on its way: what a hostile publisher, or a broken builder,
// makes and signs.
type crafted struct {
	t        *testing.T
	dir      string
	manifest ocispec.Manifest
	config   osimage.Config
	raw      []byte // the config, when it is not the encoding of config
}

// craft copies a layout, lets change work on it, and signs it if there is a key.
func (s *site) craft(t *testing.T, from string, key *publish.Key, change func(*crafted)) string {
	t.Helper()
	c := &crafted{t: t, dir: filepath.Join(t.TempDir(), "layout")}
	if err := os.CopyFS(c.dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	readJSON(t, filepath.Join(c.dir, "index.json"), &index)
	for _, d := range index.Manifests {
		if !strings.HasSuffix(d.Annotations[ocispec.AnnotationRefName], ".sig") {
			readJSON(t, filepath.Join(c.dir, "blobs/sha256", d.Digest.Encoded()), &c.manifest)
		}
	}
	readJSON(t, filepath.Join(c.dir, "blobs/sha256", c.manifest.Config.Digest.Encoded()), &c.config)
	change(c)
	if c.raw == nil {
		c.raw = c.encode(c.config)
	}
	c.manifest.Config.Digest, c.manifest.Config.Size = c.blob(c.raw), int64(len(c.raw))
	manifest := c.encode(c.manifest)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: c.manifest.ArtifactType, Digest: c.blob(manifest), Size: int64(len(manifest))}
	list := c.encode(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}})
	if err := os.WriteFile(filepath.Join(c.dir, "index.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	if key != nil {
		if _, err := publish.Sign(t.Context(), c.dir, key, publish.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return c.dir
}

func (c *crafted) encode(v any) []byte {
	c.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		c.t.Fatal(err)
	}
	return data
}

// blob stores a blob.
func (c *crafted) blob(data []byte) digest.Digest {
	c.t.Helper()
	d := digest.FromBytes(data)
	if err := os.WriteFile(filepath.Join(c.dir, "blobs/sha256", d.Encoded()), data, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return d
}

// pack replaces a pack by other bytes.
func (c *crafted) pack(n int, change func(old []byte) []byte) {
	c.t.Helper()
	l := &c.manifest.Layers[n]
	old, err := os.ReadFile(filepath.Join(c.dir, "blobs/sha256", l.Digest.Encoded()))
	if err != nil {
		c.t.Fatal(err)
	}
	data := change(old)
	l.Digest, l.Size = c.blob(data), int64(len(data))
}

// layer adds a layer of any type before all others.
func (c *crafted) layer(mediaType string, data []byte) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: c.blob(data), Size: int64(len(data))}
	c.manifest.Layers = append([]ocispec.Descriptor{d}, c.manifest.Layers...)
}

// skippable is a zstd frame that decodes to nothing.
func skippable(text string) []byte {
	return append([]byte{0x50, 0x2a, 0x4d, 0x18, byte(len(text)), 0, 0, 0}, text...)
}

// windowed compresses zeros with a window of so many bytes.
func windowed(t *testing.T, window, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sized makes the config one of an image of so many bytes, with segment digests for
// the first ones only, or for all.
func (c *crafted) sized(size int64, all bool) {
	r := &c.config.Rootfs
	had := r.Segments()
	r.Size = size
	if !all {
		return
	}
	zero := sha256.Sum256(make([]byte, osimage.SegmentSize))
	for range r.Segments() - had {
		r.SegmentDigests = append(r.SegmentDigests, zero[:]...)
	}
	r.PackSegments[len(r.PackSegments)-1] += r.Segments() - had
}
