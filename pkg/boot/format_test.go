package boot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// oldFormat is a block that an earlier release, or the system before osctl, wrote.
type oldFormat struct {
	vars     string
	numbered bool
	means    State
}

func (f oldFormat) encode(t *testing.T) []byte {
	t.Helper()
	var b grubenv.Block
	for _, v := range strings.Fields(f.vars) {
		name, value, _ := strings.Cut(v, "=")
		setVar(t, &b, name, value)
	}
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// oldFormats are the states in the two older formats, with counters at both ends.
// The disk names that the system before osctl kept as well are passed over.
func oldFormats() []oldFormat {
	var all []oldFormat
	for _, slot := range []device.Slot{slotA, slotB} {
		for _, tries := range []int{0, 2, 9} {
			for phase, means := range map[Phase]State{
				Committed: committed(slot), Trial: trial(slot, tries), FellBack: fellBack(slot),
			} {
				vars := fmt.Sprintf("ustate=%d rootfs=%s boot_counter=%d", phase, slot, tries)
				all = append(all,
					oldFormat{"seq=7 " + vars + " end=7", true, means},
					oldFormat{"bootdisk=hd0 " + vars + " datadisk=/dev/sda", false, means})
			}
		}
	}
	return all
}

// TestOldFormats: such copies are no damage to what they say, but Load tells, and
// any change writes today's format.
func TestOldFormats(t *testing.T) {
	for _, f := range oldFormats() {
		data := f.encode(t)
		s := newStore(t, data, data)
		st, problems, err := s.Load()
		if err != nil || st != f.means || len(problems) != 2 || !errors.Is(problems[0].Err, ErrFormat) {
			t.Errorf("%s: %+v, %v, %v; want %+v", f.vars, st, problems, err, f.means)
		}
		// As an upgrade does first, before anything else has changed them.
		asked := newStore(t, data, data)
		if err := asked.Rewrite(); err != nil {
			t.Errorf("%s: %v", f.vars, err)
			continue
		}
		if err := s.Repair(); err != nil {
			t.Fatal(err)
		}
		before, seq := 1, 1
		if f.numbered {
			before, seq = 7, 8
		}
		wantBoth(t, asked, before, f.means)
		wantBoth(t, s, seq, f.means)
	}
}

// TestOldFormatBesideOurs: a copy without a number never wins over one with.
func TestOldFormatBesideOurs(t *testing.T) {
	old := oldFormat{vars: "ustate=1 rootfs=A boot_counter=3"}.encode(t)
	for i := range 2 {
		copies := [2][]byte{old, old}
		copies[i] = block(t, 1, committed(slotB))
		s := newStore(t, copies[0], copies[1])
		if st, _, err := s.Load(); err != nil || st != committed(slotB) {
			t.Errorf("our copy %d: %v, %v", i, st, err)
		}
	}
}

// TestEncodeIsOneSector: whatever the state, the variables lie in the first
// sector, in their order, and a changed state changes nothing else.
func TestEncodeIsOneSector(t *testing.T) {
	for _, st := range states() {
		st.Given = MaxGiven
		data := block(t, maxSeq, st)
		if len(data) != grubenv.Size || !bytes.Equal(data[grubenv.Sector-100:], bytes.Repeat([]byte("#"), grubenv.Sector+100)) {
			t.Fatalf("%+v: %s", st, data)
		}
	}
	b, err := grubenv.Parse(block(t, 7, whole(slotA, true)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"seq", "ustate", "rootfs", "boot_counter", "rung", "other", "end"}, b.Names()); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

// TestGivenIsBounded: a number that is none of ours ends a loop, and never
// prolongs one.
func TestGivenIsBounded(t *testing.T) {
	for text, want := range map[string]int{"": 0, "0": 0, "4": 4, "9": 9, "10": 9, "-1": 9, "x": 9} {
		if got := given(text); got != want {
			t.Errorf("given=%q is %d, want %d", text, got, want)
		}
	}
}

func TestSequenceWraps(t *testing.T) {
	s := both(t, maxSeq-1, committed(slotA))
	for _, step := range []struct {
		do  func() error
		seq int
		st  State
	}{
		{func() error { return s.Arm(written(t, slotB), 3) }, maxSeq, trial(slotB, 3)},
		{func() error { return s.Commit(slotB) }, 1, whole(slotB, true)},
		{func() error { return s.Arm(written(t, slotA), 3) }, 2, trial(slotA, 3)},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		wantBoth(t, s, step.seq, step.st)
	}
}
