package upgrade_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// notedImages notes what is asked of it, and fails where it should.
type notedImages struct {
	step func(string)
	fail map[string]error
}

func (i notedImages) note(what string, s device.Slot) error {
	i.step(what + " " + string(s))
	return i.fail[what]
}

func (i notedImages) Keep(_ context.Context, s device.Slot) error    { return i.note("keep", s) }
func (i notedImages) Drop(_ context.Context, s device.Slot) error    { return i.note("drop", s) }
func (i notedImages) Restore(_ context.Context, s device.Slot) error { return i.note("restore", s) }

// What runs now is held before the slot changes, and what was held for the slot's old
// system goes when that is gone.
func TestImagesOfAnUpgrade(t *testing.T) {
	no := errors.New("no")
	for name, tt := range map[string]struct {
		fail   map[string]error
		staged bool
		steps  []string
	}{
		"all is well":         {nil, true, []string{"resolve", "record", "keep A", "disarm", "drop B", "clone AB"}},
		"it cannot be held":   {map[string]error{"keep": no}, false, []string{"resolve", "record", "keep A"}},
		"it cannot be let go": {map[string]error{"drop": no}, true, []string{"resolve", "record", "keep A", "disarm", "drop B", "clone AB"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.machine.Images = notedImages{b.step, tt.fail}
			before := b.slot()
			_, err := upgrade.Run(ctx, b.machine, b.layout(next.Signed(t, b.key), nil), upgrade.Options{Tries: 3})
			if tt.staged && err != nil || !tt.staged && !errors.Is(err, no) {
				t.Errorf("Run: %v", err)
			}
			if diff := cmp.Diff(tt.steps, b.steps); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if staged := b.state().Phase == boot.Trial; staged != tt.staged || bytes.Equal(before, b.slot()) == staged {
				t.Errorf("staged is %t", staged)
			}
		})
	}
}

// A rollback by hand has its images ready when the boot state leads there, and does not
// fail for want of them.
func TestImagesOfARollback(t *testing.T) {
	for _, fail := range []map[string]error{nil, {"keep": errors.New("no"), "restore": errors.New("no")}} {
		a := newAfter(t, true).arm(0)
		var steps []string
		a.images = notedImages{func(s string) {
			state, _, err := a.boot.Load()
			if err != nil {
				t.Error(err)
			}
			steps = append(steps, s+": "+state.Phase.String()+" "+string(state.Rootfs))
		}, fail}
		roll := func(want ...string) {
			t.Helper()
			steps = nil
			if _, err := a.rollBack(device.SlotB); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want, steps); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		}
		if v, err := a.settle(device.SlotB, "trial"); err != nil || v.Action != upgrade.Kept {
			t.Fatal(v, err)
		}
		roll("keep B: on trial A", "restore A: on trial A") // from a committed system
		roll()                                              // which is taken back
		a = newAfter(t, true).arm(0)
		a.images = notedImages{func(s string) { steps = append(steps, s) }, fail}
		roll("restore A") // a trial that is ended: nothing leads back to it
	}
}

// The slot that the machine falls back to gets its images back twice: before the reboot,
// so that they are there when its units start, and after it, for a fall back of GRUB's.
func TestImagesOfAFallBack(t *testing.T) {
	a := newAfter(t, false).arm(0)
	var steps []string
	a.hooks = upgrade.Hooks{
		Kept: func(context.Context) error { steps = append(steps, "kept"); return nil },
		Back: func(_ context.Context, s device.Slot) error {
			state, _, err := a.boot.Load()
			steps = append(steps, "back "+string(s)+": "+state.Phase.String())
			return errors.Join(err, errors.New("no"))
		},
	}
	settle := func(booted device.Slot, kind string, want upgrade.Action, state boot.State, heard ...string) {
		t.Helper()
		steps = nil
		v, err := a.settle(booted, kind)
		a.check(v, err, want, state)
		if diff := cmp.Diff(heard, steps); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
	}
	settle(device.SlotB, "trial", upgrade.WentBack, fellBackA, "back A: fell back")
	settle(device.SlotB, "trial", upgrade.Acknowledged, committedA) // the reboot is yet to come
	a = newAfter(t, false).arm(0)
	a.hooks.Back = func(_ context.Context, s device.Slot) error { steps = append(steps, "back "+string(s)); return nil }
	if err := a.boot.FallBack(); err != nil { // what GRUB does
		t.Fatal(err)
	}
	settle(device.SlotA, "fallback", upgrade.Acknowledged, committedA, "back A")
	settle(device.SlotA, "committed", upgrade.Nothing, committedA)
}
