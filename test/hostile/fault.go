package hostile

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Special values of an Answer's fields.
const (
	right = -1 // Declared: the length of the body
	none  = -2 // Declared: no length, the body is sent in chunks
	whole = -1 // Cut: nothing is cut off
)

// A client that would take an endless answer for ever, or wait for a slow one, fails its
// test and does not hang it: after tooMuch it is cut off, after tooLong the rest comes.
const (
	tooMuch = 256 << 20
	tooLong = 10 * time.Second
)

// Answer is what goes out to a request. A Fault changes the right one.
type Answer struct {
	Request *http.Request
	Status  int
	Header  http.Header
	Body    []byte
	Full    []byte // the whole content, of which Body may be a part
	// Declared is the Content-Length that is claimed, or one of the special
	// values.
	Declared int64
	// Cut is the number of bytes after which the connection is cut.
	Cut int
	// Hold is called when the bytes before the cut are out; the request then
	// waits until the registry behaves, and is finished.
	Hold func()
	// Endless repeats the body until the client goes away or has taken tooMuch. Drip
	// sends a byte each time, until the client goes away or has waited for tooLong.
	Endless bool
	Drip    time.Duration
}

// Fault changes an answer.
type Fault func(*Answer)

func (a *Answer) send(w http.ResponseWriter, req *http.Request, released <-chan struct{}, sent func(int)) {
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	switch {
	case a.Declared >= 0:
		w.Header().Set("Content-Length", strconv.FormatInt(a.Declared, 10))
	case a.Declared == right && !a.Endless && a.Status < 300:
		w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)))
	}
	w.WriteHeader(a.Status)
	if req.Method == http.MethodHead {
		return
	}
	out := func(p []byte) bool {
		n, err := w.Write(p)
		sent(n)
		return err == nil
	}
	if a.Cut != whole {
		cut := min(a.Cut, len(a.Body))
		out(a.Body[:cut])
		flush(w)
		if a.Hold == nil {
			panic(http.ErrAbortHandler)
		}
		a.Hold()
		select {
		case <-released:
		case <-req.Context().Done():
			return
		}
		out(a.Body[cut:])
		return
	}
	if a.Drip > 0 {
		a.drip(w, req, out)
		return
	}
	for taken := len(a.Body); out(a.Body) && a.Endless; taken += len(a.Body) {
		if taken > tooMuch || len(a.Body) == 0 {
			panic(http.ErrAbortHandler)
		}
	}
}

// drip sends a byte at a time.
func (a *Answer) drip(w http.ResponseWriter, req *http.Request, out func([]byte) bool) {
	tick := time.NewTicker(a.Drip)
	defer tick.Stop()
	enough := time.After(tooLong)
	for i := range a.Body {
		select {
		case <-req.Context().Done():
			return
		case <-enough:
			out(a.Body[i:])
			return
		case <-tick.C:
			if !out(a.Body[i : i+1]) {
				return
			}
			flush(w)
		}
	}
}

func flush(w http.ResponseWriter) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

// CutAt cuts the connection after n bytes of the body; a negative n counts from
// its end.
func CutAt(n int) Fault {
	return func(a *Answer) {
		a.Cut = n
		if n < 0 {
			a.Cut = max(0, len(a.Body)+n)
		}
	}
}

// CutHalf cuts the connection in the middle of the body.
func CutHalf(a *Answer) { a.Cut = len(a.Body) / 2 }

// Short sends the first half and says that this is all.
func Short(a *Answer) { a.Body = a.Body[:len(a.Body)/2] }

// Claim sends the right body with a wrong length.
func Claim(length int64) Fault { return func(a *Answer) { a.Declared = length } }

// Empty answers 200 with an empty body.
func Empty(a *Answer) {
	a.Status, a.Body = http.StatusOK, nil
	a.Header.Del("Content-Range")
}

// Flip changes one byte of the body, at n; a negative n counts from its end.
func Flip(n int) Fault {
	return func(a *Answer) {
		if len(a.Body) == 0 {
			return
		}
		a.Body = bytes.Clone(a.Body)
		at := n
		if n < 0 {
			at = len(a.Body) + n
		}
		a.Body[min(max(at, 0), len(a.Body)-1)] ^= 1
	}
}

// Other sends other bytes of the right length.
func Other(a *Answer) { a.Body = bytes.Repeat([]byte{'x'}, len(a.Body)) }

// Refuse answers with a status; value, when it is not empty, is a Retry-After.
func Refuse(status int, value string) Fault {
	return func(a *Answer) {
		a.Status, a.Body = status, []byte(`{"errors":[{"code":"DENIED","message":"no"}]}`)
		if value != "" {
			a.Header.Set("Retry-After", value)
		}
	}
}

// Redirect sends the client elsewhere; an address that ends with a slash gets the
// path added.
func Redirect(to string) Fault {
	return func(a *Answer) {
		if strings.HasSuffix(to, "/") {
			to = strings.TrimSuffix(to, "/") + a.Request.URL.Path
		}
		a.Status, a.Body = http.StatusTemporaryRedirect, nil
		a.Header.Set("Location", to)
	}
}

// IgnoreRange answers 200 with the whole where a part was asked for.
func IgnoreRange(a *Answer) {
	if a.Status == http.StatusPartialContent {
		a.Status, a.Body = http.StatusOK, a.Full
		a.Header.Del("Content-Range")
	}
}

// WrongRange answers with bytes from n further back than was asked for, and says
// so, or lies about it.
func WrongRange(n int, lie bool) Fault {
	return func(a *Answer) {
		if a.Status != http.StatusPartialContent {
			return
		}
		first := max(0, len(a.Full)-len(a.Body)-n)
		a.Body = a.Full[first : first+len(a.Body)]
		if !lie {
			a.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, first+len(a.Body)-1, len(a.Full)))
		}
	}
}

// Unasked answers 206 to a request without a range, with the second half.
func Unasked(a *Answer) {
	n := len(a.Body)
	a.Status, a.Body = http.StatusPartialContent, a.Body[n/2:]
	a.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", n/2, n-1, n))
}

// Flood repeats the body without an end.
func Flood(a *Answer) { a.Endless, a.Declared = true, none }

// Dripping sends a body of the right length, a byte at a time.
func Dripping(each time.Duration) Fault { return func(a *Answer) { a.Drip = each } }

// Bomb sends n bytes of zeros, compressed and labelled so.
func Bomb(n int) Fault {
	return func(a *Answer) {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		for range n >> 20 {
			_, _ = w.Write(make([]byte, 1<<20)) // to memory
		}
		_ = w.Close()
		a.Body = packed.Bytes()
		a.Header.Set("Content-Encoding", "gzip")
	}
}

// Retype changes the Content-Type.
func Retype(to string) Fault { return func(a *Answer) { a.Header.Set("Content-Type", to) } }

// Rename claims another digest.
func Rename(to digest.Digest) Fault {
	return func(a *Answer) { a.Header.Set("Docker-Content-Digest", to.String()) }
}

// Unnamed leaves digest and length out of the answer.
func Unnamed(a *Answer) {
	a.Header.Del("Docker-Content-Digest")
	a.Declared = none
}

// Both applies one fault after the other.
func Both(faults ...Fault) Fault {
	return func(a *Answer) {
		for _, f := range faults {
			f(a)
		}
	}
}

// HoldAt holds the answer back after n bytes until the registry behaves, and says
// so on held, once.
func HoldAt(n int, held chan<- struct{}) Fault {
	return func(a *Answer) {
		a.Cut = n
		a.Hold = func() {
			select {
			case held <- struct{}{}:
			default:
			}
		}
	}
}
