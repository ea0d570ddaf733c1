package announce

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/status"
)

// family is a metric with its samples.
type family struct {
	name, help string
	samples    []sample
}

type sample struct {
	labels []string // name, value, name, value …
	value  float64
}

// Metrics are the same facts in Prometheus' text format, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats): all are gauges, times are
// Unix seconds, and what is not known is left out.
func Metrics(f Facts) string {
	shot := f.Shot
	families := []family{
		{"osctl_state", "How the machine stands: 1 for what is the case.", oneOf("state", shot.State, "committed", "trial", "armed", "fell back", "unknown")},
		{"osctl_booted_slot", "The slot that runs: 1 for what is the case.", oneOf("slot", string(shot.Booted.Slot), string(device.SlotA), string(device.SlotB), string(device.Rescue))},
		{"osctl_system_info", "What the slots hold, by role: booted or other. Always 1.", []sample{system("booted", shot.Product, shot.Booted), system("other", shot.Product, shot.Other)}},
		one("osctl_tries_left", "Boots that a trial, running or armed, has left; 0 without one.", float64(shot.TriesLeft)),
		one("osctl_problems", "Entries of problems in osctl status.", float64(len(shot.Problems))),
	}
	families = append(families, last(shot)...)
	families = append(families, gate(f)...)
	var text strings.Builder
	for _, m := range families {
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %[1]s gauge\n", m.name, m.help)
		for _, s := range m.samples {
			text.WriteString(m.name + labels(s.labels) + " " + strconv.FormatFloat(s.value, 'g', -1, 64) + "\n")
		}
	}
	return text.String()
}

// last is the result of the last upgrade, and the times of what happened.
func last(shot status.Snapshot) []family {
	result := "none"
	switch {
	case shot.State == "trial" || shot.State == "armed":
		result = "pending"
	case shot.State == "fell back" || fellBack(shot):
		result = "failed"
	case shot.Booted.State == ledger.Committed:
		result = "committed"
	}
	list := []family{{"osctl_last_result", "What became of the last image: 1 for what is the case.", oneOf("result", result, "none", "pending", "committed", "failed")}}
	when := family{name: "osctl_last_event_timestamp_seconds", help: "When an image was staged, committed or failed last, by the clock of that moment."}
	add := func(event string, at time.Time) {
		if !at.IsZero() {
			when.samples = append(when.samples, sample{[]string{"event", event}, unix(at)})
		}
	}
	add("staged", later(shot.Booted.StagedAt, shot.Other.StagedAt))
	add("committed", later(shot.Booted.CommittedAt, shot.Other.CommittedAt))
	if shot.LastFailure != nil {
		add("failed", shot.LastFailure.At)
	}
	if len(when.samples) > 0 {
		list = append(list, when)
	}
	return list
}

// gate are the facts of this boot's gate.
func gate(f Facts) []family {
	running := 0.0
	if f.Shot.Gate != nil {
		running = 1
	}
	list := []family{one("osctl_gate_running", "Whether the health gate runs at this moment.", running)}
	r := f.Report
	if r == nil {
		return list
	}
	counts := map[string]float64{}
	for _, c := range r.Checks {
		switch {
		case c.OK:
			counts["ok"]++
		case c.Required:
			counts["failed"]++
		default:
			counts["warning"]++
		}
	}
	checks := family{name: "osctl_gate_checks", help: "Checks of the health gate on this boot, by what became of them."}
	for _, result := range []string{"ok", "failed", "warning"} {
		checks.samples = append(checks.samples, sample{[]string{"result", result}, counts[result]})
	}
	green := 0.0
	if r.Green {
		green = 1
	}
	return append(list,
		one("osctl_gate_green", "Whether the health gate of this boot was passed.", green),
		one("osctl_gate_duration_seconds", "How long the health gate of this boot took.", r.Duration.Seconds()),
		one("osctl_gate_overhead_seconds", "Processor time that the health gate of this boot took for itself.", r.Overhead.Seconds()),
		one("osctl_gate_finished_timestamp_seconds", "When the health gate of this boot ended.", unix(r.Finished)),
		checks,
	)
}

func one(name, help string, value float64) family {
	return family{name, help, []sample{{nil, value}}}
}

// oneOf is 1 for the value that is the case and 0 for the others.
func oneOf(label, is string, values ...string) []sample {
	var list []sample
	for _, v := range values {
		s := sample{labels: []string{label, v}}
		if v == is {
			s.value = 1
		}
		list = append(list, s)
	}
	return list
}

func system(role, product string, s status.System) sample {
	return sample{[]string{
		"role", role, "product", product, "slot", string(s.Slot), "version", s.Version, "digest", s.Digest, "state", string(s.State),
	}, 1}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// labels are escaped as the format asks for: backslash, quote, line feed.
func labels(pairs []string) string {
	if len(pairs) == 0 {
		return ""
	}
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	var list []string
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, pairs[i]+`="`+escape.Replace(strings.ToValidUTF8(pairs[i+1], "?"))+`"`)
	}
	return "{" + strings.Join(list, ",") + "}"
}
