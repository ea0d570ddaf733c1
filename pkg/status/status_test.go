package status

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/clock"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// states plays a boot state.
type states struct {
	state    boot.State
	problems []boot.Problem
	err      error
}

func (s states) Load() (boot.State, []boot.Problem, error) { return s.state, s.problems, s.err }

// sources is a machine with 1.1 running from B and 1.0 in A.
func sources(t *testing.T) Sources {
	t.Helper()
	dir := t.TempDir()
	store := ledger.Open(dir)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	err := store.Update(func(l *ledger.Ledger) error {
		first, err := ledger.New(ledger.Entry{Digest: "sha256:1", Version: "1.0", Reference: "r/os:1.0", SignedBy: "release", Basis: &ledger.Basis{Rule: "production"}}, at)
		if err != nil {
			return err
		}
		*l = *first
		l.Slots[device.SlotB] = &ledger.Entry{Digest: "sha256:2", Version: "1.1", State: ledger.Staged}
		return l.Commit(device.SlotB, at)
	})
	if err != nil {
		t.Fatal(err)
	}
	return Sources{
		Product: "gateway", Booted: device.Boot{Slot: device.SlotB}, Release: device.Release{Version: "1.1", Name: "Gateway 1.1"},
		Boot: states{state: boot.State{Phase: boot.Committed, Rootfs: device.SlotB}}, Ledger: store, DataDir: dir,
		Containers: func(context.Context) ([]health.Container, error) {
			return []health.Container{{Workload: health.Workload{Namespace: "default", Name: "web", Image: "r/web:1"}, Status: "running"}}, nil
		},
	}
}

func TestTake(t *testing.T) {
	shot := Take(context.Background(), sources(t))
	if shot.State != "committed" || shot.NextBoot != device.SlotB || shot.Booted.Version != "1.1" || shot.Other.Version != "1.0" || shot.Other.SignedBy != "release" || shot.Other.Basis == nil || shot.Other.Basis.Rule != "production" {
		t.Errorf("snapshot %+v", shot)
	}
	if diff := cmp.Diff([]Workload{{Name: "default/web", Image: "r/web:1", Status: "running"}}, shot.Workloads); diff != "" {
		t.Error(diff)
	}
	if len(shot.Problems) != 0 || shot.Space == nil || shot.Space.Total == 0 || shot.Last.Kind != "committed" || shot.Floor.Version != "1.1" {
		t.Errorf("snapshot %+v", shot)
	}
}

func TestStates(t *testing.T) {
	for name, tt := range map[string]struct {
		state boot.State
		want  string
		next  device.Slot
	}{
		"on trial":       {boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 2}, "trial", device.SlotB},
		"the last try":   {boot.State{Phase: boot.Trial, Rootfs: device.SlotB}, "trial", device.SlotA},
		"armed":          {boot.State{Phase: boot.Trial, Rootfs: device.SlotA, Tries: 3}, "armed", device.SlotA},
		"fell back":      {boot.State{Phase: boot.FellBack, Rootfs: device.SlotB}, "fell back", device.SlotB},
		"another slot":   {boot.State{Phase: boot.Committed, Rootfs: device.SlotA}, "unknown", device.SlotA},
		"committed here": {boot.State{Phase: boot.Committed, Rootfs: device.SlotB}, "committed", device.SlotB},
	} {
		s := sources(t)
		s.Boot = states{state: tt.state}
		shot := Take(context.Background(), s)
		if shot.State != tt.want || shot.NextBoot != tt.next || shot.TriesLeft != tt.state.Tries {
			t.Errorf("%s: %q, next %s, %d tries", name, shot.State, shot.NextBoot, shot.TriesLeft)
		}
	}
}

// What was amiss after a fall back is a problem until the next upgrade.
func TestNotAsBefore(t *testing.T) {
	s := sources(t)
	add := func(kind string) []string {
		err := s.Ledger.Update(func(l *ledger.Ledger) error {
			l.Add(ledger.Event{At: time.Now(), Kind: kind, Slot: device.SlotB, Reason: "default/web: stopped"})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return Take(context.Background(), s).Problems
	}
	want := []string{"after the fall back not everything was as before the upgrade: default/web: stopped"}
	if diff := cmp.Diff(want, add(ledger.NotAsBefore)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, add("restored")); diff != "" {
		t.Error(diff)
	}
	if got := add("staged"); len(got) != 0 {
		t.Errorf("after the next upgrade: %q", got)
	}
}

// What cannot be read is a problem in the snapshot, and the rest is still told.
func TestProblems(t *testing.T) {
	for want, plant := range map[string]func(*Sources){
		"the booted slot is unknown": func(s *Sources) { s.BootedErr = device.ErrNoSlot },
		"boot state: no copy":        func(s *Sources) { s.Boot = states{err: boot.ErrUnknown} },
		"boot state: /efi/a: torn": func(s *Sources) {
			s.Boot = states{state: boot.State{Rootfs: device.SlotB}, problems: []boot.Problem{{Path: "/efi/a", Err: errors.New("torn")}}}
		},
		"the workloads are unknown: no containerd": func(s *Sources) {
			s.Containers = func(context.Context) ([]health.Container, error) { return nil, errors.New("no containerd") }
		},
		"the data partition is missing":          func(s *Sources) { s.DataDir = "/nonexistent" },
		"mounting /data: no such device":         func(s *Sources) { s.Degraded = []string{"mounting /data: no such device"} },
		"it says slot B holds 1.1, but 9.9 runs": func(s *Sources) { s.Release.Version = "9.9" },
		"what the slots hold is unknown": func(s *Sources) {
			if err := os.WriteFile(filepath.Join(s.DataDir, ledger.File), []byte("garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		s := sources(t)
		plant(&s)
		shot := Take(context.Background(), s)
		if len(shot.Problems) != 1 || !strings.Contains(shot.Problems[0], want) {
			t.Errorf("problems %q, want %q", shot.Problems, want)
		}
		if shot.Booted.Version == "" {
			t.Errorf("%s: nothing is said of the running version", want)
		}
	}
}

// A clock that is behind what has passed is a problem to show, with both.
func TestClockBehind(t *testing.T) {
	s := sources(t)
	passed := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s.Clock = clock.With(func() time.Time { return time.Unix(0, 0) }, passed)
	want := "the clock says 1970-01-01T00:00:00Z, and it is 2026-11-01T00:00:00Z at least: set it (timedatectl)"
	if shot := Take(context.Background(), s); !slices.Contains(shot.Problems, want) {
		t.Errorf("problems %q, want %q", shot.Problems, want)
	}
}
