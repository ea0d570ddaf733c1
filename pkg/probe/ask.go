package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

const (
	// maxBody is how many bytes of an answer are looked at, the first ones.
	maxBody = 64 << 10
	// maxHeader is how many bytes of it may come before the body.
	maxHeader = 64 << 10
)

// Question is how to ask an operator's probe. Exactly one of Command.Args, URL and
// Address is set.
type Question struct {
	Name    string
	Level   health.Level
	Command Command       // ends with exit code 0
	URL     string        // is answered
	Status  int           // by this status; 0 is any of 200 to 299
	Body    []byte        // and a body with this in it; nil is any body
	Pattern string        // and a body that matches (package regexp); "" is any
	Address string        // host:port that takes a connection
	Timeout time.Duration // of one answer; 0 is DefaultTimeout
	Within  time.Duration // how long it may take until it holds; 0 is the gate's deadline
}

// Probe is the question as a probe of the gate. It is asked during the soak as well.
func (r *Runner) Probe(q Question) health.Probe {
	if q.Timeout <= 0 {
		q.Timeout = DefaultTimeout
	}
	var p health.Probe
	switch {
	case q.URL != "":
		p = overHTTP(q)
	case q.Address != "":
		p = overTCP(q)
	default:
		q.Command.Timeout = q.Timeout
		p = r.command(q.Command)
		p.Kind = health.KindExec
	}
	p.Name, p.Level, p.Within = q.Name, q.Level, q.Within
	return p
}

func overTCP(q Question) health.Probe {
	return health.Probe{
		Kind: health.KindTCP, Expected: q.Address + " takes a connection", Timeout: q.Timeout,
		Run: func(ctx context.Context) (string, bool) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", q.Address)
			if err != nil {
				return err.Error(), false
			}
			conn.Close() //nolint:errcheck // nothing was sent
			return "connected", true
		},
	}
}

func overHTTP(q Question) health.Probe {
	expected := "200 to 299"
	if q.Status != 0 {
		expected = fmt.Sprint(q.Status)
	}
	pattern, err := regexp.Compile(q.Pattern)
	if err != nil {
		return Wrong(q.Name, q.Level, err)
	}
	switch {
	case q.Body != nil:
		expected += fmt.Sprintf(" with %q", q.Body)
	case q.Pattern != "":
		expected += fmt.Sprintf(" with what matches %q", q.Pattern)
	}
	return health.Probe{
		Kind: health.KindHTTP, Expected: expected + " from " + q.URL, Timeout: q.Timeout,
		Run: func(ctx context.Context) (string, bool) {
			status, body, err := get(ctx, q.URL)
			if err != nil {
				return err.Error(), false
			}
			seen := status.text
			if status.code != q.Status && (q.Status != 0 || status.code/100 != 2) {
				return seen + said(body), false
			}
			if !bytes.Contains(body, q.Body) || !pattern.Match(body) {
				return seen + ", and another body" + said(body), false
			}
			return seen, true
		},
	}
}

type status struct {
	code int
	text string
}

// get asks once. A redirect is an answer. The certificate is not judged: that of a
// service on its own machine names something else, and the clock may not be set yet.
func get(ctx context.Context, url string) (status, []byte, error) {
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as above
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return status{}, nil, err
	}
	request.Header.Set("User-Agent", "osctl")
	response, err := client.Do(request)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner // *url.Error repeats the URL
		}
		return status{}, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil && len(body) == 0 {
		return status{}, nil, fmt.Errorf("%s, and no body: %w", response.Status, err)
	}
	return status{response.StatusCode, strings.ToValidUTF8(response.Status, "?")}, body, nil
}

// said is the beginning of a body, for people.
func said(body []byte) string {
	var t tail
	t.add(body[:min(len(body), tailText)])
	if text := t.String(); text != "" {
		return ": " + text
	}
	return ""
}
