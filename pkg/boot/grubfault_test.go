package boot

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// TestGrubCannotStartTheSlot: the next candidate is booted, a trial ends.
func TestGrubCannotStartTheSlot(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	for _, st := range states() {
		slot, then := Next(st)
		restore := m.unbootable(slot)
		if then.Phase == Trial {
			then = then.fallenBack()
		}
		data := block(t, 7, then)
		m.setBoth(block(t, 7, st))
		m.check(fmt.Sprintf("%v, unbootable", st), expectation{slot.Other(), "fallback", [2][]byte{data, data}})
		restore()
	}
	restore := m.unbootable(slotA)
	defer restore()
	m.setBoth(nil)
	m.check("slot A unbootable, no state", expectation{slot: slotB, kind: "unsaved"})
}

// TestGrubStartFails: the kernel loads and does not start.
func TestGrubStartFails(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	m.kernels = "true" // and so "boot" fails, as nothing is loaded
	m.setBoth(block(t, 7, State{Trial, slotB, 2}))
	r := m.boot()
	want := []string{"(hd0,gpt3)/boot/vmlinuz", "(hd0,gpt2)/boot/vmlinuz", "(hd0,gpt3)/boot/vmlinuz"}
	if diff := cmp.Diff(want, r.tried); diff != "" {
		t.Errorf("kernels that were tried (-want +got):\n%s\n%s", diff, r.output)
	}
	wantEnd(t, r)
	if got := m.get(0, grubenv.Size); !bytes.Equal(got, block(t, 7, State{FellBack, slotA, 0})) {
		t.Errorf("the state afterwards: %s", got)
	}
}

// wantEnd fails unless GRUB gave its reason and restarted, without a prompt.
func wantEnd(t *testing.T, r result) {
	t.Helper()
	if !strings.Contains(r.output, "neither slot of disk 'hd0' can be started; restarting") {
		t.Errorf("GRUB did not say why it restarts:\n%s", r.output)
	}
	if strings.Contains(r.output, "grub>") || strings.Contains(r.output, "press") {
		t.Errorf("GRUB waits for a person:\n%s", r.output)
	}
}

// TestGrubNothingToStart: both slots are gone.
func TestGrubNothingToStart(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	m.unbootable(slotA)
	m.unbootable(slotB)
	m.setBoth(block(t, 7, State{Committed, slotB, 0}))
	r := m.boot()
	if want := []string{"(hd0,gpt3)/boot/vmlinuz", "(hd0,gpt2)/boot/vmlinuz"}; !slices.Equal(r.tried, want) || r.cmdline != "" {
		t.Errorf("tried %q, want %q; booted %q", r.tried, want, r.cmdline)
	}
	wantEnd(t, r)
}

// limitWrites makes writes to the disk beyond an offset fail.
func (m *machine) limitWrites(offset int64) {
	m.wrapper = []string{"sh", "-c", fmt.Sprintf(`trap "" XFSZ; ulimit -f %d; exec "$@"`, offset/512), "sh"}
}

// TestGrubCannotSave: a trial that cannot be paid for is not taken. When one copy
// can be written, what counts is whether the next boot will find the lowered
// counter: copy a has the same number and wins.
func TestGrubCannotSave(t *testing.T) {
	needTools(t)
	t.Parallel()
	garbage := bytes.Repeat([]byte("x"), grubenv.Size)
	for _, slot := range []device.Slot{slotA, slotB} {
		for _, tries := range []int{0, 1, 3} {
			st := State{Trial, slot, tries}
			next, then := Next(st)
			kind := map[Phase]string{Trial: "trial", FellBack: "fallback"}[then.Phase]
			old, lower := block(t, 7, st), block(t, 7, then)
			for _, c := range []struct {
				name, order, fail string
				copies            [2][]byte
				want              expectation
			}{
				{"neither copy", "ab", "ab", [2][]byte{old, old}, expectation{slot.Other(), "unsaved", [2][]byte{old, old}}},
				{"b only", "ba", "a", [2][]byte{old, old}, expectation{slot.Other(), "unsaved", [2][]byte{old, lower}}},
				{"a only", "ab", "b", [2][]byte{old, old}, expectation{next, kind, [2][]byte{lower, old}}},
				{"the good one, b is garbage", "ab", "b", [2][]byte{old, garbage}, expectation{next, kind, [2][]byte{lower, garbage}}},
				{"not the good a", "ba", "a", [2][]byte{old, garbage}, expectation{slot.Other(), "unsaved", [2][]byte{old, garbage}}},
				{"not the good b", "ab", "b", [2][]byte{garbage, old}, expectation{slot.Other(), "unsaved", [2][]byte{garbage, old}}},
			} {
				m := newMachine(t, c.order)
				m.limitWrites(espStart)
				if c.fail != "ab" {
					m.limitWrites(m.data[strings.Index("ab", c.fail)])
				}
				m.set(0, c.copies[0])
				m.set(1, c.copies[1])
				m.check(fmt.Sprintf("%v, GRUB can write %s", st, c.name), c.want)
			}
		}
	}
}

// TestGrubLostWrites: the disk takes the writes and forgets them, so that
// save_env is content and the counter would never drop.
func TestGrubLostWrites(t *testing.T) {
	needTools(t, "strace")
	t.Parallel()
	m := newMachine(t, "ab")
	m.wrapper = []string{"strace", "-o", os.DevNull, "-f", "-P", m.path("disk"), "-e", "trace=write", "-e", "inject=write:retval=512"}
	data := block(t, 7, State{Trial, slotB, 3})
	m.setBoth(data)
	m.check("lost writes", expectation{slotA, "unsaved", [2][]byte{data, data}})
}
