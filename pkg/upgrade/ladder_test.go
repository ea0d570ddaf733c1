package upgrade_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// down lets GRUB boot the machine so many times without its coming up, and says
// what it boots last.
func (a *after) down(boots int) device.Boot {
	a.t.Helper()
	var b device.Boot
	for range boots {
		b = a.grub()
	}
	return b
}

// grub plays one boot of GRUB on the machine's own files.
func (a *after) grub() device.Boot {
	a.t.Helper()
	s, _, err := a.boot.Load()
	if err != nil {
		a.t.Fatal(err)
	}
	b, then := boot.Next(s)
	other := 0
	if then.Other {
		other = 1
	}
	for _, path := range a.envs {
		text := fmt.Sprintf("# GRUB Environment Block\nseq=500\nustate=%d\nrootfs=%s\nboot_counter=%d\nrung=%d\nother=%d\nend=500\n",
			then.Phase, then.Rootfs, then.Tries, then.Rung, other)
		a.write(path, text+strings.Repeat("#", 1024-len(text)))
	}
	return b
}

// twoProven makes a machine with B committed, and A committed before.
func twoProven(t *testing.T) *after {
	t.Helper()
	a := newAfter(t, true).arm(0)
	if v, err := a.settle(device.SlotB, boot.KindTrial); err != nil || v.Action != upgrade.Kept {
		t.Fatal(v, err)
	}
	return a
}

// kinds are those of the events in the history, in order.
func kinds(l *ledger.Ledger) string {
	var all []string
	for _, e := range l.History {
		all = append(all, e.Kind)
	}
	return strings.Join(all, ", ")
}

// A system that came up gets everything back, whatever rung it runs on.
func TestSettleGivesEverythingBack(t *testing.T) {
	a := newAfter(t, true)
	for _, boots := range []int{1, 3} {
		b := a.down(boots)
		v, err := a.settle(b.Slot, b.Kind)
		a.check(v, err, upgrade.Nothing, committedA)
	}
	b := a.down(4)
	if b.Kind != boot.KindPristine {
		t.Fatalf("the fourth boot is %v", b)
	}
	v, err := a.settle(b.Slot, b.Kind)
	l := a.check(v, err, upgrade.Nothing, committedA)
	if !strings.Contains(v.Reason, "pristine /etc") || !strings.HasSuffix(kinds(l), "pristine") {
		t.Errorf("verdict %+v, history %s", v, kinds(l))
	}
}

// The other slot, which was committed once, takes over without a gate of its own.
func TestSettleTakesOver(t *testing.T) {
	a := twoProven(t)
	a.green = false // a failing workload keeps nobody off the ladder
	b := a.down(7)
	if b != (device.Boot{Slot: device.SlotA, Kind: boot.KindOther}) {
		t.Fatalf("the seventh boot is %v", b)
	}
	back := device.Slot("")
	a.hooks.Back = func(_ context.Context, s device.Slot) error { back = s; return nil }
	v, err := a.settle(b.Slot, b.Kind)
	want := committedB
	want.Rootfs = device.SlotA
	l := a.check(v, err, upgrade.Kept, want)
	if back != device.SlotA {
		t.Errorf("the images of slot %q are back", back)
	}
	if !strings.Contains(v.Reason, "slot B did not come up") || !strings.Contains(kinds(l), "adopted") {
		t.Errorf("verdict %+v, history %s", v, kinds(l))
	}
}

// A proven system whose own units do not run walks the whole ladder, one boot at a
// time; a failing workload does not.
func TestSettleGoesDownTheLadder(t *testing.T) {
	a := twoProven(t)
	a.lacks, a.rescue, a.green = "ssh.service: inactive", true, false
	var way []string
	for range 10 {
		b := a.grub()
		way = append(way, string(b.Slot)+" "+b.Kind)
		if b.Kind == boot.KindRescue {
			break
		}
		v, err := a.settle(b.Slot, b.Kind)
		if err != nil || v.Action != upgrade.Failed || v.Reason != a.lacks {
			t.Fatalf("%v: %+v, %v", b, v, err)
		}
	}
	want := "B committed, B committed, B committed, B pristine, B pristine, B pristine, A other, A other, A other, rescue rescue"
	if got := strings.Join(way, ", "); got != want {
		t.Errorf("the way down: %s, want %s", got, want)
	}
	l, err := a.ledger.Load()
	if err != nil || strings.Count(kinds(l), "not up") != 9 {
		t.Errorf("history %s, %v", kinds(l), err)
	}

	a = twoProven(t)
	a.green = false
	b := a.grub()
	v, err := a.settle(b.Slot, b.Kind)
	a.check(v, err, upgrade.Nothing, committedB)
}

// The next rung that comes up says why the one above did not.
func TestSettleTellsTheReason(t *testing.T) {
	a := newAfter(t, true)
	a.lacks = "ssh.service: inactive"
	for range 3 {
		b := a.grub()
		if v, err := a.settle(b.Slot, b.Kind); err != nil || v.Action != upgrade.Failed {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	a.lacks = ""
	b := a.grub()
	v, err := a.settle(b.Slot, b.Kind)
	l := a.check(v, err, upgrade.Nothing, committedA)
	if last := l.History[len(l.History)-1]; last.Kind != "pristine" || !strings.HasSuffix(last.Reason, ": ssh.service: inactive") {
		t.Errorf("last event %+v", last)
	}
}

// Restarting stops where it leads nowhere: the machine stays up, degraded.
func TestSettleStaysUp(t *testing.T) {
	for name, c := range map[string]struct {
		boots  int
		kind   string
		excuse string
		rescue bool
		down   bool
	}{
		"nothing speaks against it":  {1, boot.KindCommitted, "", false, true},
		"the data partition is lost": {1, boot.KindCommitted, "mounting /data: no such device", true, false},
		"GRUB cannot count":          {1, boot.KindUnsaved, "", true, false},
		"pristine, and a rescue":     {4, boot.KindPristine, "", true, true},
		"pristine, and no rescue":    {4, boot.KindPristine, "", false, false},
	} {
		a := newAfter(t, true)
		a.down(c.boots)
		a.lacks, a.excuse, a.rescue = "containerd.service: failed", c.excuse, c.rescue
		v, err := a.settle(device.SlotA, c.kind)
		want := upgrade.Nothing
		if c.down {
			want = upgrade.Failed
		}
		if err != nil || v.Action != want {
			t.Errorf("%s: %+v, %v; want %s", name, v, err, want)
		}
	}
}

// A failed trial stays unacknowledged while the system that it fell back to does
// not come up, so that its boots go on counting.
func TestSettleFellBackAndDown(t *testing.T) {
	a := newAfter(t, true).arm(0)
	if err := a.boot.FallBack(); err != nil {
		t.Fatal(err)
	}
	b := a.grub()
	a.lacks = "ssh.service: inactive"
	v, err := a.settle(b.Slot, b.Kind)
	s, _, loadErr := a.boot.Load()
	if err != nil || v.Action != upgrade.Failed || loadErr != nil || s.Phase != boot.FellBack || s.Tries != boot.FullTries-1 {
		t.Errorf("%+v, %v; boot state %v, %v", v, err, s, loadErr)
	}
	a.lacks = ""
	v, err = a.settle(b.Slot, b.Kind)
	a.check(v, err, upgrade.Acknowledged, committedA)
}

// A failure that cannot be recorded, because the data partition is lost, keeps the
// machine from new trials and not from its proven system: it came up, and gets all
// its tries, boot after boot.
func TestSettleFellBackWithoutALedger(t *testing.T) {
	a := newAfter(t, true).arm(0)
	if err := a.boot.FallBack(); err != nil {
		t.Fatal(err)
	}
	kept := a.ledger
	a.ledger, a.excuse = ledger.Open("/dev/null/none"), "mounting /data: no such device"
	for range 4 * boot.FullTries {
		b := a.grub()
		if b != (device.Boot{Slot: device.SlotA, Kind: boot.KindFallback}) {
			t.Fatalf("GRUB boots %v", b)
		}
		if v, err := a.settle(b.Slot, b.Kind); !errors.Is(err, syscall.ENOTDIR) {
			t.Fatalf("Settle = %+v, %v", v, err)
		}
		if s, _, err := a.boot.Load(); err != nil || s != fellBackA {
			t.Fatalf("boot state %v, %v; want %v", s, err, fellBackA)
		}
	}
	// The data partition is back.
	a.ledger, a.excuse = kept, ""
	b := a.grub()
	v, err := a.settle(b.Slot, b.Kind)
	if l := a.check(v, err, upgrade.Acknowledged, committedA); l.FailureOf("sha256:2") == nil {
		t.Errorf("the failure is not on record: %v", l.Failed)
	}
}

// The table of docs/boot-states.md: what people may do at odd moments.
func TestOddMoments(t *testing.T) {
	t.Run("two rollbacks in a row", func(t *testing.T) {
		a := twoProven(t)
		for _, want := range []device.Slot{device.SlotA, device.SlotB, device.SlotA} {
			if b, err := a.rollBack(device.SlotB); err != nil || b.Slot != want {
				t.Fatalf("%+v, %v; want slot %s", b, err, want)
			}
		}
	})
	t.Run("rollback of a rollback", func(t *testing.T) {
		a := twoProven(t)
		if _, err := a.rollBack(device.SlotB); err != nil {
			t.Fatal(err)
		}
		b := a.grub()
		if v, err := a.settle(b.Slot, b.Kind); err != nil || v.Action != upgrade.Kept || b.Slot != device.SlotA {
			t.Fatal(b, v, err)
		}
		if back, err := a.rollBack(device.SlotA); err != nil || back.Slot != device.SlotB {
			t.Errorf("%+v, %v", back, err)
		}
	})
	t.Run("rollback during a trial, twice", func(t *testing.T) {
		a := newAfter(t, true).arm(1)
		if _, err := a.rollBack(device.SlotB); err != nil {
			t.Fatal(err)
		}
		if _, err := a.rollBack(device.SlotB); !errors.Is(err, upgrade.ErrNoProvenSlot) && !errors.Is(err, boot.ErrState) {
			t.Errorf("%v", err)
		}
		a.check(upgrade.Verdict{}, nil, "", fellBackA)
	})
	t.Run("settle twice", func(t *testing.T) {
		a := twoProven(t)
		v, err := a.settle(device.SlotB, boot.KindTrial)
		a.check(v, err, upgrade.Nothing, committedB)
	})
	t.Run("the other slot runs by hand", func(t *testing.T) {
		a := newAfter(t, false) // A is committed, B is booted by somebody's hand
		v, err := a.settle(device.SlotB, "")
		a.check(v, err, upgrade.Unproven, committedA)
		a.green = true
		v, err = a.settle(device.SlotB, "")
		a.check(v, err, upgrade.Kept, committedB)
	})
	t.Run("it runs after a fall back", func(t *testing.T) {
		a := newAfter(t, true).arm(0)
		if err := a.boot.FallBack(); err != nil {
			t.Fatal(err)
		}
		v, err := a.settle(device.SlotB, boot.KindOther)
		want := committedB
		a.check(v, err, upgrade.Kept, want)
	})
}

// An upgrade takes the slot that it writes off the ladder first: a state that
// counts on a slot that is half written would be worth nothing.
func TestUpgradeTakesTheSlotOffTheLadder(t *testing.T) {
	b := newBench(t)
	for _, step := range []func() error{
		func() error { return b.boot.ArmProven(device.SlotB, 1) }, func() error { return b.boot.Commit(device.SlotB) },
		func() error { return b.boot.ArmProven(device.SlotA, 1) }, func() error { return b.boot.Commit(device.SlotA) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.state(); !s.Other || s.Rootfs != device.SlotA {
		t.Fatalf("the machine starts with %v", s)
	}
	looked := false
	open := b.machine.OpenSlot
	b.machine.OpenSlot = func(s device.Slot) (upgrade.Target, error) {
		target, err := open(s)
		return watched{target, func() {
			looked = true
			if s := b.state(); s != committedA {
				t.Fatalf("the slot is written in %v", s)
			}
		}}, err
	}
	r, err := upgrade.Run(ctx, b.machine, b.layout(next.Signed(t, b.key), nil), upgrade.Options{Tries: 3})
	if err != nil || r.Outcome != upgrade.Staged || !looked {
		t.Errorf("%+v, %v; the slot was written: %t", r, err, looked)
	}
}

// watched looks before every write.
type watched struct {
	upgrade.Target
	look func()
}

func (w watched) WriteAt(p []byte, off int64) (int, error) {
	w.look()
	return w.Target.WriteAt(p, off)
}
