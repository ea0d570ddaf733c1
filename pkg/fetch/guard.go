package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// What a registry may ask of this machine.
const (
	// longestWait is the longest single Retry-After that is waited for.
	longestWait = time.Minute
	// patience is how long a registry is waited for without a useful answer.
	patience = 3 * time.Minute
)

var (
	// errPlain says that a registry with TLS leads to a place without it.
	errPlain = errors.New("it leads to plain http, and the registry is not configured for that")
	// errEncoded says that a body is compressed on the way, which nobody asked for.
	errEncoded = errors.New("the body has a Content-Encoding that was not asked for")
	// errRange says that other bytes came than were asked for, errUnasked that
	// it did so where all of them were.
	errRange   = errors.New("it answers with another range than was asked for")
	errUnasked = errors.New("it answers with a range that nobody asked for")
	// errPatience says that a registry wants to be asked again much later.
	errPatience = errors.New("it asks to come back later")
	// errWithheld says that it does not tell what lies beside an image.
	errWithheld = errors.New("it does not say which signatures it has")
)

// wire is what all connections of one Registry share.
type wire struct {
	pace  pace
	sleep func(context.Context, time.Duration) error
	now   func() time.Time
	// present is the time for certificates; nil is the machine's clock. now measures
	// pauses, and may be any clock that goes on.
	present func() time.Time

	mu      sync.Mutex
	cached  map[string][]docker.RegistryHost // one set of connections and tokens
	bad     map[string]bool                  // hosts that served wrong bytes
	busy    map[string]time.Time             // hosts that asked for time
	waited  time.Duration                    // since the last useful answer
	secrets map[string]bool
}

func newWire() *wire {
	return &wire{
		pace: pace{least: leastBytes, within: leastTime}, sleep: sleep, now: time.Now,
		cached: map[string][]docker.RegistryHost{}, bad: map[string]bool{}, busy: map[string]time.Time{}, secrets: map[string]bool{},
	}
}

// hosts puts a guard before every connection to the hosts of a registry. Hosts
// that served wrong bytes come last.
func (w *wire) hosts(inner docker.RegistryHosts) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		list, known := w.cached[name]
		if !known {
			var err error
			if list, err = inner(name); err != nil {
				return nil, err
			}
			w.guard(list)
			w.cached[name] = list
		}
		var good, bad []docker.RegistryHost
		for _, h := range list {
			if w.bad[h.Host] {
				bad = append(bad, h)
			} else {
				good = append(good, h)
			}
		}
		return append(good, bad...), nil
	}
}

func (w *wire) guard(list []docker.RegistryHost) {
	plain := map[string]bool{}
	all := len(list) > 0
	for _, h := range list {
		plain[h.Host] = isPlain(h)
		all = all && plain[h.Host]
	}
	authorizers := map[docker.Authorizer]docker.Authorizer{}
	for i, h := range list {
		if authorizers[h.Authorizer] == nil {
			authorizers[h.Authorizer] = &oneAtATime{Authorizer: h.Authorizer}
		}
		list[i].Authorizer = authorizers[h.Authorizer]
		// Hosts may share a client, and the authorizer has the same one.
		if _, done := h.Client.Transport.(*guard); !done {
			h.Client.Transport = &guard{next: h.Client.Transport, wire: w, plain: plain, allPlain: all}
		}
	}
}

// oneAtATime keeps requests that run beside each other from renewing a token at the
// same time: the library reads its expiry while another one writes it.
type oneAtATime struct {
	docker.Authorizer
	mu sync.Mutex
}

func (o *oneAtATime) Authorize(ctx context.Context, req *http.Request) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Authorizer.Authorize(ctx, req)
}

// isPlain reports whether plain http is configured for a host. The library tries
// TLS first where that is configured beside http.
func isPlain(h docker.RegistryHost) bool {
	return h.Scheme == "http" || reflect.TypeOf(h.Client.Transport) == reflect.TypeOf(docker.NewHTTPFallback(nil))
}

// moveOn notes that a host served wrong bytes and reports whether the registry
// has another host that did not.
func (w *wire) moveOn(name, host string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad[host] = true
	for _, h := range w.cached[name] {
		if !w.bad[h.Host] && h.Capabilities.Has(docker.HostCapabilityPull) {
			return true
		}
	}
	clear(w.bad)
	return false
}

// transfer is what a request is for. It travels in the context, through the
// library, to the guard.
type transfer struct {
	limit int64 // the most bytes that the body may have
	// Who was asked last and how often; set by the guard.
	host  string
	asked int
	// listing says that the last request was to the referrers API; withheld is why the
	// last host that was asked gave no list, nil where it did or has no such API.
	listing  bool
	withheld error
}

type transferKey struct{}

func withTransfer(ctx context.Context, limit int64) (context.Context, *transfer) {
	t := &transfer{limit: limit}
	return context.WithValue(ctx, transferKey{}, t), t
}

// begins notes a request that is no redirect.
func (t *transfer) begins(req *http.Request) {
	t.host = req.URL.Host
	t.asked++
	t.listing = strings.Contains(req.URL.Path, "/referrers/")
}

// ended notes what came of a request to the referrers API. The library drops that when
// the tag that stands in for the API is missing.
func (t *transfer) ended(resp *http.Response, err error) {
	switch {
	case t.listing && err == nil:
		t.withheld = refusal(resp.StatusCode)
	case t.listing:
		t.withheld = err
	}
}

// refusal is the error for a status that is no answer to the question for a list. What
// is left says that a registry has no such API.
func refusal(status int) error {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("%w (nerdctl login stores credentials): %d %s", ErrDenied, status, http.StatusText(status))
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError && status != http.StatusNotImplemented:
		return fmt.Errorf("%d %s", status, http.StatusText(status))
	}
	return nil
}

// guard is the transport below containerd's resolver: nothing comes from a
// registry but through it. It bounds what the library does not: plain http and
// credentials after a redirect, compressed bodies, ranges, lengths, rates and
// retries.
type guard struct {
	next     http.RoundTripper
	wire     *wire
	plain    map[string]bool // configured hosts
	allPlain bool
}

func (g *guard) RoundTrip(asked *http.Request) (*http.Response, error) {
	t, _ := asked.Context().Value(transferKey{}).(*transfer)
	if t == nil {
		t = &transfer{limit: osimage.MaxManifest}
	}
	if asked.Response == nil {
		t.begins(asked)
	}
	resp, err := g.pass(asked, t.limit)
	t.ended(resp, err)
	return resp, err
}

// pass sends a request on, and bounds the answer.
func (g *guard) pass(asked *http.Request, limit int64) (*http.Response, error) {
	if asked.URL.Scheme != "https" && !g.allPlain && !g.plain[asked.URL.Host] {
		return nil, fmt.Errorf("%w: %s", errPlain, asked.URL.Host)
	}
	if err := g.wire.await(asked.Context(), asked.URL.Host); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(asked.Context())
	req := asked.Clone(ctx)
	outgoing(req)
	g.wire.keepSecret(req.Header.Get("Authorization"))
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Request = asked
	resp.Body = &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, pace: g.wire.pace, limit: limit}
	g.wire.note(asked.URL.Host, resp)
	if err := checkAnswer(req, resp, limit); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// outgoing removes from a request what its receiver has no business with.
func outgoing(req *http.Request) {
	req.Header.Set("Accept-Encoding", "identity")
	first := req
	for first.Response != nil && first.Response.Request != nil {
		first = first.Response.Request
	}
	if sameOrigin(first.URL, req.URL) {
		return
	}
	// The standard client takes another port, or no TLS, for the same host. A
	// token that was got for this very host is another one than the first.
	authorization := req.Header.Get("Authorization")
	for name := range req.Header {
		switch name {
		case "Accept", "Accept-Encoding", "Range", "User-Agent":
		default:
			delete(req.Header, name) // Del would miss what hosts.toml writes in small letters
		}
	}
	if authorization != "" && authorization != first.Header.Get("Authorization") {
		req.Header.Set("Authorization", authorization)
	}
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host)
}

// checkAnswer refuses an answer whose head says already that it is not what was
// asked for.
func checkAnswer(req *http.Request, resp *http.Response, limit int64) error {
	if resp.StatusCode > 299 {
		return nil // no content
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") && req.Method != http.MethodHead {
		return fmt.Errorf("%w: %q", errEncoded, e)
	}
	if resp.ContentLength > limit && strings.Contains(req.URL.Path, "/manifests/") {
		return fmt.Errorf("%w: %d bytes, at most %d are taken", errLength, resp.ContentLength, limit)
	}
	if resp.StatusCode != http.StatusPartialContent {
		return nil // the library skips to the offset where the whole comes instead
	}
	offset, asked := strings.CutPrefix(req.Header.Get("Range"), "bytes=")
	got := resp.Header.Get("Content-Range")
	if !asked {
		return fmt.Errorf("%w: %q", errUnasked, got)
	}
	if !strings.HasPrefix(got, "bytes "+offset) {
		return fmt.Errorf("%w: asked was %q, it sent %q", errRange, req.Header.Get("Range"), got)
	}
	return nil
}

// note remembers for how long a busy host wants to be left alone.
func (w *wire) note(host string, resp *http.Response) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if resp.StatusCode < http.StatusBadRequest {
		w.waited = 0
		return
	}
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return
	}
	now := w.now()
	until := now.Add(retryAfter(resp.Header.Get("Retry-After"), now))
	if begin := later(now, w.busy[host]); until.After(begin) {
		w.waited += until.Sub(begin)
		w.busy[host] = until
	}
}

// retryAfter reads seconds or a date (RFC 9110, section 10.2.3); 0 for neither.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil && date.After(now) {
		return date.Sub(now)
	}
	return 0
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// await waits as long as a host asked for, or refuses to.
func (w *wire) await(ctx context.Context, host string) error {
	w.mu.Lock()
	left, waited := w.busy[host].Sub(w.now()), w.waited
	w.mu.Unlock()
	switch {
	case left <= 0:
		return nil
	case left > longestWait || waited > patience:
		return fmt.Errorf("%w: in %s", errPatience, left.Round(time.Second))
	}
	return w.sleep(ctx, left)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
