package rescue_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/rescue"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
	"github.com/kapernikov/osctl/test/sample"
)

// watch runs Watch without waiting; each pause is handed to during.
func (b *bench) watch(during func(n int)) (r rescue.Result, pauses []time.Duration, told []error, err error) {
	w := rescue.Watching{
		Wait: func(ctx context.Context, d time.Duration) error {
			pauses = append(pauses, d)
			if during != nil {
				during(len(pauses))
			}
			return ctx.Err()
		},
		Tell: func(_ rescue.Survey, _ rescue.Result, err error, _ time.Duration) { told = append(told, err) },
	}
	r, err = rescue.Watch(ctx, b.machine, w, nil)
	return r, pauses, told, err
}

// The network comes back after a while: the attempts go on, with growing pauses,
// and end when one worked.
func TestWatchGoesOn(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	registry := b.layouts
	b.layouts = nil
	networks := 0
	r, pauses, told, err := b.watch(func(n int) {
		networks++
		if n == 8 {
			b.layouts = registry
		}
	})
	if err != nil || r.Outcome != rescue.Restored || r.Slot != device.SlotA || !b.holds(device.SlotA, oneA) {
		t.Fatalf("Watch = %+v, %v", r, err)
	}
	want := []time.Duration{15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Errorf("pauses (-want +got):\n%s", diff)
	}
	if len(told) != 9 || !errors.Is(told[0], fetch.ErrNotFound) || told[8] != nil {
		t.Errorf("told %v", told)
	}
}

// Nothing is wrong with the slots: after a while the machine gets another start,
// from the first rung.
func TestWatchGivesAWholeMachineAnotherStart(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	r, pauses, _, err := b.watch(nil)
	if err != nil || r.Outcome != rescue.Whole || len(pauses) < 5 {
		t.Fatalf("Watch = %+v after %v, %v", r, pauses, err)
	}
	b.wantState(committed(device.SlotA))
}

func TestWatchEndsWithItsContext(t *testing.T) {
	b := newBench(t)
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	clear(b.layouts)
	ended, cancel := context.WithCancel(ctx)
	_, err := rescue.Watch(ended, b.machine, rescue.Watching{
		Tell: func(rescue.Survey, rescue.Result, error, time.Duration) { cancel() },
		Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
}

// A failed network is no reason not to try: the image may lie on another partition.
func TestWatchTriesWithoutANetwork(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	r, err := rescue.Watch(ctx, b.machine, rescue.Watching{
		Network: func(context.Context) error { return errors.New("no cable") },
		Tell:    func(rescue.Survey, rescue.Result, error, time.Duration) {},
	}, nil)
	if err != nil || r.Outcome != rescue.Restored {
		t.Errorf("Watch = %+v, %v", r, err)
	}
}

// All that osctl knew is lost: both slots, the boot state, the ledger, the records.
// The reference of the configuration still brings a system, on trial.
func TestAttemptOnRuins(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"a", "b"} {
		b.check(os.WriteFile(b.path(name), []byte("rubbish"), 0o600))
	}
	b.check(os.RemoveAll(b.path("state")))
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	if _, _, err := rescue.Attempt(ctx, b.machine, nil); err == nil || err.Error() != "nothing is known that could be installed" {
		t.Errorf("without any reference: %v", err)
	}
	b.machine.Reference = "reg/os:1.0"
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	if err != nil || r.Outcome != rescue.Installed || r.Slot != device.SlotB || !b.holds(device.SlotB, oneA) {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
	b.wantState(boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 3})
}

// The ledger is lost: the version of the rescue system is the floor, and the record
// of the slot that the boot state trusts says what to restore.
func TestAttemptWithoutALedger(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.check(os.Remove(b.path("state/ledger.json")))
	b.destroy(device.SlotA)
	b.publish("0.9", oneB)
	if _, r, err := rescue.Attempt(ctx, b.machine, nil); err != nil || r.Outcome != rescue.Restored || r.Slot != device.SlotA || r.Version != "1.0" {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
	b.check(os.Remove(b.path("state/ledger.json")))
	source, err := b.resolve(ctx, "reg/os:0.9")
	b.check(err)
	if _, err := rescue.Restore(ctx, b.machine, rescue.Order{Slot: device.SlotB, Offer: source}, nil); err == nil {
		t.Error("an image older than the rescue system was installed")
	}
}

func TestRestoreRefuses(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	b.publish("1.1", next)
	other, _, _ := sample.Key(t)
	b.key = other
	b.publish("stranger", next)
	source, err := b.resolve(ctx, "reg/os:stranger")
	b.check(err)
	var refusal *trust.Refusal
	if _, err := rescue.Restore(ctx, b.machine, rescue.Order{Slot: device.SlotB, Offer: source}, nil); !errors.As(err, &refusal) {
		t.Errorf("a stranger's image: %v", err)
	}
	source, err = b.resolve(ctx, "reg/os:1.1")
	b.check(err)
	_, err = rescue.Restore(ctx, b.machine, rescue.Order{Slot: device.SlotA, Offer: source}, nil)
	if err == nil || !strings.Contains(err.Error(), "only the other slot can take a new one on trial") || b.holds(device.SlotA, next) {
		t.Errorf("an image for the proven slot that was not committed in it: %v", err)
	}
	release, err := b.machine.Lock()
	b.check(err)
	if _, _, err := rescue.Attempt(ctx, b.machine, nil); !errors.Is(err, boot.ErrBusy) {
		t.Errorf("while the lock is held: %v", err)
	}
	b.check(release())
	if b.holds(device.SlotA, oneA) || b.holds(device.SlotB, oneB) {
		t.Error("something was written")
	}
}

// A slot whose medium is broken cannot be restored; the same image then goes into
// the other one.
func TestAttemptWithABrokenMedium(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	delete(b.layouts, "reg/os:0.9")
	open := b.machine.OpenSlot
	b.machine.OpenSlot = func(s device.Slot) (upgrade.Target, error) {
		target, err := open(s)
		if s == device.SlotA {
			return broken{target}, err
		}
		return target, err
	}
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	if err != nil || r.Slot != device.SlotB {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
}

// broken loses what is written.
type broken struct{ upgrade.Target }

func (broken) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
