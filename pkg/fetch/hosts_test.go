package fetch

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/test/hostile"
	"github.com/kapernikov/osctl/test/sample"
)

func TestTokenExpires(t *testing.T) {
	h := hostile.New(t)
	img := sample.Image{Seed: 11, MiB: 12}
	h.Load(t, signed(t, img), "1")
	login(t, h.Host(), "robot", "the-password")
	h.Login("robot", "the-password", 3)
	r, _ := patient(t, t.TempDir())
	if err := direct.take(t, r, h.Name("1"), img); err != nil {
		t.Errorf("error = %v", err)
	}
	if n := len(h.Requests(hostile.Token)); n < 2 {
		t.Errorf("%d tokens were asked for: none expired", n)
	}
}

func TestCredentialsStayOutOfErrors(t *testing.T) {
	h := hostile.New(t)
	load(t, h)
	login(t, h.Host(), "robot", "the-password")
	h.Login("robot", "the-password", 3)
	h.Break(hostile.Config, func(a *hostile.Answer) {
		token := a.Request.Header.Get("Authorization")
		a.Status, a.Body = http.StatusInternalServerError, []byte(fmt.Sprintf(
			`{"errors":[{"code":"UNKNOWN","message":"\u001b[2Jno for %s with the-password"}]}`, token))
	})
	r, _ := patient(t, t.TempDir())
	err := direct.take(t, r, h.Name("1"), small)
	if !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "no for Bearer … with …") {
		t.Errorf("error = %v", err)
	}
	if strings.Contains(err.Error(), "secret-token") || strings.ContainsRune(err.Error(), '\x1b') {
		t.Errorf("the text is %q", err)
	}
	h.Behave()
	h.Login("robot", "another password", 3)
	if _, err := r.Resolve(ctx, h.Name("1")); !errors.Is(err, ErrRegistry) || strings.Contains(err.Error(), "the-password") {
		t.Errorf("a refused login: %v", err)
	}
}

// A redirect brings neither credentials nor configured headers to another place,
// and never leaves TLS.
func TestRedirects(t *testing.T) {
	var leaked []string
	h, tls := hostile.New(t), hostile.NewTLS(t)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "X-Secret", "Cookie", "Referer"} {
			if r.Header.Get(name) != "" {
				leaked = append(leaked, name)
			}
		}
		r.Header.Del("Authorization")
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(store.Close)
	load(t, h)
	load(t, tls)
	h.Break(hostile.Pack, func(a *hostile.Answer) {
		if a.Request.Header.Get("X-Secret") != "" {
			hostile.Redirect(store.URL + "/")(a)
		}
	})
	login(t, h.Host(), "robot", "the-password")
	r, _ := patient(t, hostsDir(t, h.Host(), fmt.Sprintf("server = %q\n[host.%q.header]\n  x-secret = \"value\"\n  cookie = \"a=b\"\n", h.URL, h.URL)))
	if err := direct.take(t, r, h.Name("1"), small); err != nil || len(leaked) != 0 {
		t.Errorf("error = %v, and the place that it leads to got %v", err, leaked)
	}
	if n := len(h.Requests(hostile.Pack)); n < 2 {
		t.Errorf("%d requests for packs: nothing was redirected", n)
	}

	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	r, _ = patient(t, hostsDir(t, tls.Host(), fmt.Sprintf("server = %q\nca = %q\n", tls.URL, ca)))
	if err := direct.take(t, r, tls.Name("1"), small); err != nil {
		t.Fatalf("with TLS: %v", err)
	}
	for _, kind := range []hostile.Kind{hostile.Tag, hostile.Config, hostile.Pack} {
		h.Forget()
		tls.Break(kind, hostile.Redirect(h.URL+"/"))
		fresh, _ := patient(t, hostsDir(t, tls.Host(), fmt.Sprintf("server = %q\nca = %q\n", tls.URL, ca)))
		if err := direct.take(t, fresh, tls.Name("1"), small); !errors.Is(err, errPlain) || !errors.Is(err, ErrRegistry) {
			t.Errorf("%s: error = %v, want errPlain", kind, err)
		}
		if n := len(h.Requests(hostile.Any)); n != 0 {
			t.Errorf("%s: %d requests went over plain http", kind, n)
		}
		tls.Behave()
	}
	// Neither may it send the machine there for a token, with its password.
	login(t, tls.Host(), "robot", "the-password")
	tls.Break(hostile.Any, func(a *hostile.Answer) {
		a.Status = http.StatusUnauthorized
		a.Header.Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, h.URL))
	})
	fresh, _ := patient(t, hostsDir(t, tls.Host(), fmt.Sprintf("server = %q\nca = %q\n", tls.URL, ca)))
	if err := direct.take(t, fresh, tls.Name("1"), small); !errors.Is(err, errPlain) || len(h.Requests(hostile.Any)) != 0 {
		t.Errorf("a token over plain http: %v, %d requests", err, len(h.Requests(hostile.Any)))
	}
}

// A clock of 1970 does not shut TLS out for good: certificates are judged at the time
// that has certainly passed. A clock that is ahead does, until it is set right.
func TestCertificatesAreJudgedAtThePresent(t *testing.T) {
	h := hostile.NewTLS(t)
	load(t, h)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := hostsDir(t, h.Host(), fmt.Sprintf("server = %q\nca = %q\n", h.URL, ca))
	from, until := h.Certificate().NotBefore, h.Certificate().NotAfter
	for name, tt := range map[string]struct {
		now  time.Time
		fine bool
	}{
		"before it": {from.Add(-time.Hour), false}, "within": {from.Add(time.Hour), true}, "after it": {until.Add(time.Hour), false},
	} {
		r, _ := patient(t, hosts)
		err := direct.take(t, r.SetTime(func() time.Time { return tt.now }), h.Name("1"), small)
		if (err == nil) != tt.fine || err != nil && (!errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "expired or is not yet valid")) {
			t.Errorf("%s: %v, want success: %t", name, err, tt.fine)
		}
	}
}

// 13 A mirror that is down, or serves anything wrong, is passed over.
func TestMirrors(t *testing.T) {
	dir := signed(t, small)
	for name, spoil := range map[string]func(h *hostile.Registry){
		"down":               func(h *hostile.Registry) { h.Close() },
		"out of order":       func(h *hostile.Registry) { h.Break(hostile.Any, hostile.Refuse(503, "")) },
		"busy":               func(h *hostile.Registry) { h.Break(hostile.Any, hostile.Refuse(429, "3600")) },
		"other pack":         func(h *hostile.Registry) { h.Break(hostile.Pack, hostile.Other) },
		"empty pack":         func(h *hostile.Registry) { h.Break(hostile.Pack, hostile.Empty) },
		"pack that is cut":   func(h *hostile.Registry) { h.Break(hostile.Pack, hostile.Both(hostile.Other, hostile.CutHalf)) },
		"other config":       func(h *hostile.Registry) { h.Break(hostile.Config, hostile.Other) },
		"config that is cut": func(h *hostile.Registry) { h.Break(hostile.Config, hostile.CutHalf) },
		"other manifest":     func(h *hostile.Registry) { h.Break(hostile.Manifest, hostile.Flip(-1)) },
		"other payload":      func(h *hostile.Registry) { h.Break(hostile.Payload, hostile.Other) },
	} {
		t.Run(name, func(t *testing.T) {
			mirror, origin := hostile.New(t), hostile.New(t)
			mirror.Load(t, dir, "1")
			origin.Load(t, dir, "1")
			spoil(mirror)
			toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", origin.URL, mirror.URL)
			r, _ := patient(t, hostsDir(t, origin.Host(), toml))
			if err := direct.take(t, r, origin.Name("1"), small); err != nil {
				t.Errorf("error = %v", err)
			}
		})
	}
}

// login stores credentials as "nerdctl login" does.
func login(t *testing.T, host, user, password string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What an answer's head must say.
func TestCheckAnswer(t *testing.T) {
	for _, tt := range []struct {
		asked, status, sent string
		want                error
	}{
		{"", "200", "", nil},
		{"bytes=100-", "200", "", nil}, // the library skips
		{"bytes=100-", "206", "bytes 100-199/200", nil},
		{"bytes=100-", "206", "bytes 10-199/200", errRange},
		{"bytes=100-", "206", "bytes 1000-1999/2000", errRange},
		{"bytes=100-", "206", "", errRange},
		{"", "206", "bytes 0-199/200", errUnasked},
	} {
		req := httptest.NewRequest(http.MethodGet, "/v2/os/blobs/x", nil)
		if tt.asked != "" {
			req.Header.Set("Range", tt.asked)
		}
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Range": {tt.sent}}}
		if tt.status == "206" {
			resp.StatusCode = http.StatusPartialContent
		}
		if err := checkAnswer(req, resp, 1000); !errors.Is(err, tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// Nothing above the library bounds what a layout on a stick says.
func TestLayoutLimits(t *testing.T) {
	dir := signed(t, small)
	index := filepath.Join(dir, "index.json")
	text, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []string{"4194305", "9223372036854775807", "-1"} {
		changed := regexp.MustCompile(`"size":\d+`).ReplaceAll(text, []byte(`"size":`+size))
		if err := os.WriteFile(index, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLayout(dir)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := l.Resolve(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ref.Describe(ctx); !errors.Is(err, osimage.ErrInvalid) || !strings.Contains(err.Error(), size+" bytes, the limit is 4194304") {
			t.Errorf("manifest of %s bytes: %v", size, err)
		}
	}
}
