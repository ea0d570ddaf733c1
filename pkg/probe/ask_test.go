package probe

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// answers is a service with a large body, one that sends elsewhere, and one that
// does not answer.
func answers(t *testing.T) *httptest.Server {
	hang := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "status: fine\nqueue: 3\n") })
	mux.HandleFunc("/gone", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no database", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("x", 8*maxBody)) })
	mux.HandleFunc("/hangs", func(http.ResponseWriter, *http.Request) { <-hang })
	s := httptest.NewTLSServer(mux)
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(hang) })
	return s
}

func TestOverHTTP(t *testing.T) {
	s := answers(t)
	for name, c := range map[string]struct {
		q    Question
		want string
		ok   bool
	}{
		"any status":         {Question{URL: "/ok"}, "200 OK", true},
		"that status":        {Question{URL: "/gone", Status: 503}, "503 Service Unavailable", true},
		"another status":     {Question{URL: "/ok", Status: 204}, "200 OK: status: fine / queue: 3", false},
		"no success":         {Question{URL: "/gone"}, "503 Service Unavailable: no database", false},
		"a redirect":         {Question{URL: "/moved"}, "302 Found", false},
		"a redirect, wanted": {Question{URL: "/moved", Status: 302}, "302 Found", true},
		"body":               {Question{URL: "/ok", Body: []byte("queue: 3")}, "200 OK", true},
		"another body":       {Question{URL: "/ok", Body: []byte("queue: 0")}, "200 OK, and another body: status: fine / queue: 3", false},
		"matches":            {Question{URL: "/ok", Pattern: `(?m)^queue: \d$`}, "200 OK", true},
		"does not match":     {Question{URL: "/ok", Pattern: `queue: \d{2}`}, "200 OK, and another body: status: fine / queue: 3", false},
		"large":              {Question{URL: "/large", Body: []byte("y")}, "200 OK, and another body: xxx", false},
		"no host":            {Question{URL: "none"}, "no such host", false},
	} {
		t.Run(name, func(t *testing.T) {
			if c.q.URL = s.URL + c.q.URL; name == "no host" {
				c.q.URL = "http://osctl-test.invalid/"
			}
			p := WithoutGroups().Probe(c.q)
			seen, ok := p.Run(t.Context())
			if want := c.want; ok != c.ok || seen != want && !strings.HasPrefix(seen, want+"x") && (name != "no host" || seen == "") && !strings.HasPrefix(seen, want) {
				t.Errorf("%q, %t; want %q, %t", seen, ok, want, c.ok)
			}
			if p.Kind != health.KindHTTP || !strings.HasSuffix(p.Expected, " from "+c.q.URL) {
				t.Errorf("%s, expected %q", p.Kind, p.Expected)
			}
		})
	}
	p := WithoutGroups().Probe(Question{Name: "web", URL: s.URL + "/hangs", Timeout: time.Second})
	if p.Timeout != time.Second {
		t.Errorf("timeout %v", p.Timeout)
	}
	if p := WithoutGroups().Probe(Question{URL: "http://a/", Pattern: "("}); p.Kind != health.KindConfig {
		t.Errorf("a bad pattern is %+v", p)
	}
}

// TestBodyIsBounded: of a large body no more is read than is looked at.
func TestBodyIsBounded(t *testing.T) {
	s := answers(t)
	status, body, err := get(t.Context(), s.URL+"/large")
	if err != nil || status.code != http.StatusOK || len(body) != maxBody {
		t.Errorf("%v, %d bytes, %v", status, len(body), err)
	}
}

func TestOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := WithoutGroups().Probe(Question{Name: "db", Address: l.Addr().String(), Level: health.Wanted, Within: time.Minute})
	if seen, ok := p.Run(t.Context()); !ok || seen != "connected" {
		t.Errorf("%q, %t", seen, ok)
	}
	if p.Kind != health.KindTCP || p.Level != health.Wanted || p.Within != time.Minute || p.Name != "db" || p.Once {
		t.Errorf("%+v", p)
	}
	l.Close()
	if seen, ok := p.Run(t.Context()); ok || !strings.Contains(seen, "refused") {
		t.Errorf("%q, %t", seen, ok)
	}
}

func TestCommandProbe(t *testing.T) {
	r := WithoutGroups()
	for text, want := range map[string]string{"exit 0": "exit 0", "exit 3": "exit 3", "sleep 1000": "has not ended within 100ms"} {
		p := r.Probe(Question{Name: "x", Command: Command{Args: []string{"/bin/sh", "-c", text}}, Timeout: 100 * time.Millisecond})
		if want == "exit 3" {
			p = r.Probe(Question{Name: "x", Command: Command{Args: []string{"/bin/sh", "-c", text}}})
		}
		seen, ok := p.Run(t.Context())
		if seen != want && (want == "exit 3" || !strings.HasPrefix(seen, "has not ended within 100ms")) || ok != (want == "exit 0") && want != "exit 0" || p.Kind != health.KindExec {
			t.Errorf("%s: %q, %t", text, seen, ok)
		}
	}
}
