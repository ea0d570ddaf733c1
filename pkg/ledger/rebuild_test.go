package ledger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
)

// TestRebuild: from nothing, from an older ledger, and from one that is right.
func TestRebuild(t *testing.T) {
	both := Facts{
		Proven: []device.Slot{"B", "A"},
		Held:   map[device.Slot]Entry{"B": {Version: "1.3", Epoch: 2, Digest: "sha256:3"}, "A": {Version: "1.2"}, "C": {Version: "9"}},
	}
	older := fresh(t, "1.0", 1)
	older.Slots["B"] = &Entry{Version: "1.1", Digest: "sha256:1", State: Staged}
	right := fresh(t, "1.2", 1)
	right.Slots["B"] = &Entry{Version: "1.3", Digest: "sha256:3", Epoch: 2, State: Staged}
	if err := right.Commit("B", now); err != nil {
		t.Fatal(err)
	}
	unrecorded := fresh(t, "1.2", 1)
	unrecorded.Slots["B"] = &Entry{Version: "1.3", Digest: "sha256:3", Epoch: 2, State: Staged, SignedBy: "release"}
	lowered := fresh(t, "1.2", 1)
	lowered.Slots["B"] = &Entry{Version: "1.3", Digest: "sha256:3", Epoch: 2, State: Committed}
	lowered.Floor = Floor{"1.0", 0}
	for name, c := range map[string]struct {
		ledger  *Ledger
		facts   Facts
		changed bool
		events  int
		floor   Floor
	}{
		"lost":                    {empty(), both, true, 2, Floor{"1.3", 2}},
		"older":                   {older, both, true, 2, Floor{"1.3", 2}},
		"right":                   {right, both, false, 0, Floor{"1.3", 2}},
		"a commit not on record":  {unrecorded, both, true, 0, Floor{"1.3", 2}},
		"a floor put back":        {lowered, both, true, 0, Floor{"1.3", 2}},
		"slots that tell nothing": {empty(), Facts{Proven: []device.Slot{"A"}}, false, 0, Floor{}},
		"a version that is none":  {empty(), Facts{Proven: []device.Slot{"A"}, Held: map[device.Slot]Entry{"A": {Version: "not/a version"}}}, false, 0, Floor{}},
	} {
		changed, err := c.ledger.Rebuild(c.facts, now)
		if err != nil || changed != c.changed {
			t.Errorf("%s: changed %t, %v; want %t", name, changed, err, c.changed)
		}
		if diff := cmp.Diff(c.floor, c.ledger.Floor); diff != "" {
			t.Errorf("%s: floor (-want +got):\n%s", name, diff)
		}
		events := 0
		for _, e := range c.ledger.History {
			if e.Kind == "rebuilt" {
				events++
			}
		}
		if events != c.events {
			t.Errorf("%s: %d notes, want %d: %v", name, events, c.events, c.ledger.History)
		}
		if e := c.ledger.Slot("B"); len(c.facts.Proven) == 2 && (e == nil || e.State != Committed || e.Version != "1.3") {
			t.Errorf("%s: slot B: %+v", name, e)
		}
		if again, err := c.ledger.Rebuild(c.facts, now); again || err != nil {
			t.Errorf("%s: changed a second time (%v)", name, err)
		}
	}
	if unrecorded.Slot("B").SignedBy != "release" {
		t.Error("what was on record of the same image is lost")
	}
}

// TestRebuildNeverLowersTheFloor: an older system that is proven as well.
func TestRebuildNeverLowersTheFloor(t *testing.T) {
	l := fresh(t, "2.0", 5)
	if _, err := l.Rebuild(Facts{Proven: []device.Slot{"A"}, Held: map[device.Slot]Entry{"A": {Version: "1.0"}}}, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Floor{"2.0", 5}, l.Floor); diff != "" {
		t.Error(diff)
	}
}

// TestCorruptLedgerIsKept: beside the new one, and noted in it.
func TestCorruptLedgerIsKept(t *testing.T) {
	s := Open(t.TempDir())
	if err := os.WriteFile(s.path(), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(func(*Ledger) error { return nil }); err != nil {
		t.Fatal(err)
	}
	l, err := s.Load()
	if err != nil || len(l.History) != 1 || l.History[0].Kind != "rebuilt" || !strings.Contains(l.History[0].Reason, "kept as ledger.json.corrupt") {
		t.Errorf("history %v, %v", l.History, err)
	}
	if kept, err := os.ReadFile(s.path() + ".corrupt"); err != nil || string(kept) != "garbage" {
		t.Errorf("kept: %q, %v", kept, err)
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	s := Open(filepath.Join(dir, "osctl"))
	if err := os.Mkdir(filepath.Join(dir, "osctl"), 0o700); err != nil {
		t.Fatal(err)
	}
	// What a cut left of an earlier one goes.
	if err := os.WriteFile(filepath.Join(dir, "osctl", "..probe.tmp-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "osctl")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Open(filepath.Join(dir, "file")).Probe(); err == nil || !strings.Contains(err.Error(), "checking that the ledger can be changed") {
		t.Errorf("where no ledger can be: %v", err)
	}
}
