package announce

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/status"
)

// shot is a machine that was committed on 1.1 in slot B, after 1.0 in slot A.
func shot() status.Snapshot {
	return status.Snapshot{
		Product: "gateway", State: "committed",
		Booted: status.System{Slot: device.SlotB, Version: "1.1", Digest: "sha256:2", State: ledger.Committed},
		Other:  status.System{Slot: device.SlotA, Version: "1.0", Digest: "sha256:1", State: ledger.Committed},
	}
}

func TestLine(t *testing.T) {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.FixedZone("", 3600))
	failed := &ledger.Failure{Digest: "sha256:1", Version: "1.2", Reason: "default/web: no task (expected: running)"}
	for _, c := range []struct {
		change func(*Facts)
		want   string
	}{
		{func(*Facts) {}, "committed"},
		{func(f *Facts) { f.Shot.State, f.Shot.TriesLeft = "trial", 2 }, "on trial, 2 tries left"},
		{func(f *Facts) {
			f.Shot.State, f.Shot.TriesLeft, f.Shot.Gate = "trial", 1, &status.Gate{SecondsLeft: 192}
		}, "on trial, 1 try left, verdict in at most 3m12s"},
		{func(f *Facts) { f.Shot.State, f.Shot.Gate, f.Now = "trial", &status.Gate{SecondsLeft: 192}, noon }, "on trial, 0 tries left, verdict by 11:03:12 UTC"},
		{func(f *Facts) { f.Shot.State, f.Shot.Other.Version = "armed", "1.2" }, "1.2 in slot A starts at the next boot, on trial"},
		{func(f *Facts) { f.Shot.State, f.Shot.LastFailure = "fell back", failed }, "fell back from 1.2 because default/web: no task (expected: running)"},
		{func(f *Facts) { f.Shot.State = "fell back" }, "fell back"},
		{func(f *Facts) { f.Shot.LastFailure, f.Shot.Other.State = failed, ledger.Failed }, "committed; fell back from 1.2 because default/web: no task (expected: running)"},
		// What failed long ago, before another image came into that slot.
		{func(f *Facts) { f.Shot.LastFailure = failed }, "committed"},
		{func(f *Facts) {
			f.Shot.LastFailure, f.Shot.Other.State, f.Shot.Other.Digest = failed, ledger.Failed, "sha256:3"
		}, "committed"},
		{func(f *Facts) { f.Shot.State = "unknown" }, "its boot state is unknown, see osctl status"},
	} {
		f := Facts{Shot: shot()}
		c.change(&f)
		if diff := cmp.Diff("osctl: gateway 1.1 (slot B): "+c.want, Line(f)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// TestLineIsPlain: whatever a failed check has seen, the line is one line, and nothing
// that a terminal or agetty acts on.
func TestLineIsPlain(t *testing.T) {
	for name, reason := range map[string]string{
		"control":           "a\x1b[2J\x07\x00\x7f",
		"lines":             "a\nroot login:\r\tb",
		"of agetty":         `\n \S{PRETTY_NAME} \e{red} \4`,
		"eight bits":        "\x9b31m \u009b \u202e caf\u00e9",
		"without an end":    strings.Repeat("x", 100_000),
		"only more of them": strings.Repeat("\u00e9", 300),
	} {
		f := Facts{Shot: shot()}
		f.Shot.State, f.Shot.LastFailure = "fell back", &ledger.Failure{Version: "1.2", Reason: reason}
		line := Line(f)
		bad := strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' || r == '\\' })
		if bad >= 0 || len(line) > MaxLine || !strings.HasPrefix(line, "osctl: gateway 1.1 (slot B): fell back from 1.2 because ") {
			t.Errorf("%s: the line is %q, %d characters", name, line, len(line))
		}
		if len(reason) > MaxLine && !strings.HasSuffix(line, " ...") {
			t.Errorf("%s: the line does not say that it was cut: %q", name, line)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	files := Files{Line: filepath.Join(dir, "run", "line"), Metrics: filepath.Join(dir, "run", "metrics", "osctl.prom")}
	for _, version := range []string{"1.1", "1.2"} {
		f := Facts{Shot: shot()}
		f.Shot.Booted.Version = version
		if err := files.Write(f); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{files.Line: "osctl: gateway " + version + " (slot B): committed\n", files.Metrics: Metrics(f)} {
			got, err := os.ReadFile(name)
			if err != nil || string(got) != want {
				t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
			}
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
	}
	// The one that cannot be written does not keep the other from it.
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := Files{Line: filepath.Join(dir, "file", "line"), Metrics: filepath.Join(dir, "osctl.prom")}
	if err := again.Write(Facts{Shot: shot()}); err == nil || !strings.Contains(err.Error(), "announcing: ") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(again.Metrics); err != nil {
		t.Error(err)
	}
	if err := (Files{}).Write(Facts{}); err != nil {
		t.Error(err)
	}
}
