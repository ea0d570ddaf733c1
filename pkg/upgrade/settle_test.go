package upgrade_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// after is a machine at the end of a boot.
type after struct {
	t      *testing.T
	boot   *boot.Store
	ledger *ledger.Store
	green  bool
	asked  []health.Baseline
	lock   string
	envs   [2]string
	// lacks, excuse and rescue are what Settle is told of the machine.
	lacks, excuse string
	rescue        bool
	hooks         upgrade.Hooks
	images        upgrade.Images
}

// newAfter makes a machine with 1.0 committed in A and 1.1 staged in B.
func newAfter(t *testing.T, green bool) *after {
	t.Helper()
	dir := t.TempDir()
	a := &after{t: t, ledger: ledger.Open(dir), green: green, lock: filepath.Join(dir, "lock")}
	envs := [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, e := range envs {
		if err := boot.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	a.envs = envs
	if a.boot, err = boot.Open(envs); err != nil {
		t.Fatal(err)
	}
	err = a.ledger.Update(func(l *ledger.Ledger) error {
		first, err := ledger.New(ledger.Entry{Digest: "sha256:1", Version: "1.0", Epoch: 1}, time.Now())
		if err != nil {
			return err
		}
		*l = *first
		l.Slots[device.SlotB] = &ledger.Entry{Digest: "sha256:2", Version: "1.1", Epoch: 2, State: ledger.Staged,
			Baseline: &health.Baseline{Workloads: []health.Workload{{Name: "web"}}}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// arm puts B on trial and lets GRUB boot as many times.
func (a *after) arm(boots int) *after {
	a.t.Helper()
	if err := a.boot.ArmProven(device.SlotB, 3); err != nil {
		a.t.Fatal(err)
	}
	a.down(boots)
	return a
}

func (a *after) settle(booted device.Slot, kind string) (upgrade.Verdict, error) {
	return upgrade.Settle(ctx, upgrade.Settlement{
		Booted: device.Boot{Slot: booted, Kind: kind}, Boot: a.boot, Ledger: a.ledger, Log: slog.New(slog.DiscardHandler), Lock: a.take,
		System: func(context.Context) string { return a.lacks }, Excuse: a.excuse, Rescue: func() bool { return a.rescue }, Hooks: a.hooks,
		Gate: func(_ context.Context, b health.Baseline) health.Report {
			a.asked = append(a.asked, b)
			r := health.Report{Green: a.green, Checks: []health.Check{{Kind: health.KindWorkload, Name: "web", Required: true, Seen: "no task", Expected: "running", OK: a.green}}}
			return r
		},
	})
}

func (a *after) write(path, text string) {
	a.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *after) take() (func() error, error) {
	held, err := boot.Lock(a.lock)
	if err != nil {
		return nil, err
	}
	return held.Release, nil
}

func (a *after) check(v upgrade.Verdict, err error, action upgrade.Action, state boot.State) *ledger.Ledger {
	a.t.Helper()
	if err != nil || v.Action != action {
		a.t.Errorf("Settle = %+v, %v; want %q", v, err, action)
	}
	got, problems, err := a.boot.Load()
	if err != nil || got != state || len(problems) > 0 {
		a.t.Errorf("boot state %v, %v, %v; want %v", got, problems, err, state)
	}
	l, err := a.ledger.Load()
	if err != nil {
		a.t.Fatal(err)
	}
	return l
}

var (
	committedA = boot.State{Phase: boot.Committed, Rootfs: device.SlotA, Tries: boot.FullTries}
	committedB = boot.State{Phase: boot.Committed, Rootfs: device.SlotB, Tries: boot.FullTries, Other: true}
	fellBackA  = boot.State{Phase: boot.FellBack, Rootfs: device.SlotA, Tries: boot.FullTries}
)

func TestSettleCommitsAGreenTrial(t *testing.T) {
	a := newAfter(t, true).arm(0)
	v, err := a.settle(device.SlotB, "trial")
	l := a.check(v, err, upgrade.Kept, committedB)
	if l.Floor != (ledger.Floor{Version: "1.1", Epoch: 2}) || l.Slot(device.SlotB).State != ledger.Committed || l.Slot(device.SlotB).Baseline != nil {
		t.Errorf("ledger %+v, floor %+v", l.Slot(device.SlotB), l.Floor)
	}
	if len(a.asked) != 1 || len(a.asked[0].Workloads) != 1 {
		t.Errorf("the gate was asked %v", a.asked)
	}
	// The next boot has nothing to do and asks nobody.
	v, err = a.settle(device.SlotB, "committed")
	a.check(v, err, upgrade.Nothing, committedB)
	if len(a.asked) != 1 {
		t.Error("the gate was asked on a committed system")
	}
}

func TestSettleGoesBackFromARedTrial(t *testing.T) {
	a := newAfter(t, false).arm(0)
	v, err := a.settle(device.SlotB, "trial")
	l := a.check(v, err, upgrade.WentBack, fellBackA)
	f := l.FailureOf("sha256:2")
	if f == nil || !strings.Contains(f.Reason, "web: no task") || l.Floor.Version != "1.0" {
		t.Errorf("failure %+v, floor %+v", f, l.Floor)
	}
	// Back on A: the failure is on record, with its first reason.
	v, err = a.settle(device.SlotA, "fallback")
	l = a.check(v, err, upgrade.Acknowledged, committedA)
	if !strings.Contains(v.Reason, "web: no task") || len(l.Failed) != 1 {
		t.Errorf("verdict %+v, failures %v", v, l.Failed)
	}
}

// GRUB gave the trial up: it never reached its gate.
func TestSettleRecordsAFallBack(t *testing.T) {
	a := newAfter(t, true).arm(0)
	if err := a.boot.FallBack(); err != nil {
		t.Fatal(err)
	}
	v, err := a.settle(device.SlotA, "fallback")
	l := a.check(v, err, upgrade.Acknowledged, committedA)
	if f := l.FailureOf("sha256:2"); f == nil || !strings.Contains(f.Reason, "without reaching") || len(a.asked) != 1 {
		t.Errorf("failure %+v, the gate was asked %v", f, a.asked)
	}
}

func TestSettleWithATrialThatWasNotTaken(t *testing.T) {
	a := newAfter(t, true).arm(0)
	v, err := a.settle(device.SlotA, "committed")
	l := a.check(v, err, upgrade.Nothing, boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 3, Other: true})
	if len(l.Failed) != 0 {
		t.Error("an armed trial counts as failed")
	}
	v, err = a.settle(device.SlotA, "unsaved")
	l = a.check(v, err, upgrade.Acknowledged, committedA)
	if f := l.FailureOf("sha256:2"); f == nil || !strings.Contains(f.Reason, "could not save") {
		t.Errorf("failure %+v", f)
	}
}

func TestSettleAdoptsTheRunningSlot(t *testing.T) {
	for _, green := range []bool{true, false} {
		a := newAfter(t, green) // A is committed, B runs
		v, err := a.settle(device.SlotB, "fallback")
		if green {
			a.check(v, err, upgrade.Kept, committedB)
		} else {
			a.check(v, err, upgrade.Unproven, committedA)
		}
	}
	a := newAfter(t, true)
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(a.lock), name), make([]byte, 1024), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v, err := a.settle(device.SlotA, "unsaved")
	a.check(v, err, upgrade.Kept, committedA)
}

// A ledger that cannot be written does not keep the machine on a bad slot.
func TestSettleGoesBackWithoutALedger(t *testing.T) {
	a := newAfter(t, false).arm(0)
	a.ledger = ledger.Open("/dev/null/none")
	v, err := a.settle(device.SlotB, "trial")
	if err != nil || v.Action != upgrade.WentBack {
		t.Errorf("Settle = %+v, %v", v, err)
	}
	if s, _, err := a.boot.Load(); err != nil || s.Phase != boot.FellBack || s.Rootfs != device.SlotA {
		t.Errorf("boot state %v, %v", s, err)
	}
}

// An interrupted gate is no verdict.
func TestSettleInterrupted(t *testing.T) {
	a := newAfter(t, false).arm(0)
	stopped, cancel := context.WithCancel(ctx)
	_, err := upgrade.Settle(stopped, upgrade.Settlement{
		Booted: device.Boot{Slot: device.SlotB, Kind: "trial"}, Boot: a.boot, Ledger: a.ledger, Log: slog.New(slog.DiscardHandler), Lock: a.take,
		Gate: func(context.Context, health.Baseline) health.Report { cancel(); return health.Report{} },
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if s, _, err := a.boot.Load(); err != nil || s.Phase != boot.Trial {
		t.Errorf("boot state %v, %v", s, err)
	}
}

// A cut between the commit of the boot state and the ledger.
func TestSettleMendsTheLedger(t *testing.T) {
	a := newAfter(t, true).arm(0)
	if err := a.boot.Commit(device.SlotB); err != nil {
		t.Fatal(err)
	}
	v, err := a.settle(device.SlotB, "committed")
	if l := a.check(v, err, upgrade.Nothing, committedB); l.Floor.Version != "1.1" {
		t.Errorf("floor %+v", l.Floor)
	}
}

func (a *after) rollBack(booted device.Slot) (upgrade.Back, error) {
	return upgrade.RollBack(ctx, upgrade.Reversal{Booted: booted, Lock: a.take, Boot: a.boot, Ledger: a.ledger, Tries: 3, Images: a.images, Log: slog.New(slog.DiscardHandler)})
}

func TestRollBack(t *testing.T) {
	// From a committed B to a proven A.
	a := newAfter(t, true).arm(0)
	if v, err := a.settle(device.SlotB, "trial"); err != nil || v.Action != upgrade.Kept {
		t.Fatal(v, err)
	}
	b, err := a.rollBack(device.SlotB)
	a.check(upgrade.Verdict{}, err, "", boot.State{Phase: boot.Trial, Rootfs: device.SlotA, Tries: 3, Other: true})
	if b.Slot != device.SlotA {
		t.Errorf("rolled back to %s", b.Slot)
	}
	// Once more before the reboot takes it back.
	b, err = a.rollBack(device.SlotB)
	a.check(upgrade.Verdict{}, err, "", committedB)
	if b.Slot != device.SlotB {
		t.Errorf("rolled back to %s", b.Slot)
	}
	// During a trial of B.
	a = newAfter(t, true).arm(0)
	b, err = a.rollBack(device.SlotB)
	l := a.check(upgrade.Verdict{}, err, "", fellBackA)
	if b.Slot != device.SlotA || l.FailureOf("sha256:2") == nil {
		t.Errorf("rolled back to %s, failures %v", b.Slot, l.Failed)
	}
}

// TestRollBackWithoutALedger: the boot state alone knows that A is proven.
func TestRollBackWithoutALedger(t *testing.T) {
	a := newAfter(t, true).arm(0)
	if v, err := a.settle(device.SlotB, "trial"); err != nil || v.Action != upgrade.Kept {
		t.Fatal(v, err)
	}
	file := filepath.Join(filepath.Dir(a.lock), ledger.File)
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil { // nor can there be one
		t.Fatal(err)
	}
	b, err := a.rollBack(device.SlotB)
	if err != nil || b.Slot != device.SlotA {
		t.Errorf("rolled back to %q: %v", b.Slot, err)
	}
}

func TestRollBackRefuses(t *testing.T) {
	a := newAfter(t, true) // B is staged, never committed
	if _, err := a.rollBack(device.SlotA); !errors.Is(err, upgrade.ErrNoProvenSlot) || !strings.Contains(err.Error(), "1.1, which is staged") {
		t.Errorf("error = %v", err)
	}
	a.check(upgrade.Verdict{}, nil, "", committedA)
}
