package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/status"
	"github.com/kapernikov/osctl/test/sample"
	"github.com/kapernikov/osctl/test/schema"
)

// TestHealthSchema holds the published schema to the type that "osctl health --json"
// prints, and its list of kinds to the gate's.
func TestHealthSchema(t *testing.T) {
	const file = "../../docs/health.schema.json"
	schema.Compare(t, file, reflect.TypeFor[gateReport](), 15)
	var document struct {
		Defs struct {
			Check struct {
				Properties struct{ Kind struct{ Enum []health.Kind } }
			}
		} `json:"$defs"`
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &document)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []health.Kind{
		health.KindSystemd, health.KindUnit, health.KindContainerd, health.KindWorkload, health.KindNetwork, health.KindConfig,
		health.KindScript, health.KindExec, health.KindHTTP, health.KindTCP, health.KindSteady,
	}
	if diff := cmp.Diff(want, document.Defs.Check.Properties.Kind.Enum); diff != "" {
		t.Errorf("kinds (-Go +schema):\n%s", diff)
	}
}

// table is a report as it is printed, with its lines and words apart.
func table(t *testing.T, r health.Report, slowest bool) [][]string {
	t.Helper()
	var out bytes.Buffer
	if err := printReport(&out, r, slowest); err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for line := range strings.Lines(out.String()) {
		if words := strings.Fields(line); len(words) > 0 {
			lines = append(lines, words)
		}
	}
	return lines
}

func TestPrintReport(t *testing.T) {
	r := health.Report{Green: true, Duration: 31 * time.Second, Checks: []health.Check{
		{Kind: health.KindSystemd, Name: "systemd", Required: true, OK: true, Seen: "answers", Expected: "answers", Duration: time.Millisecond},
		{Kind: health.KindWorkload, Name: "default/shop/web", Required: true, OK: true, Seen: "running", Expected: "running", Duration: 12 * time.Second},
		{Kind: health.KindWorkload, Name: "default/mqtt", Required: true, OK: true, Seen: "running", Expected: "running", Duration: 2 * time.Second},
		{Kind: health.KindWorkload, Name: "default/shop/db", Required: true, OK: true, Seen: "running", Expected: "running", Duration: 20 * time.Second},
		{Kind: health.KindTCP, Name: "uplink", Seen: "\x1b[2Jrefused\nnow", Expected: "open", Duration: 31 * time.Second},
	}}
	names := func(lines [][]string) []string {
		var list []string
		for _, words := range lines[2:] {
			list = append(list, words[1])
		}
		return list
	}
	lines := table(t, r, false)
	if got := strings.Join(lines[0], " "); got != "GREEN after 31s, with a warning" {
		t.Errorf("the verdict is %q", got)
	}
	if diff := cmp.Diff([]string{"systemd", "default/mqtt", "default/shop/db", "default/shop/web", "uplink"}, names(lines)); diff != "" {
		t.Errorf("as they were checked, with a project's services together (-want +got):\n%s", diff)
	}
	if got, want := lines[6], []string{"tcp", "uplink", "wanted", "warning", "31s", "?[2Jrefused", "now", "open"}; !slices.Equal(got, want) {
		t.Errorf("a wanted check that fails is %q, want %q", got, want)
	}
	if diff := cmp.Diff([]string{"uplink", "default/shop/db", "default/shop/web", "default/mqtt", "systemd"}, names(table(t, r, true))); diff != "" {
		t.Errorf("the slowest first (-want +got):\n%s", diff)
	}
	r.Green, r.Checks[0].OK = false, false
	if got := strings.Join(table(t, r, false)[0], " "); got != "RED after 31s: systemd: answers (expected: answers)" {
		t.Errorf("one reason: the verdict is %q", got)
	}
	r.Checks[1].OK = false
	if got := strings.Join(table(t, r, false)[0], " "); got != "RED after 31s, for 2 reasons" {
		t.Errorf("two reasons: the verdict is %q", got)
	}
}

// TestReasons: the reason of a red gate comes apart at its checks, and no other does.
func TestReasons(t *testing.T) {
	red := health.Report{Checks: []health.Check{
		{Name: "a", Required: true, Seen: "x; y", Expected: "z"}, {Name: "b", Required: true, Seen: "no (really)", Expected: "p (q)"},
	}}
	for text, want := range map[string][]string{
		red.Reason():                            {"a: x; y (expected: z)", "b: no (really) (expected: p (q))"},
		"rolled back by hand":                   {"rolled back by hand"},
		"it used up its boots; nothing is left": {"it used up its boots; nothing is left"},
		"":                                      {""},
	} {
		if diff := cmp.Diff(want, reasons(text)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestPrintGate(t *testing.T) {
	soak := 12
	waiting := []status.Awaited{{Name: "default/web", Seen: "no\x07 task", Expected: "running"}}
	for _, c := range []struct {
		gate *status.Gate
		want string
	}{
		{nil, ""},
		{&status.Gate{SecondsLeft: 300}, "  Gate\trunning: the first look, verdict in at most 5m0s\n\n"},
		{&status.Gate{SecondsLeft: 192, Checks: 9, Waiting: waiting}, "  Gate\trunning: 1 of 9 checks to go, verdict in at most 3m12s\n  \tdefault/web: no? task (expected: running)\n\n"},
		{&status.Gate{SecondsLeft: 192, Checks: 9, SoakSecondsLeft: &soak}, "  Gate\trunning: soaking, 12 s left; verdict in at most 3m12s\n\n"},
	} {
		var out bytes.Buffer
		printGate(&out, c.gate)
		if diff := cmp.Diff(c.want, out.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// TestRunningGateIsShown: from its first moment, though systemd does not answer, until
// it has ended.
func TestRunningGateIsShown(t *testing.T) {
	_, _, public := sample.Key(t)
	p := plain{dir: t.TempDir()}
	p.containerd, p.systemd, p.namespace = p.path("none.sock"), p.path("mute.sock"), "osctl"
	if err := p.create(public); err != nil {
		t.Fatal(err)
	}
	patient := strings.Replace(p.yaml(), "deadline: 4s", "deadline: 10m", 1)
	if err := os.WriteFile(p.config(), []byte(patient), 0o600); err != nil {
		t.Fatal(err)
	}
	mute, err := net.Listen("unix", p.systemd)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close() //nolint:errcheck // it only listens
	show := func() string {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"osctl", "status", "--config", p.config()}, nil, &out, &errs); code != 0 {
			t.Fatalf("status ends with %d: %s", code, errs.String())
		}
		return out.String()
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{"osctl", "health", "--config", p.config()}, nil, &bytes.Buffer{}, &bytes.Buffer{})
	}()
	conn, err := mute.Accept() // the gate asks
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is said
	if out := show(); !strings.Contains(out, "Gate  ") || !strings.Contains(out, "running: ") || !strings.Contains(out, "verdict in at most ") {
		t.Errorf("while the gate runs, status says:\n%s", out)
	}
	cancel()
	<-ended
	if out := show(); strings.Contains(out, "Gate  ") {
		t.Errorf("when the gate has ended, status says:\n%s", out)
	}
}
