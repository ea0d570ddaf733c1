package announce

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/status"
)

// The grammar of the text format, version 0.0.4: a sample, and a label in it.
var (
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (\S+)$`)
	labelPair  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"`)
)

// parse reads metrics as strictly as node_exporter's collector does: each family
// begins with its help and its type and comes once, each sample comes once and has no
// time. It returns values by name and labels, unescaped.
func parse(t *testing.T, text string) map[string]float64 {
	t.Helper()
	if !strings.HasSuffix(text, "\n") {
		t.Error("the last line has no end")
	}
	values, families, current := map[string]float64{}, map[string]bool{}, ""
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if rest, ok := strings.CutPrefix(lines[i], "# HELP "); ok {
			current, _, _ = strings.Cut(rest, " ")
			if families[current] {
				t.Errorf("the family %s comes twice", current)
			}
			families[current] = true
			if i++; i == len(lines) || lines[i] != "# TYPE "+current+" gauge" {
				t.Errorf("the family %s has no type", current)
			}
			continue
		}
		m := sampleLine.FindStringSubmatch(lines[i])
		if m == nil || m[1] != current {
			t.Errorf("in the family %s, not a sample of it: %q", current, lines[i])
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Error(err)
		}
		key := m[1]
		for _, pair := range labelPair.FindAllStringSubmatch(m[2], -1) {
			key += " " + pair[1] + "=" + strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n").Replace(pair[2])
		}
		if _, twice := values[key]; twice {
			t.Errorf("the sample %q comes twice", key)
		}
		values[key] = value
	}
	return values
}

// holding are the samples of a family that are not 0.
func holding(values map[string]float64, family string) []string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if rest, ok := strings.CutPrefix(key, family+" "); ok && values[key] != 0 {
			list = append(list, rest)
		}
	}
	return list
}

func TestMetrics(t *testing.T) {
	f := Facts{Shot: shot(), Report: &health.Report{
		Green: true, Duration: 31500 * time.Millisecond, Overhead: 40 * time.Millisecond, Finished: time.Unix(1_800_000_100, 500_000_000),
		Checks: []health.Check{{OK: true, Required: true}, {OK: true}, {}},
	}}
	f.Shot.Booted.StagedAt, f.Shot.Booted.CommittedAt = time.Unix(1_800_000_000, 0), time.Unix(1_800_000_101, 0)
	f.Shot.Other.CommittedAt = time.Unix(1_700_000_000, 0)
	want := map[string]float64{
		"osctl_state state=committed": 1, "osctl_state state=trial": 0, "osctl_state state=armed": 0, "osctl_state state=fell back": 0, "osctl_state state=unknown": 0,
		"osctl_booted_slot slot=A": 0, "osctl_booted_slot slot=B": 1, "osctl_booted_slot slot=rescue": 0,
		"osctl_system_info role=booted product=gateway slot=B version=1.1 digest=sha256:2 state=committed": 1,
		"osctl_system_info role=other product=gateway slot=A version=1.0 digest=sha256:1 state=committed":  1,
		"osctl_tries_left": 0, "osctl_problems": 0,
		"osctl_last_result result=none": 0, "osctl_last_result result=pending": 0, "osctl_last_result result=committed": 1, "osctl_last_result result=failed": 0,
		"osctl_last_event_timestamp_seconds event=staged":    1_800_000_000,
		"osctl_last_event_timestamp_seconds event=committed": 1_800_000_101,
		"osctl_gate_running": 0, "osctl_gate_green": 1, "osctl_gate_duration_seconds": 31.5, "osctl_gate_overhead_seconds": 0.04,
		"osctl_gate_finished_timestamp_seconds": 1_800_000_100.5,
		"osctl_gate_checks result=ok":           2, "osctl_gate_checks result=failed": 0, "osctl_gate_checks result=warning": 1,
	}
	if diff := cmp.Diff(want, parse(t, Metrics(f))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMetricsOfStates: in each state one state and one result hold, and a machine of
// which nothing is known has metrics as well.
func TestMetricsOfStates(t *testing.T) {
	for name, c := range map[string]struct {
		change        func(*Facts)
		state, result string
	}{
		"trial": {func(f *Facts) { f.Shot.State, f.Shot.TriesLeft, f.Shot.Gate = "trial", 2, &status.Gate{} }, "trial", "pending"},
		"armed": {func(f *Facts) { f.Shot.State = "armed" }, "armed", "pending"},
		"fell back": {func(f *Facts) {
			f.Shot.State, f.Shot.LastFailure = "fell back", &ledger.Failure{At: time.Unix(5, 0)}
		}, "fell back", "failed"},
		"recorded": {func(f *Facts) {
			f.Shot.LastFailure, f.Shot.Other.State = &ledger.Failure{Digest: "sha256:1"}, ledger.Failed
		}, "committed", "failed"},
		"nothing known": {func(f *Facts) { f.Shot = status.Snapshot{State: "unknown"} }, "unknown", "none"},
	} {
		f := Facts{Shot: shot()}
		c.change(&f)
		values := parse(t, Metrics(f))
		if diff := cmp.Diff([]string{"state=" + c.state}, holding(values, "osctl_state")); diff != "" {
			t.Errorf("%s: states (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{"result=" + c.result}, holding(values, "osctl_last_result")); diff != "" {
			t.Errorf("%s: results (-want +got):\n%s", name, diff)
		}
		if got, want := values["osctl_tries_left"], float64(f.Shot.TriesLeft); got != want {
			t.Errorf("%s: %v tries are left, want %v", name, got, want)
		}
		if got := values["osctl_gate_running"]; (got == 1) != (name == "trial") {
			t.Errorf("%s: the gate runs: %v", name, got)
		}
		if _, ok := values["osctl_gate_green"]; ok {
			t.Errorf("%s: a gate that has not ended is said to be green or red", name)
		}
	}
}

// TestMetricsAreEscaped: a value from elsewhere stays a value.
func TestMetricsAreEscaped(t *testing.T) {
	for _, version := range []string{`1"} 1` + "\nosctl_tries_left 9", `back\slash`, "\xff\xfe", `\n`} {
		f := Facts{Shot: status.Snapshot{State: "committed", Booted: status.System{Slot: device.SlotA, Version: version}}}
		values := parse(t, Metrics(f))
		want := strings.ToValidUTF8(version, "?")
		if _, ok := values["osctl_system_info role=booted product= slot=A version="+want+" digest= state="]; !ok || values["osctl_tries_left"] != 0 {
			t.Errorf("the version %q became %v", version, holding(values, "osctl_system_info"))
		}
	}
}
