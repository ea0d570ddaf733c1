// Package hostile is a registry that serves real OS artifacts over real HTTP and
// misbehaves on command: for a kind of request, for the nth of them, at any byte.
//
// It knows what the right answer to a request is, computes it, and lets a Fault
// change it before it goes out. It counts what it was asked for and what it sent.
// It promises nothing about what a client does with that: the tests do.
package hostile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// Kind is what a request is for.
type Kind string

// The kinds. Tag is the manifest of an image asked for by its tag, Manifest the
// same by its digest; SignatureTag and Signature are those of its signatures.
// Referrers is the referrers API, which is not there until Refer is called, and
// ReferrersTag the tag that stands in for it.
const (
	Tag          Kind = "tag"
	Manifest     Kind = "manifest"
	Config       Kind = "config"
	Pack         Kind = "pack"
	SignatureTag Kind = "signature tag"
	Signature    Kind = "signature manifest"
	Payload      Kind = "signature payload"
	Referrers    Kind = "referrers"
	ReferrersTag Kind = "referrers tag"
	Token        Kind = "token"
	Any          Kind = ""
)

// Request is one that came in.
type Request struct {
	Kind   Kind
	Method string
	Digest digest.Digest // of the content that the answer should have
	Header http.Header
	// Sent is the number of bytes of the body that went out.
	Sent int64
}

// Repository is the only one.
const Repository = "gateway/os"

// Registry is the server. Its zero value is of no use.
type Registry struct {
	*httptest.Server
	mu       sync.Mutex
	tags     map[string]ocispec.Descriptor
	blobs    map[digest.Digest][]byte
	kinds    map[digest.Digest]Kind
	refers   []ocispec.Descriptor
	rules    []*rule
	requests []*Request
	released chan struct{} // closed when held requests may end
	tokens   *tokens
}

// rule is a fault and the requests that it is for.
type rule struct {
	kind  Kind
	nth   int // 0 for every request, else the one with this number
	seen  int
	fault Fault
}

// New starts a registry over plain HTTP.
func New(t testing.TB) *Registry { return start(t, "127.0.0.1:0", false) }

// NewTLS starts a registry with TLS.
func NewTLS(t testing.TB) *Registry { return start(t, "127.0.0.1:0", true) }

// At starts a registry over plain HTTP at an address.
func At(t testing.TB, address string) *Registry { return start(t, address, false) }

func start(t testing.TB, address string, tls bool) *Registry {
	t.Helper()
	r := &Registry{
		tags: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}, kinds: map[digest.Digest]Kind{},
		released: make(chan struct{}),
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}}
	if tls {
		r.StartTLS()
	} else {
		r.Start()
	}
	t.Cleanup(func() {
		r.Behave()
		r.CloseClientConnections()
		r.Close()
	})
	return r
}

// Host is its host and port.
func (r *Registry) Host() string { return r.Listener.Addr().String() }

// Name is the reference of a tag.
func (r *Registry) Name(tag string) string { return r.Host() + "/" + Repository + ":" + tag }

// Load serves the image of an OCI layout under a tag, with its signatures, and
// returns its digest. A tag that is there moves.
func (r *Registry) Load(t testing.TB, layout, tag string) digest.Digest {
	t.Helper()
	var index ocispec.Index
	r.mu.Lock()
	defer r.mu.Unlock()
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	var image digest.Digest
	for _, d := range index.Manifests {
		name := d.Annotations[ocispec.AnnotationRefName]
		if strings.HasSuffix(name, ".sig") {
			r.tags[name] = d
			r.take(t, layout, d, Signature)
			continue
		}
		image = d.Digest
		r.tags[tag] = d
		r.take(t, layout, d, Manifest)
	}
	return image
}

// take reads a manifest and what it names.
func (r *Registry) take(t testing.TB, layout string, d ocispec.Descriptor, kind Kind) {
	var m ocispec.Manifest
	readJSON(t, filepath.Join(layout, "blobs/sha256", d.Digest.Encoded()), &m)
	layer := Pack
	if kind == Signature {
		layer = Payload
	}
	r.add(t, layout, d.Digest, kind)
	r.add(t, layout, m.Config.Digest, Config)
	for _, l := range m.Layers {
		r.add(t, layout, l.Digest, layer)
	}
}

func (r *Registry) add(t testing.TB, layout string, d digest.Digest, kind Kind) {
	data, err := os.ReadFile(filepath.Join(layout, "blobs/sha256", d.Encoded()))
	if errors.Is(err, fs.ErrNotExist) {
		return // named and not there: it is not found
	}
	if err != nil {
		t.Fatal(err)
	}
	r.blobs[d], r.kinds[d] = data, kind
}

func readJSON(t testing.TB, name string, to any) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Put serves any bytes as a manifest under a tag, and returns their digest.
func (r *Registry) Put(tag string, data []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.tags[tag] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(data))}
	r.blobs[d], r.kinds[d] = data, Manifest
	if strings.HasSuffix(tag, ".sig") {
		r.kinds[d] = Signature
	}
	return d
}

// PutBlob serves any bytes as a blob.
func (r *Registry) PutBlob(kind Kind, data []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[d], r.kinds[d] = data, kind
	return d
}

// digest is what a tag means now.
func (r *Registry) digest(tag string) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tags[tag].Digest
}

// SignatureTag is the tag of the classic signatures of an image.
func (r *Registry) SignatureTag(image digest.Digest) string { return osimage.SignatureTag(image) }

// Break lets every request of a kind go wrong from now on.
func (r *Registry) Break(kind Kind, fault Fault) { r.BreakNth(kind, 0, fault) }

// BreakNth lets one request of a kind go wrong, counted from 1 and from now on.
func (r *Registry) BreakNth(kind Kind, nth int, fault Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = append(r.rules, &rule{kind: kind, nth: nth, fault: fault})
}

// Behave ends all faults and what they hold back.
func (r *Registry) Behave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules, r.tokens, r.refers = nil, nil, nil
	close(r.released)
	r.released = make(chan struct{})
}

// Forget begins to count anew.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Requests are those since the last Forget.
func (r *Registry) Requests(kind Kind) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Request
	for _, q := range r.requests {
		if kind == Any || q.Kind == kind {
			list = append(list, *q)
		}
	}
	return list
}

// Sent is how many bytes of a kind went out since the last Forget.
func (r *Registry) Sent(kind Kind) int64 {
	var n int64
	for _, q := range r.Requests(kind) {
		n += q.Sent
	}
	return n
}

// Size is how many bytes the registry holds of a kind.
func (r *Registry) Size(kind Kind) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var n int64
	for d, data := range r.blobs {
		if r.kinds[d] == kind {
			n += int64(len(data))
		}
	}
	return n
}

// ServeHTTP answers a request: rightly, then changed by the faults.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	a, q := r.answer(req)
	r.mu.Lock()
	r.requests = append(r.requests, q)
	released := r.released
	var faults []Fault
	for _, rule := range r.rules {
		if rule.kind != Any && rule.kind != q.Kind {
			continue
		}
		rule.seen++
		if rule.nth == 0 || rule.nth == rule.seen {
			faults = append(faults, rule.fault)
		}
	}
	r.mu.Unlock()
	for _, f := range faults {
		f(a)
	}
	a.send(w, req, released, func(n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		q.Sent += int64(n)
	})
}

// path matches what a client reads of the distribution API.
func path() *regexp.Regexp {
	return regexp.MustCompile(`^/v2/` + Repository + `/(manifests|blobs|referrers)/([^/]+)$`)
}

// answer is the right answer to a request.
func (r *Registry) answer(req *http.Request) (*Answer, *Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := &Request{Method: req.Method, Header: req.Header.Clone()}
	a := &Answer{Request: req, Status: http.StatusNotFound, Header: http.Header{}, Declared: right, Cut: whole}
	m := path().FindStringSubmatch(req.URL.Path)
	if m == nil {
		if r.tokens != nil && req.URL.Path == "/token" {
			q.Kind = Token
			r.tokens.issue(a)
		}
		return a, q
	}
	q.Digest = digest.Digest(m[2])
	if d, ok := r.tags[m[2]]; ok {
		q.Kind, q.Digest = Tag, d.Digest
	}
	switch {
	case strings.HasSuffix(m[2], ".sig"):
		q.Kind = SignatureTag
	case m[1] == "referrers":
		q.Kind = Referrers
	case strings.HasPrefix(m[2], "sha256-"):
		q.Kind = ReferrersTag
	}
	if q.Kind == "" {
		q.Kind = r.kinds[q.Digest]
	}
	if r.tokens != nil && !r.tokens.admits(req) {
		a.Status = http.StatusUnauthorized
		a.Header.Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:%s:pull",error="invalid_token"`, r.URL, Repository))
		return a, q
	}
	if q.Kind == Referrers {
		r.list(a)
		return a, q
	}
	data, ok := r.blobs[q.Digest]
	kind := r.kinds[q.Digest]
	if isManifest := kind == Manifest || kind == Signature; !ok || isManifest != (m[1] == "manifests") {
		return a, q
	}
	a.Status, a.Body, a.Full = http.StatusOK, data, data
	a.Header.Set("Docker-Content-Digest", q.Digest.String())
	a.Header.Set("Content-Type", "application/octet-stream")
	if m[1] == "manifests" {
		a.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
	}
	a.serveRange(req.Header.Get("Range"))
	return a, q
}

// list answers the referrers API.
func (r *Registry) list(a *Answer) {
	if r.refers == nil {
		return
	}
	raw, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: r.refers})
	if err != nil {
		return
	}
	a.Status, a.Body, a.Full = http.StatusOK, raw, raw
	a.Header.Set("Content-Type", ocispec.MediaTypeImageIndex)
}

// Refer serves manifests as referrers of whatever image is asked about, so many
// times each, and replaces those before.
func (r *Registry) Refer(times int, manifests ...[]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refers = []ocispec.Descriptor{}
	for _, m := range manifests {
		d := digest.FromBytes(m)
		r.blobs[d], r.kinds[d] = m, Signature
		for range times {
			r.refers = append(r.refers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(m)), ArtifactType: "application/vnd.dev.sigstore.bundle.v0.3+json"})
		}
	}
}

// serveRange answers "bytes=N-" and "bytes=N-M" as RFC 9110 wants it.
func (a *Answer) serveRange(value string) {
	from, to, found := strings.Cut(strings.TrimPrefix(value, "bytes="), "-")
	if !found {
		return
	}
	size := len(a.Body)
	first, err := strconv.Atoi(from)
	last := size - 1
	if to != "" && err == nil {
		last, err = strconv.Atoi(to)
	}
	if err != nil || first > last || first >= size {
		a.Status, a.Body = http.StatusRequestedRangeNotSatisfiable, nil
		return
	}
	last = min(last, size-1)
	a.Status, a.Body = http.StatusPartialContent, a.Body[first:last+1]
	a.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
}

// lastPack is the last pack of the image under the tag 1.1.
func (r *Registry) lastPack() digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	var m ocispec.Manifest
	if err := json.Unmarshal(r.blobs[r.tags["1.1"].Digest], &m); err != nil || len(m.Layers) == 0 {
		return ""
	}
	return m.Layers[len(m.Layers)-1].Digest
}
