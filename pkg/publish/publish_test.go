package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPush(t *testing.T) {
	dir, reg := threePacks(t), newRegistry(t)
	var mu sync.Mutex
	var most progress.Event // events of two goroutines may arrive out of order
	o := quick()
	o.Progress = func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Done > most.Done {
			most = e
		}
	}
	d, err := Push(t.Context(), dir, reg.ref(":1.1"), o)
	if err != nil {
		t.Fatal(err)
	}
	if got, packs := pull(t, reg.ref(":1.1")); got != d || len(packs) != 3 {
		t.Errorf("the registry serves %s with packs %v, pushed was %s", got, packs, d)
	}
	if most.Phase != progress.Push || most.Total < 500_001 || most.Done != most.Total {
		t.Errorf("the furthest event is %+v, want the end", most)
	}

	most = progress.Event{}
	reg.requests("")
	again, err := Push(t.Context(), dir, reg.ref(":again"), o)
	if err != nil || again != d {
		t.Fatalf("second push: %s, %v", again, err)
	}
	for _, r := range reg.requests("") {
		if strings.Contains(r, "uploads") {
			t.Errorf("a blob that is there was sent again: %s", r)
		}
	}
	if most.Total == 0 || most.Done != most.Total {
		t.Errorf("a push without uploads ended at %+v", most)
	}
	if got, err := Push(t.Context(), dir, reg.ref("@"+d.String()), o); err != nil || got != d {
		t.Errorf("push to a digest: %s, %v", got, err)
	}
}

// Whoever sees the tag finds all of the image and its signatures.
func TestPushMovesTheTagLast(t *testing.T) {
	dir, reg, key := threePacks(t), newRegistry(t), testKey(t)
	signed, err := Sign(t.Context(), dir, key, quick())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Push(t.Context(), dir, reg.ref(":1.1"), quick()); err != nil {
		t.Fatal(err)
	}
	want := []string{"PUT /v2/os/manifests/" + signed.Digest.String(), "PUT /v2/os/manifests/" + signed.Tag, "PUT /v2/os/manifests/1.1"}
	puts := reg.requests("PUT ")
	if got := puts[len(puts)-1]; got != want[2] {
		t.Errorf("the last write is %s, want %s", got, want[2])
	}
	manifests := slices.DeleteFunc(slices.Clone(puts), func(s string) bool { return !strings.Contains(s, "/manifests/") })
	if !slices.Equal(manifests, want) {
		t.Errorf("manifests in the order %q, want %q", manifests, want)
	}
	if first := slices.Index(puts, want[0]); first != 4 { // config and three packs
		t.Errorf("the first manifest is write %d of %q, want it after 4 blobs", first, puts)
	}
}

func TestPushTriesAgain(t *testing.T) {
	dir, reg := threePacks(t), newRegistry(t)
	var mu sync.Mutex
	var failed atomic.Int32
	reg.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch || failed.Load() == 2 {
			return false
		}
		failed.Add(1)
		// Read what was sent, so that the progress has moved before it falls back.
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	o := quick()
	var last progress.Event
	o.Jobs = 1
	o.Progress = func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Done > e.Total {
			t.Errorf("progress beyond the end: %+v", e)
		}
		last = e
	}
	d, err := Push(t.Context(), dir, reg.ref(":1.1"), o)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := pull(t, reg.ref(":1.1")); got != d || failed.Load() != 2 || last.Done != last.Total {
		t.Errorf("served %s after %d failures, last event %+v", got, failed.Load(), last)
	}
}

// A request that was given up may still read its body while the next one runs.
func TestProgressDropsWhatAnAbandonedAttemptCounts(t *testing.T) {
	var sum int64
	b := &blob{add: func(n int64) { sum += n }}
	first := b.begin(0)
	first(70)
	second := b.begin(0)
	first(30)
	second(50)
	if sum != 50 {
		t.Errorf("the progress says %d bytes, want those of the second attempt, 50", sum)
	}
	b.begin(100)
	second(50)
	if sum != 100 {
		t.Errorf("at the end the progress says %d bytes of 100", sum)
	}
}

func TestPushReportsTheRegistry(t *testing.T) {
	dir := threePacks(t)
	for _, tt := range []struct {
		name   string
		status int
		want   error
	}{
		{"401", http.StatusUnauthorized, ErrDenied},
		{"403", http.StatusForbidden, ErrDenied},
		{"404", http.StatusNotFound, ErrNotFound},
		{"500", http.StatusInternalServerError, ErrRegistry},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := newRegistry(t)
			reg.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPost {
					w.WriteHeader(tt.status)
				}
				return r.Method == http.MethodPost
			}
			_, err := Push(t.Context(), dir, reg.ref(":1.1"), quick())
			if !errors.Is(err, ErrRegistry) || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "pushing to "+reg.ref(":1.1")) {
				t.Errorf("error = %v, want ErrRegistry and %v", err, tt.want)
			}
			for _, kind := range []error{ErrDenied, ErrNotFound} {
				if errors.Is(err, kind) && kind != tt.want {
					t.Errorf("error %v is also %v", err, kind)
				}
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		reg := newRegistry(t)
		reg.Close()
		if _, err := Push(t.Context(), dir, reg.ref(":1.1"), quick()); !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("error = %v", err)
		}
		if _, err := Sign(t.Context(), reg.ref(":1.1"), testKey(t), quick()); !errors.Is(err, ErrRegistry) {
			t.Errorf("sign: %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		reg := newRegistry(t)
		reg.intercept = func(http.ResponseWriter, *http.Request) bool { cancel(); return false }
		if _, err := Push(ctx, dir, reg.ref(":1.1"), quick()); !errors.Is(err, context.Canceled) || errors.Is(err, ErrRegistry) {
			t.Errorf("error = %v", err)
		}
	})
}

// The credentials are those that docker login and nerdctl login leave behind.
func TestPushLogsIn(t *testing.T) {
	dir, reg := threePacks(t), newRegistry(t)
	reg.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, ok := r.BasicAuth(); ok && user == "robot" && password == "pass word" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	home := t.TempDir()
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("HOME", home)
	o := quick()
	o.Keychain = nil
	if _, err := Push(t.Context(), dir, reg.ref(":1.1"), o); !errors.Is(err, ErrDenied) {
		t.Errorf("without credentials: %v", err)
	}
	host := strings.TrimPrefix(reg.URL, "http://")
	config := fmt.Sprintf(`{"auths":{%q:{"auth":"cm9ib3Q6cGFzcyB3b3Jk"}}}`, host) // robot:pass word
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Push(t.Context(), dir, reg.ref(":1.1"), o); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

func TestPushRefusesDamagedLayouts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, l layout, pack string)
		want   string
		also   error
	}{
		{"no marker", func(t *testing.T, l layout, _ string) { remove(t, filepath.Join(l.dir, "oci-layout")) }, "osctl build", nil},
		{"no index", func(t *testing.T, l layout, _ string) { remove(t, filepath.Join(l.dir, "index.json")) }, "index.json", os.ErrNotExist},
		{"a broken index", func(t *testing.T, l layout, _ string) { write(t, filepath.Join(l.dir, "index.json"), "{") }, "index.json", nil},
		{"an endless index", func(t *testing.T, l layout, _ string) {
			if err := os.Truncate(filepath.Join(l.dir, "index.json"), osimage.MaxManifest+1); err != nil {
				t.Fatal(err)
			}
		}, "larger than", nil},
		{"a digest that climbs out", func(t *testing.T, l layout, _ string) {
			writeIndex(t, l.dir, ocispec.Descriptor{Digest: "sha256:../../../etc/passwd"})
		}, "invalid checksum digest", nil},
		{"an altered manifest", func(t *testing.T, l layout, _ string) { write(t, l.blobPath(l.image.Digest()), "{}") }, "asked for was", osimage.ErrInvalid},
		{"an altered config", func(t *testing.T, l layout, _ string) { write(t, l.blobPath(l.image.ConfigDescriptor().Digest), "{}") }, "the manifest names", osimage.ErrInvalid},
		{"no OS image", func(t *testing.T, l layout, _ string) { writeIndex(t, l.dir) }, "no OS image", osimage.ErrNotOS},
		{"a container image", func(t *testing.T, l layout, _ string) {
			raw := mustJSON(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}})
			write(t, l.blobPath(digest.FromBytes(raw)), string(raw))
			writeIndex(t, l.dir, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))})
		}, "ordinary container image", osimage.ErrNotOS},
		{"two OS images", func(t *testing.T, l layout, _ string) {
			second, err := openLayout(testLayout(t, "1.2", []byte("x")))
			if err != nil {
				t.Fatal(err)
			}
			write(t, l.blobPath(second.image.Digest()), string(second.image.RawManifest()))
			write(t, l.blobPath(second.image.ConfigDescriptor().Digest), string(second.image.RawConfig()))
			writeIndex(t, l.dir, l.image.Descriptor(), second.image.Descriptor())
		}, "two OS images", nil},
		{"a missing pack", func(t *testing.T, _ layout, pack string) { remove(t, pack) }, "is missing", os.ErrNotExist},
		{"a short pack", func(t *testing.T, _ layout, pack string) { write(t, pack, "short") }, "5 bytes, the manifest says", nil},
		{"an altered pack", func(t *testing.T, _ layout, pack string) { write(t, pack, strings.Repeat("x", 300_000)) }, "does not have the digest", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, reg := threePacks(t), newRegistry(t)
			l, err := openLayout(dir)
			if err != nil {
				t.Fatal(err)
			}
			tt.damage(t, l, l.blobPath(l.image.Packs()[0].Digest))
			_, err = Push(t.Context(), dir, reg.ref(":1.1"), quick())
			if !errors.Is(err, ErrLayout) || errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), tt.want) || tt.also != nil && !errors.Is(err, tt.also) {
				t.Errorf("error = %v, want ErrLayout with %q and %v", err, tt.want, tt.also)
			}
			for _, r := range reg.requests("PUT ") {
				if strings.Contains(r, "/manifests/") {
					t.Errorf("a manifest was pushed: %s", r)
				}
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReferencesLeaveNothingToDefaults(t *testing.T) {
	dir, key := threePacks(t), testKey(t)
	for _, ref := range []string{"", "os", "os:1.2", "registry.example.com/os", "Registry.example.com/OS:1", "registry.example.com/os@sha256:12", "registry.example.com/os:1.2 ", "oci:dir"} {
		if _, err := Push(t.Context(), dir, ref, quick()); !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), fmt.Sprintf("%q", ref)) {
			t.Errorf("Push to %q: %v", ref, err)
		}
		if _, err := Sign(t.Context(), ref, key, quick()); !errors.Is(err, ErrReference) {
			t.Errorf("Sign %q: %v", ref, err)
		}
	}
	other := "registry.example.com/os@" + digest.FromString("other").String()
	if _, err := Push(t.Context(), dir, other, quick()); !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), "has the digest") {
		t.Errorf("Push to a foreign digest: %v", err)
	}
}

func TestPlainHTTPNeedsPermission(t *testing.T) {
	var went []string
	next := roundTripper(func(r *http.Request) (*http.Response, error) {
		went = append(went, r.URL.String())
		return &http.Response{StatusCode: http.StatusTeapot, Body: http.NoBody}, nil
	})
	for _, tt := range []struct {
		url       string
		plainHTTP bool
		pass      bool
	}{
		{"http://registry.example.com/v2/", false, false}, {"http://registry.example.com/v2/", true, true},
		{"https://registry.example.com/v2/", false, true},
		{"http://10.0.2.2:5000/v2/", false, false}, {"http://192.168.1.1/v2/", false, false}, {"http://box.local/v2/", false, false},
		{"http://localhost.example.com/v2/", false, false}, {"http://127.0.0.1.example.com/", false, false},
		{"http://localhost:5000/v2/", false, true}, {"http://127.0.0.1:5000/v2/", false, true}, {"http://127.8.8.8/v2/", false, true}, {"http://[::1]:5000/v2/", false, true},
	} {
		went = nil
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		_, err = guard{next, tt.plainHTTP}.RoundTrip(&http.Request{URL: u, Body: http.NoBody})
		if tt.pass != (len(went) == 1) || tt.pass != (err == nil) || !tt.pass && !errors.Is(err, errPlainHTTP) {
			t.Errorf("%s with permission %t: went %q, error %v", tt.url, tt.plainHTTP, went, err)
		}
	}
}

func TestRefusedPlainHTTPNamesThePermission(t *testing.T) {
	err := registryError("pushing", &url.Error{Op: "Get", Err: errPlainHTTP})
	if !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "--plain-http") {
		t.Errorf("error = %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
