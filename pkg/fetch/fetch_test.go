package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/assemble"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/sample"
)

var ctx = context.Background()

// faulty is a registry that can be told to misbehave. It counts what it serves.
type faulty struct {
	*httptest.Server
	mu    sync.Mutex
	bytes int64
	blobs int
	// noRange answers 416 to a request that would continue a download.
	noRange bool
	fault   func(w http.ResponseWriter, r *http.Request, next http.Handler) bool
}

func serve(t *testing.T) *faulty {
	t.Helper()
	h := &faulty{}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		fault := h.fault
		isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		if isBlob {
			h.blobs++
		}
		h.mu.Unlock()
		if fault != nil && fault(w, r, next) {
			return
		}
		counted := &counting{ResponseWriter: w, h: h, count: isBlob}
		if isBlob && r.Header.Get("Range") != "" && !h.noRange {
			// The library's registry knows no open-ended ranges.
			rec := httptest.NewRecorder()
			full := r.Clone(r.Context())
			full.Header.Del("Range")
			next.ServeHTTP(rec, full)
			http.ServeContent(counted, r, "", time.Time{}, bytes.NewReader(rec.Body.Bytes()))
			return
		}
		next.ServeHTTP(counted, r)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *faulty) set(fault func(w http.ResponseWriter, r *http.Request, next http.Handler) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.bytes, h.blobs = fault, 0, 0
}

func (h *faulty) name(tag string) string {
	return strings.TrimPrefix(h.URL, "http://") + "/os:" + tag
}

type counting struct {
	http.ResponseWriter
	h     *faulty
	count bool
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if c.count {
		c.h.mu.Lock()
		c.h.bytes += int64(n)
		c.h.mu.Unlock()
	}
	return n, err
}

// client fetches into a store in a folder, and does not pause between attempts.
func client(t *testing.T, store *Store) *Registry {
	t.Helper()
	if store == nil {
		var err error
		if store, err = OpenStore(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	r := NewRegistry(ctx, store, t.TempDir())
	r.pause = func(context.Context, int) error { return nil }
	return r
}

func push(t *testing.T, h *faulty, img sample.Image, tag string) {
	t.Helper()
	key, _, _ := sample.Key(t)
	if _, err := publish.Push(ctx, img.Signed(t, key), h.name(tag), publish.Options{}); err != nil {
		t.Fatal(err)
	}
}

// way is how packs come: into memory, or kept in the store first.
type way string

const (
	direct way = "into memory"
	kept   way = "into the store"
)

// bothWays runs a test for each way.
func bothWays(t *testing.T, test func(t *testing.T, w way)) {
	t.Helper()
	for _, w := range []way{direct, kept} {
		t.Run(string(w), func(t *testing.T) { test(t, w) })
	}
}

// pull runs the whole way and returns the raw image.
func (w way) pull(ref Ref) ([]byte, error) {
	img, err := ref.Describe(ctx)
	if err != nil {
		return nil, err
	}
	blobs, err := ref.Blobs(ctx, nil)
	if err != nil {
		return nil, err
	}
	all := func(int) bool { return false }
	if w == kept {
		if err := assemble.Fetch(ctx, img, all, blobs); err != nil {
			return nil, err
		}
	}
	raw := make([]byte, img.Config().Rootfs.Size)
	err = assemble.Segments(ctx, img, all, blobs, func(i int, data []byte) error {
		copy(raw[i*osimage.SegmentSize:], data)
		return nil
	})
	return raw, err
}

func TestRegistry(t *testing.T) {
	h := serve(t)
	want := sample.Image{Seed: 1}
	push(t, h, want, "1.1")
	ref, err := client(t, nil).Resolve(ctx, h.name("1.1"))
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := ref.Signatures(ctx)
	if err != nil || len(sigs) != 1 || sigs[0].Base64 == "" || !bytes.Contains(sigs[0].Payload, []byte(ref.Digest())) {
		t.Errorf("signatures %+v, %v", sigs, err)
	}
	for _, w := range []way{direct, kept} {
		raw, err := w.pull(ref)
		if err != nil || !bytes.Equal(raw, want.Raw()) {
			t.Errorf("%s: the image came back wrong: %v", w, err)
		}
	}
	for _, w := range []way{direct, kept} {
		h.set(nil)
		if raw, err := w.pull(ref); err != nil || !bytes.Equal(raw, want.Raw()) || h.blobs != 1 {
			t.Errorf("once kept, %s: %v, %d blobs fetched, want the config only", w, err, h.blobs)
		}
	}
}

// A tag that moves after it was resolved changes nothing.
func TestTagMoves(t *testing.T) {
	h := serve(t)
	want := sample.Image{Seed: 1}
	push(t, h, want, "1.1")
	ref, err := client(t, nil).Resolve(ctx, h.name("1.1"))
	if err != nil {
		t.Fatal(err)
	}
	push(t, h, sample.Image{Seed: 2}, "1.1")
	if raw, err := direct.pull(ref); err != nil || !bytes.Equal(raw, want.Raw()) {
		t.Errorf("the image came back wrong: %v", err)
	}
}

func TestUnsigned(t *testing.T) {
	h := serve(t)
	if _, err := publish.Push(ctx, sample.Image{}.Layout(t), h.name("1"), publish.Options{}); err != nil {
		t.Fatal(err)
	}
	ref, err := client(t, nil).Resolve(ctx, h.name("1"))
	if err != nil {
		t.Fatal(err)
	}
	if sigs, err := ref.Signatures(ctx); err != nil || len(sigs) != 0 {
		t.Errorf("signatures %v, %v", sigs, err)
	}
}

func isPack(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

// cut serves the first half of every blob that is asked for from its start.
func cut(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
	if !isPack(r) || r.Header.Get("Range") != "" && !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
		return false
	}
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	if rec.Body.Len() < 1<<20 {
		return false // manifest and config arrive whole
	}
	w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes()[:rec.Body.Len()/2]) //nolint:errcheck // the connection is cut on purpose
	panic(http.ErrAbortHandler)
}

func TestBrokenTransfersGoOn(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		h := serve(t)
		want := sample.Image{Seed: 3}
		push(t, h, want, "1")
		ref, err := client(t, nil).Resolve(ctx, h.name("1"))
		if err != nil {
			t.Fatal(err)
		}
		h.set(cut)
		if raw, err := w.pull(ref); err != nil || !bytes.Equal(raw, want.Raw()) {
			t.Errorf("the image came back wrong: %v", err)
		}
		img, err := ref.Describe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// What came before the cut is not fetched again; the halves that the fault
		// served itself are not counted.
		if limit := img.CompressedSize()*3/4 + 1<<20; h.bytes > limit {
			t.Errorf("fetched %d bytes after the cuts, want at most %d of %d", h.bytes, limit, img.CompressedSize())
		}
	})
}

// A registry without ranges gets the whole request again.
func TestBrokenTransferWithoutRanges(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		h := serve(t)
		h.noRange = true
		want := sample.Image{Seed: 3}
		push(t, h, want, "1")
		ref, err := client(t, nil).Resolve(ctx, h.name("1"))
		if err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		h.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) (handled bool) {
			if isPack(r) && !strings.Contains(r.URL.Path, ref.Digest().Encoded()) {
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				if rec.Body.Len() < 1<<20 {
					return false
				}
				once.Do(func() {
					w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
					w.Write(rec.Body.Bytes()[:rec.Body.Len()/2]) //nolint:errcheck // cut on purpose
					panic(http.ErrAbortHandler)
				})
			}
			return false
		})
		if raw, err := w.pull(ref); err != nil || !bytes.Equal(raw, want.Raw()) {
			t.Errorf("the image came back wrong: %v", err)
		}
	})
}

func TestRegistryFaults(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		status := func(code int) func(http.ResponseWriter, *http.Request, http.Handler) bool {
			return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
				w.WriteHeader(code)
				return true
			}
		}
		whole := func(change func([]byte) []byte) func(http.ResponseWriter, *http.Request, http.Handler) bool {
			return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				if !isPack(r) {
					return false
				}
				rec := httptest.NewRecorder()
				r.Header.Del("Range")
				next.ServeHTTP(rec, r)
				if rec.Body.Len() < 1<<20 {
					return false
				}
				w.Write(change(rec.Body.Bytes())) //nolint:errcheck // whatever arrives
				return true
			}
		}
		for name, tt := range map[string]struct {
			fault func(http.ResponseWriter, *http.Request, http.Handler) bool
			is    error
			want  string
		}{
			"other bytes": {whole(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), ErrRegistry, "another digest"},
			"too short":   {whole(func(b []byte) []byte { return b[:len(b)/2] }), ErrRegistry, ""},
			"empty":       {whole(func([]byte) []byte { return nil }), ErrRegistry, ""},
			"401":         {status(http.StatusUnauthorized), ErrDenied, "nerdctl login"},
			"403":         {status(http.StatusForbidden), ErrDenied, "nerdctl login"},
			"404":         {status(http.StatusNotFound), ErrNotFound, ""},
			"500":         {status(http.StatusInternalServerError), ErrRegistry, "500"},
		} {
			t.Run(name, func(t *testing.T) {
				h := serve(t)
				want := sample.Image{Seed: 4}
				push(t, h, want, "1")
				r := client(t, nil)
				ref, err := r.Resolve(ctx, h.name("1"))
				if err != nil {
					t.Fatal(err)
				}
				h.set(tt.fault)
				if _, err := w.pull(ref); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error = %v, want %v with %q", err, tt.is, tt.want)
				}
				h.set(nil)
				if raw, err := w.pull(ref); err != nil || !bytes.Equal(raw, want.Raw()) {
					t.Errorf("after the fault has ended: %v", err)
				}
			})
		}
	})
}

func TestResolveFaults(t *testing.T) {
	h := serve(t)
	r := client(t, nil)
	for name, want := range map[string]error{
		h.name("none"): ErrNotFound, "no-tag.example.com/os": ErrReference, "": ErrReference, "UPPER CASE": ErrReference,
		"127.0.0.1:1/os:1": ErrRegistry,
	} {
		if _, err := r.Resolve(ctx, name); !errors.Is(err, want) {
			t.Errorf("Resolve(%q) = %v, want %v", name, err, want)
		}
	}
	if _, err := (Ref{}).Describe(ctx); !errors.Is(err, errUnresolved) {
		t.Errorf("the zero Ref: %v", err)
	}
}

func TestLayoutFolderAndArchive(t *testing.T) {
	want := sample.Image{Seed: 5}
	key, _, _ := sample.Key(t)
	dir := want.Signed(t, key)
	archive := filepath.Join(t.TempDir(), "os.oci")
	if out, err := exec.Command("tar", "-C", dir, "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, path := range []string{dir, archive} {
		l, err := OpenLayout(path)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := l.Resolve(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		if sigs, err := ref.Signatures(ctx); err != nil || len(sigs) != 1 {
			t.Errorf("%s: signatures %v, %v", path, sigs, err)
		}
		if raw, err := direct.pull(ref); err != nil || !bytes.Equal(raw, want.Raw()) {
			t.Errorf("%s: the image came back wrong: %v", path, err)
		}
		if _, err := l.Resolve(ctx, "sha256:"+strings.Repeat("0", 64)); !errors.Is(err, ErrLayout) {
			t.Errorf("%s: another digest: %v", path, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenLayoutRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("not a tar "), 200), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{dir: ErrLayout, text: ErrLayout, filepath.Join(dir, "none"): os.ErrNotExist} {
		if _, err := OpenLayout(path); !errors.Is(err, want) {
			t.Errorf("OpenLayout(%s) = %v, want %v", path, err, want)
		}
	}
	img := sample.Image{Seed: 6}.Layout(t)
	blobs, err := filepath.Glob(filepath.Join(img, "blobs", "sha256", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if err := os.WriteFile(b, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLayout(img)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ref.Describe(ctx); !errors.Is(err, osimage.ErrInvalid) {
		t.Errorf("altered blobs: %v", err)
	}
}

// A pack that is too large for memory goes through the store.
func TestLargePack(t *testing.T) {
	h := serve(t)
	data := make([]byte, maxBuffered+1)
	desc := ocispec.Descriptor{MediaType: osimage.MediaTypePack, Digest: digest.FromBytes(data), Size: int64(len(data))}
	fetched := 0
	h.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.Contains(r.URL.Path, desc.Digest.String()) {
			return false
		}
		fetched++
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return true
	})
	push(t, h, sample.Image{Seed: 1, MiB: 2}, "1")
	ref, err := client(t, nil).Resolve(ctx, h.name("1"))
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := ref.Blobs(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		rc, err := blobs.Open(ctx, desc)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if err = errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got, data) || fetched != 1 {
			t.Errorf("%d bytes, fetched %d times, %v", len(got), fetched, err)
		}
	}
}
