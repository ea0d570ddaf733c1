package boot

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// putLost gives the ESP the file that counts the boots without a state; nil removes
// it.
func (m *machine) putLost(data []byte) {
	m.t.Helper()
	esp := fmt.Sprintf("%s@@%d", m.path("disk"), espStart)
	if data == nil {
		run(m.t, "mdel", "-i", esp, "::/osctl/lost/grubenv")
		return
	}
	m.write("lost", data)
	run(m.t, "mcopy", "-o", "-i", esp, m.path("lost"), "::/osctl/lost/grubenv")
}

// slots are what so many boots start, of which none comes up.
func (m *machine) slots(boots int) []device.Slot {
	m.t.Helper()
	var way []device.Slot
	for range boots {
		r := m.boot()
		b := r.booted()
		if b.Kind != KindUnsaved && b.Kind != KindRescue {
			m.t.Fatalf("GRUB boots %v without a state:\n%s", b, r.output)
		}
		way = append(way, b.Slot)
	}
	return way
}

// TestGrubLostState: where no copy of the boot state is valid, the slots take turns,
// so that a slot that panics has not all of them, and what cannot be started has none.
// A file that cannot count leaves slot A first.
func TestGrubLostState(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	esp := fmt.Sprintf("%s@@%d", m.path("disk"), espStart)
	run(t, "mmd", "-i", esp, "::/osctl/lost")
	first := block(t, 1, committed(slotA)) // as install leaves it
	threes := func(slots ...device.Slot) []device.Slot {
		var all []device.Slot
		for _, s := range slots {
			all = append(all, s, s, s)
		}
		return all
	}
	counting := func(n string) []byte {
		return append([]byte("# GRUB Environment Block\nlost="+n+"\n"), bytes.Repeat([]byte("#"), grubenv.Size)...)[:grubenv.Size]
	}
	always := slices.Repeat([]device.Slot{slotA}, 7)
	for name, c := range map[string]struct {
		lost []byte
		gone []device.Slot
		want []device.Slot
	}{
		"as installed":        {first, nil, threes(slotA, slotB, slotA, slotB, slotA)},
		"in the middle":       {counting("4"), nil, []device.Slot{slotB, slotB, slotA}},
		"B cannot be started": {first, []device.Slot{slotB}, threes(slotA, slotA, slotA)},
		"A cannot be started": {first, []device.Slot{slotA}, threes(slotB, slotB, slotB)},
		"neither":             {first, []device.Slot{slotA, slotB}, threes(device.Rescue, device.Rescue)},
		"too large":           {counting("6"), nil, threes(slotA, slotB)},
		"a word":              {counting("--help"), nil, threes(slotA, slotB)},
		"a bracket":           {counting("("), nil, threes(slotA, slotB)},
		"no number":           {counting(""), nil, threes(slotA, slotB)},
		"garbage":             {bytes.Repeat([]byte("\xff\x00x\n"), 256), nil, always},
		"empty":               {[]byte{}, nil, always},
		"missing":             {nil, nil, always},
	} {
		m.putLost(first)
		m.putLost(c.lost)
		m.setBoth(make([]byte, grubenv.Size))
		var restore []func()
		for _, slot := range c.gone {
			restore = append(restore, m.unbootable(slot))
		}
		if diff := cmp.Diff(c.want, m.slots(len(c.want))); diff != "" {
			t.Errorf("%s: slots of boots (-want +got):\n%s", name, diff)
		}
		for _, f := range restore {
			f()
		}
	}

	// A state that is there is all that counts, and leaves that file alone.
	m.putLost(counting("4"))
	m.setBoth(block(t, 7, trial(slotB, 2)))
	data := block(t, 7, trial(slotB, 1))
	m.check("with a state", expectation{device.Boot{Slot: slotB, Kind: KindTrial}, [2][]byte{data, data}})
	m.setBoth(make([]byte, grubenv.Size))
	if got := m.slots(1); got[0] != slotB {
		t.Errorf("GRUB boots slot %s, want the next turn, B", got[0])
	}
	// Counting fails where nothing can be written.
	m.limitWrites(espStart)
	if got := m.slots(7); !slices.Equal(got, always) {
		t.Errorf("without writes GRUB boots %v, want A", got)
	}
}
