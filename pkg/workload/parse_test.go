package workload

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestDocumented: the table in docs/health.md has the labels that there are, and its
// example is one that is understood.
func TestDocumented(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "health.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	labels, examples := map[string]string{}, 0
	for line := range strings.Lines(string(data)) {
		if m := regexp.MustCompile("^\\| `(osctl\\.gate[^`]*)` \\|").FindStringSubmatch(line); m != nil {
			rows = append(rows, m[1])
		}
		if m := regexp.MustCompile(`^ {10}(osctl\.gate[^:]*): "?([^"\n]+)`).FindStringSubmatch(line); m != nil {
			labels[m[1]] = m[2]
			examples++
		}
	}
	if diff := cmp.Diff([]string{gateLabel, timeoutLabel, httpLabel, tcpLabel, execLabel}, rows); diff != "" {
		t.Errorf("rows of the table (-want +got):\n%s", diff)
	}
	if d := Declare(labels); d.Bad != "" || examples < 5 || d.HTTP == "" || d.TCP == "" || d.Exec == "" || d.Timeout == 0 || d.Level == "" {
		t.Errorf("the %d labels of the example are read as %+v", examples, d)
	}
}

func TestParseHosts(t *testing.T) {
	const file = "# hosts\n127.0.0.1\tlocalhost\n10.4.0.2 db db.shop DB2 # the database\n::1 db\nnonsense db\n10.4.0.3\n"
	want := map[string][]string{"localhost": {"127.0.0.1"}, "db": {"10.4.0.2", "::1"}, "db.shop": {"10.4.0.2"}, "db2": {"10.4.0.2"}}
	if diff := cmp.Diff(want, parseHosts(strings.NewReader(file))); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
}

// TestHostsOfAContainer: a container does not lead osctl out of its files, nor makes it
// wait.
func TestHostsOfAContainer(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(outside, []byte("10.0.0.1 secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"link by its whole path": func(path string) error { return os.Symlink(outside, path) },
		"link upwards": func(path string) error {
			return os.Symlink("../../"+filepath.Base(filepath.Dir(outside))+"/hosts", path)
		},
		"pipe":    func(path string) error { return unix.Mkfifo(path, 0o600) },
		"folder":  func(path string) error { return os.Mkdir(path, 0o700) },
		"nothing": func(string) error { return nil },
	} {
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o700), make(filepath.Join(root, "etc/hosts"))); err != nil {
			t.Fatal(err)
		}
		if hosts := readHosts(root); len(hosts) > 0 {
			t.Errorf("%s: %v", name, hosts)
		}
	}
}

// FuzzHosts: a container may have anything in its /etc/hosts; what comes out are
// addresses.
func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost\n::1 localhost # x\n")
	f.Add("127.0.0.1\n\x00 a\n10.0.0.1\t\ta  b\n#")
	f.Fuzz(func(t *testing.T, text string) {
		for name, list := range parseHosts(strings.NewReader(text)) {
			if name == "" || name != strings.ToLower(name) {
				t.Errorf("name %q", name)
			}
			for _, ip := range list {
				if net.ParseIP(ip) == nil {
					t.Errorf("%q is no address", ip)
				}
			}
		}
	})
}

func TestHealthCheckWords(t *testing.T) {
	for label, want := range map[string][]string{
		`{"Test":["CMD","/a","b"]}`:    {"/a", "b"},
		`{"Test":["CMD-SHELL","a b"]}`: {"/bin/sh", "-c", "a b"},
		`{"Test":["NONE"]}`:            nil,
		`{"Test":["CMD"]}`:             nil,
		`{"Test":["CMD",""]}`:          nil,
		`{"Test":["CMD-SHELL"," "]}`:   nil,
		`{"Test":[""]}`:                nil,
		`{"Test":[]}`:                  nil,
		`{"Test":"CMD"}`:               nil,
		`{`:                            nil,
		``:                             nil,
	} {
		if diff := cmp.Diff(want, parseHealthCheck(map[string]string{healthCheckLabel: label}).words()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", label, diff)
		}
	}
}

// FuzzHealthCheck: what nerdctl's labels say of a health check is none, or one that can
// be run within a time.
func FuzzHealthCheck(f *testing.F) {
	f.Add(`{"Test":["CMD-SHELL","true"],"Timeout":30000000000}`, `[{"HostPort":80,"Protocol":"tcp"}]`)
	f.Add(`{"Test":["CMD"],"Timeout":-1}`, `[{"HostPort":-80,"Protocol":"\u001b","HostIP":"x"}]`)
	f.Add(`null`, `{}`)
	f.Fuzz(func(t *testing.T, check, ports string) {
		labels := map[string]string{healthCheckLabel: check, portsLabel: ports}
		h := parseHealthCheck(labels)
		if words := h.words(); (len(words) > 0) != (h.Timeout > 0) || h.Timeout > 2*time.Minute || len(words) > 0 && words[0] == "" {
			t.Errorf("%q within %v", words, h.Timeout)
		}
		for _, p := range publishedPorts(labels) {
			if _, err := json.Marshal(p); err != nil || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("port %q", p)
			}
		}
	})
}
