package upgrade_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// listen notes the hooks that are called, with the boot state and the ledger of that
// moment.
func (a *after) listen() *[]string {
	var heard []string
	note := func(name string) {
		s, _, err := a.boot.Load()
		if err != nil {
			a.t.Error(err)
		}
		l, err := a.ledger.Load()
		if err != nil {
			a.t.Error(err)
		}
		state := ledger.State("nothing")
		if e := l.Slot(device.SlotB); e != nil {
			state = e.State
		}
		heard = append(heard, name+": "+"slot "+string(s.Rootfs)+" "+s.Phase.String()+", "+string(state))
	}
	a.hooks = upgrade.Hooks{
		Kept:  func(context.Context) error { note("kept"); return nil },
		Green: func(context.Context) error { note("green"); return nil },
		Red:   func(_ context.Context, reason string) error { note("red " + reason); return nil },
	}
	return &heard
}

// The order of a green verdict: the boot state, what the workloads need, the ledger,
// and then the others may know.
func TestHooksOfAGreenTrial(t *testing.T) {
	a := newAfter(t, true).arm(0)
	heard := a.listen()
	v, err := a.settle(device.SlotB, "trial")
	a.check(v, err, upgrade.Kept, committedB)
	if diff := cmp.Diff([]string{"kept: slot B committed, staged", "green: slot B committed, committed"}, *heard); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
	// Later boots have nothing to tell.
	v, err = a.settle(device.SlotB, "committed")
	a.check(v, err, upgrade.Nothing, committedB)
	if len(*heard) != 2 {
		t.Errorf("hooks of a boot on which nothing was settled: %v", *heard)
	}
}

// A cut after the commit of the boot state: what the workloads need is kept at the
// next boot.
func TestKeptAfterACut(t *testing.T) {
	a := newAfter(t, true).arm(0)
	heard := a.listen()
	if err := a.boot.Commit(device.SlotB); err != nil {
		t.Fatal(err)
	}
	v, err := a.settle(device.SlotB, "committed")
	a.check(v, err, upgrade.Nothing, committedB)
	if diff := cmp.Diff([]string{"kept: slot B committed, staged"}, *heard); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

// The order of a red verdict: the reason is on record first, and the boot state goes
// back last.
func TestHooksOfARedTrial(t *testing.T) {
	a := newAfter(t, false).arm(0)
	heard := a.listen()
	v, err := a.settle(device.SlotB, "trial")
	a.check(v, err, upgrade.WentBack, fellBackA)
	if diff := cmp.Diff([]string{"red web: no task (expected: running): slot B on trial, failed"}, *heard); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

// A system that was adopted passed a gate too.
func TestHooksOfAnAdoptedSystem(t *testing.T) {
	a := newAfter(t, true)
	heard := a.listen()
	v, err := a.settle(device.SlotB, "fallback")
	a.check(v, err, upgrade.Kept, committedB)
	if diff := cmp.Diff([]string{"kept: slot B committed, staged", "green: slot B committed, committed"}, *heard); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

// Hooks that hang, whatever becomes of their context, or fail change no verdict.
func TestHooksThatDoNotBehave(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for name, hook := range map[string]func(context.Context) error{
		"hangs": func(context.Context) error { <-release; return nil },
		"fails": func(context.Context) error { return errors.New("no") },
	} {
		t.Run(name, func(t *testing.T) {
			hooks := upgrade.Hooks{Kept: hook, Green: hook, Red: func(ctx context.Context, _ string) error { return hook(ctx) }, Limit: time.Millisecond}
			a := newAfter(t, true).arm(0)
			a.hooks = hooks
			v, err := a.settle(device.SlotB, "trial")
			if l := a.check(v, err, upgrade.Kept, committedB); l.Floor.Version != "1.1" {
				t.Errorf("floor %+v", l.Floor)
			}
			a = newAfter(t, false).arm(0)
			a.hooks = hooks
			v, err = a.settle(device.SlotB, "trial")
			if l := a.check(v, err, upgrade.WentBack, fellBackA); l.FailureOf("sha256:2") == nil {
				t.Error("the failure is not on record")
			}
		})
	}
}

// After a fall back the proven system is looked at by what ran on it before, without
// the lock; whatever the answer, the machine stays where it is.
func TestLookingBack(t *testing.T) {
	for _, green := range []bool{true, false} {
		a := newAfter(t, false).arm(0)
		if v, err := a.settle(device.SlotB, "trial"); err != nil || v.Action != upgrade.WentBack {
			t.Fatal(v, err)
		}
		a.green, a.asked = green, nil
		v, err := a.settle(device.SlotA, "fallback")
		l := a.check(v, err, upgrade.Acknowledged, committedA)
		if len(a.asked) != 1 || len(a.asked[0].Workloads) != 1 || a.asked[0].Workloads[0].Name != "web" {
			t.Errorf("the gate was asked %v", a.asked)
		}
		last := l.History[len(l.History)-1]
		if green == (last.Kind == ledger.NotAsBefore) {
			t.Errorf("green %t: the last event is %+v", green, last)
		}
		if !green && (last.Slot != device.SlotA || !strings.Contains(last.Reason, "web: no task")) {
			t.Errorf("event %+v", last)
		}
		if v.Report == nil || v.Report.Green != green {
			t.Errorf("verdict %+v", v)
		}
		// Only the first boot after the fall back looks back.
		v, err = a.settle(device.SlotA, "committed")
		a.check(v, err, upgrade.Nothing, committedA)
		if len(a.asked) != 1 {
			t.Error("the gate was asked again")
		}
	}
}

// While the gate looks back, the lock is free: somebody may repair the machine.
func TestLookingBackHoldsNoLock(t *testing.T) {
	a := newAfter(t, false).arm(0)
	if err := a.boot.FallBack(); err != nil {
		t.Fatal(err)
	}
	v, err := upgrade.Settle(ctx, upgrade.Settlement{
		Booted: device.Boot{Slot: device.SlotA, Kind: "fallback"}, Boot: a.boot, Ledger: a.ledger, Log: slog.New(slog.DiscardHandler), Lock: a.take,
		System: func(context.Context) string { return "" }, Rescue: func() bool { return false },
		Gate: func(context.Context, health.Baseline) health.Report {
			held, err := boot.Lock(filepath.Join(filepath.Dir(a.lock), "lock"))
			if err != nil {
				t.Error(err)
			}
			t.Cleanup(func() {
				if err := held.Release(); err != nil {
					t.Error(err)
				}
			})
			return health.Report{} // and it is still held when the answer comes
		},
	})
	l := a.check(v, err, upgrade.Acknowledged, committedA)
	if last := l.History[len(l.History)-1]; last.Kind != "failed" {
		t.Errorf("the history was changed without the lock: %+v", last)
	}
}
