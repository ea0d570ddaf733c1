package workload_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
)

func TestDeclare(t *testing.T) {
	for _, c := range []struct {
		labels map[string]string
		want   health.Declaration
	}{
		{nil, health.Declaration{}},
		{map[string]string{"nerdctl/name": "web", "osctl": "x", "osctl.gates": "y", "osctlXgate": "z"}, health.Declaration{}},
		{map[string]string{"osctl.gate": "required"}, health.Declaration{Level: health.Required}},
		{map[string]string{"osctl.gate": "wanted", "osctl.gate.timeout": "1m30s"}, health.Declaration{Level: health.Wanted, Timeout: 90 * time.Second}},
		{map[string]string{"osctl.gate": "ignore"}, health.Declaration{Level: health.Ignore}},
		{map[string]string{"osctl.gate.http": "https://[::1]:8443/a?b=c", "osctl.gate.tcp": "[::1]:53", "osctl.gate.exec": "test -f /x"},
			health.Declaration{HTTP: "https://[::1]:8443/a?b=c", TCP: "[::1]:53", Exec: "test -f /x"}},
		{map[string]string{"osctl.gate.http": "http://web/ 301", "osctl.gate.tcp": ":53", "osctl.gate.exec": ` ["a", ""]`},
			health.Declaration{HTTP: "http://web/ 301", TCP: ":53", Exec: ` ["a", ""]`}},
	} {
		if diff := cmp.Diff(c.want, workload.Declare(c.labels)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.labels, diff)
		}
	}
}

func TestDeclareRefuses(t *testing.T) {
	for _, c := range [][3]string{
		{"osctl.gate", "", "osctl.gate: allowed are required, wanted, ignore"},
		{"osctl.gate", "Required", "osctl.gate=Required: allowed are required, wanted, ignore"},
		{"osctl.gate", "a\x1b[2J\nb", "osctl.gate=a?[2J b: allowed are"},
		{"osctl.gate.timeout", "90", "osctl.gate.timeout=90: allowed is a duration above zero with its unit, as in 90s or 2m30s"},
		{"osctl.gate.timeout", "0s", "allowed is a duration above zero"},
		{"osctl.gate.timeout", "-1s", "allowed is a duration above zero"},
		{"osctl.gate.http", "localhost:80/x", "osctl.gate.http: allowed is a URL, as in http://localhost:8080/health"},
		{"osctl.gate.http", "http://", "allowed is a URL"},
		{"osctl.gate.http", "http://:80/", "allowed is a URL"},
		{"osctl.gate.http", "ftp://a/", "allowed is a URL"},
		{"osctl.gate.http", "http://a/ 99", `"99" is no status from 100 to 599`},
		{"osctl.gate.http", "http://a/ 200 ok", `is no status from 100 to 599`},
		{"osctl.gate.http", "http://a:0/", `"0" is no port from 1 to 65535`},
		{"osctl.gate.http", "http://a:65536/", `"65536" is no port`},
		{"osctl.gate.http", "http://me:secret@a/", "a name or password in it would be shown to everybody"},
		{"osctl.gate.tcp", "80", "osctl.gate.tcp=80: allowed is [host]:port, as in :5432 or localhost:5432"},
		{"osctl.gate.tcp", "a:0", `"0" is no port from 1 to 65535; allowed is [host]:port`},
		{"osctl.gate.tcp", "a:http", `"http" is no port`},
		{"osctl.gate.tcp", "http://a:80", "allowed is [host]:port"},
		{"osctl.gate.exec", " ", "osctl.gate.exec: allowed is a line for /bin/sh, or a JSON array"},
		{"osctl.gate.exec", `["a"`, "allowed is a line for /bin/sh, or a JSON array"},
		{"osctl.gate.exec", `[]`, "or a JSON array"},
		{"osctl.gate.exec", `[""]`, "or a JSON array"},
		{"osctl.gate.exec", `["a", 1]`, "or a JSON array"},
		{"osctl.gate.exec", "a\x00b", "allowed is a line"},
		{"osctl.gate.exec", `["a\u0000"]`, "or a JSON array"},
		{"osctl.gate.tpc", ":80", "osctl.gate.tpc: there is no such label; there are osctl.gate, osctl.gate.timeout, osctl.gate.http, osctl.gate.tcp, osctl.gate.exec"},
		{"osctl.gate.", "x", "there is no such label"},
	} {
		d := workload.Declare(map[string]string{c[0]: c[1], "osctl.gate.two": ""})
		if !strings.Contains(d.Bad, c[2]) || !strings.Contains(d.Bad, "osctl.gate.two: there is no such label") || strings.Contains(d.Bad, "secret") {
			t.Errorf("%s=%q: %q; want %q, and what is wrong with the other label", c[0], c[1], d.Bad, c[2])
		}
	}
}

// FuzzDeclare: whatever labels say, the answer is short, plain and the same again, and
// what is right can be asked.
func FuzzDeclare(f *testing.F) {
	f.Add("required", "90s", "http://localhost:8080/health 204", ":5432", `["/bin/check"]`)
	f.Add("", "", "", "", "")
	f.Add("ignore", "-1h", "http://u:p@[::1%25eth0]:80/", "[::1", "[\"a\x00\"]")
	f.Add("wanted\n", "9e9h", "http://a/\x7f 99999999999", "a b:1", "\x1b]0;x\x07")
	f.Fuzz(func(t *testing.T, level, timeout, url, tcp, exec string) {
		labels := map[string]string{}
		for key, value := range map[string]string{"": level, ".timeout": timeout, ".http": url, ".tcp": tcp, ".exec": exec, "." + level: "x"} {
			if value != "" {
				labels["osctl.gate"+key] = value
			}
		}
		d := workload.Declare(labels)
		if diff := cmp.Diff(d, workload.Declare(labels)); diff != "" {
			t.Fatalf("not the same again:\n%s", diff)
		}
		if len(d.Bad) > 2000 || !utf8.ValidString(d.Bad) || strings.ContainsFunc(d.Bad, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("bad is %q", d.Bad)
		}
		switch d.Level {
		case "", health.Required, health.Wanted, health.Ignore:
		default:
			t.Errorf("level %q", d.Level)
		}
		if d.Timeout < 0 {
			t.Errorf("timeout %v", d.Timeout)
		}
	})
}
