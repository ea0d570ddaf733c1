package publish

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testLayout writes a layout with one OS image; each pack is one blob.
func testLayout(t testing.TB, version string, packs ...[]byte) string {
	t.Helper()
	l := layout{dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		if err := os.WriteFile(l.blobPath(d), data, 0o644); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	config := osimage.Config{
		Product: "gateway", Version: version, Architecture: "amd64", Created: time.Unix(0, 0).UTC(), Kernel: "/boot/vmlinuz",
		Rootfs: osimage.Rootfs{Filesystem: "ext4", Digest: digest.FromString("raw"), SegmentSize: osimage.SegmentSize},
	}
	var layers []ocispec.Descriptor
	for _, p := range packs {
		layers = append(layers, blob(osimage.MediaTypePack, p))
		// As many segments as would fill it, uncompressed.
		segments := max(1, len(p)/osimage.SegmentSize)
		config.Rootfs.PackSegments = append(config.Rootfs.PackSegments, segments)
		config.Rootfs.Size += int64(segments) * osimage.SegmentSize
		config.Rootfs.SegmentDigests = append(config.Rootfs.SegmentDigests, make([]byte, segments*sha256.Size)...)
	}
	manifest, desc, err := osimage.Manifest(blob(osimage.MediaTypeConfig, mustJSON(t, config)), layers, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob(desc.MediaType, manifest)
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: version}
	writeIndex(t, l.dir, desc)
	if err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	return l.dir
}

func writeIndex(t testing.TB, dir string, entries ...ocispec.Descriptor) {
	t.Helper()
	index := mustJSON(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func threePacks(t testing.TB) string {
	return testLayout(t, "1.1", bytes.Repeat([]byte("a"), 300_000), bytes.Repeat([]byte("b"), 200_000), []byte("c"))
}

// testRegistry is a registry that remembers what it was asked for and lets a
// test stand in its way.
type testRegistry struct {
	*httptest.Server
	intercept func(w http.ResponseWriter, r *http.Request) bool // true: answered

	mu  sync.Mutex
	log []string
}

func newRegistry(t testing.TB, options ...registry.Option) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	handler := registry.New(append(options, registry.Logger(log.New(io.Discard, "", 0)))...)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.log = append(r.log, req.Method+" "+req.URL.Path)
		r.mu.Unlock()
		if r.intercept == nil || !r.intercept(w, req) {
			handler.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) ref(suffix string) string {
	return strings.TrimPrefix(r.URL, "http://") + "/os" + suffix
}

// requests returns what was asked since the last call.
func (r *testRegistry) requests(prefix string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	log := r.log
	r.log = nil
	return slices.DeleteFunc(log, func(s string) bool { return !strings.HasPrefix(s, prefix) })
}

// quick makes attempts follow each other without a pause worth noticing.
func quick() Options {
	return Options{Keychain: authn.NewMultiKeychain(), backoff: &remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 3}}
}

// pull reads a manifest and all that it names back.
func pull(t testing.TB, ref string) (digest.Digest, map[string]int) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int{}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, rc) // the library verifies the digest
		if err != nil {
			t.Fatal(err)
		}
		h, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		sizes[h.String()] = int(n)
	}
	if _, err := img.RawConfigFile(); err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String()), sizes
}
