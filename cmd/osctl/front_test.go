package main

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// front is a registry as osctl sees it: it counts the packs that are asked for
// and can be told to refuse or to stall. Behind it stands the library's registry
// in memory or a real one.
type front struct {
	*httptest.Server
	mu     sync.Mutex
	asked  map[string]int // GETs of blobs of more than a pack's least size, by digest
	status int            // answer everything with this, if not 0
	// stallAt holds the nth and all later requests for packs, once their first
	// bytes are out, until the script ends.
	stallAt int
	flip    bool          // change a byte of every pack
	stalled chan struct{} // closed when the first request is held
	resume  chan struct{} // closed at the end
}

// smallBlob is more than a config or a signature has in these tests, and less
// than a pack.
const smallBlob = 64 << 10

func newFront(t testing.TB, next http.Handler) *front {
	f := &front{asked: map[string]int{}, stalled: make(chan struct{}), resume: make(chan struct{})}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.serve(w, r, next) }))
	t.Cleanup(func() {
		close(f.resume)
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// memoryRegistry is the library's registry, which takes no open-ended ranges.
func memoryRegistry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

// before puts a front before a real registry.
func before(addr string) http.Handler {
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	return proxy
}

func (f *front) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *front) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	f.mu.Lock()
	status := f.status
	f.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	digest := regexp.MustCompile(`/blobs/(sha256:[0-9a-f]{64})$`).FindStringSubmatch(r.URL.Path)
	if r.Method != http.MethodGet || digest == nil {
		next.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	next.ServeHTTP(rec, whole)
	if rec.Code == http.StatusOK && rec.Body.Len() > smallBlob {
		w = f.count(w, digest[1])
		f.mu.Lock()
		if f.flip {
			rec.Body.Bytes()[rec.Body.Len()/2] ^= 1
		}
		f.mu.Unlock()
	}
	if rec.Code != http.StatusOK {
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()) //nolint:errcheck // the client may be gone
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(rec.Body.Bytes()))
}

// count notes a request for a pack and stalls it if its turn has come.
func (f *front) count(w http.ResponseWriter, digest string) http.ResponseWriter {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[digest]++
	if f.stallAt == 0 || f.total() < f.stallAt {
		return w
	}
	if f.total() == f.stallAt {
		close(f.stalled)
	}
	return &stalling{ResponseWriter: w, resume: f.resume}
}

func (f *front) total() int {
	n := 0
	for _, k := range f.asked {
		n += k
	}
	return n
}

// set changes how it behaves from now on, and forgets what it counted.
func (f *front) set(status, stallAt int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status, f.stallAt, f.flip = status, stallAt, false
	f.asked = map[string]int{}
}

// repeated says how often the pack was asked for that was asked for most often,
// and which of the given ones were asked for at all.
func (f *front) repeated(done []string) (most int, again []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for digest, n := range f.asked {
		most = max(most, n)
		if slices.Contains(done, digest) {
			again = append(again, digest)
		}
	}
	return most, again
}

// wasAsked reports whether a pack was asked for.
func (f *front) wasAsked(digest string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[digest] > 0
}

// packs is how often packs were asked for.
func (f *front) packs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total()
}

// stalling sends the first bytes and then waits.
type stalling struct {
	http.ResponseWriter
	resume chan struct{}
	sent   bool
}

func (s *stalling) Write(p []byte) (int, error) {
	if s.sent {
		<-s.resume
		return s.ResponseWriter.Write(p)
	}
	s.sent = true
	first := min(len(p), 4096)
	n, err := s.ResponseWriter.Write(p[:first])
	if err != nil {
		return n, err
	}
	if flusher, ok := s.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
	<-s.resume
	more, err := s.ResponseWriter.Write(p[first:])
	return n + more, err
}
