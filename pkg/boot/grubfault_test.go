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

// TestGrubCannotStart: what a rung names cannot be started. A trial ends; else the
// next best is booted, and where there is no rescue the ladder begins again.
func TestGrubCannotStart(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	at := func(slot device.Slot, kind string) device.Boot { return device.Boot{Slot: slot, Kind: kind} }
	none := device.Boot{}
	for name, c := range map[string]struct {
		now  State
		gone []device.Slot
		want device.Boot
		then State
	}{
		"trial":                    {trial(slotB, 2), []device.Slot{slotB}, at(slotA, KindFallback), fellBack(slotA).on(RungSlot, 2, false)},
		"last try":                 {trial(slotB, 1), []device.Slot{slotB}, at(slotA, KindFallback), fellBack(slotA).on(RungSlot, 2, false)},
		"trial of a proven slot":   {State{Phase: Trial, Rootfs: slotB, Tries: 2, Other: true}, []device.Slot{slotB}, at(slotA, KindFallback), fellBack(slotA).on(RungSlot, 2, false)},
		"trial and proven":         {trial(slotB, 2), []device.Slot{slotB, slotA}, at(device.Rescue, KindRescue), fellBack(slotA).on(RungSlot, 2, false)},
		"proven after a trial":     {trial(slotB, 0), []device.Slot{slotA}, at(device.Rescue, KindRescue), fellBack(slotA).on(RungSlot, 2, false)},
		"that, without rescue":     {trial(slotB, 0), []device.Slot{slotA, device.Rescue}, at(slotB, KindOther), fellBack(slotA).on(RungSlot, 2, false)},
		"committed":                {whole(slotA, true), []device.Slot{slotA}, at(slotB, KindOther), whole(slotA, true).on(RungSlot, 2, true)},
		"committed, none other":    {whole(slotA, false), []device.Slot{slotA}, at(device.Rescue, KindRescue), whole(slotA, false).on(RungSlot, 2, false)},
		"that, without rescue too": {whole(slotA, false), []device.Slot{slotA, device.Rescue}, at(slotB, KindOther), whole(slotA, false).on(RungSlot, 2, false)},
		"pristine":                 {whole(slotB, true).on(RungPristine, 2, true), []device.Slot{slotB}, at(slotA, KindOther), whole(slotB, true).on(RungPristine, 1, true)},
		"other":                    {whole(slotB, true).on(RungOther, 2, true), []device.Slot{slotA}, at(device.Rescue, KindRescue), whole(slotB, true).on(RungOther, 1, true)},
		"other, which is none":     {whole(slotB, false).on(RungOther, 2, false), nil, at(device.Rescue, KindRescue), whole(slotB, false).on(RungRescue, 2, false)},
		"other and rescue":         {whole(slotB, true).on(RungOther, 2, true), []device.Slot{slotA, device.Rescue}, at(slotB, KindCommitted), whole(slotB, true).on(RungOther, 1, true)},
		"rescue":                   {whole(slotB, true).on(RungRescue, 3, true), []device.Slot{device.Rescue}, at(slotB, KindCommitted), whole(slotB, true).on(RungSlot, 2, true)},
		"rescue, its last try":     {whole(slotB, true).on(RungRescue, 1, true), []device.Slot{device.Rescue}, at(slotB, KindCommitted), whole(slotB, true).on(RungSlot, 2, true)},
		"rescue, used up":          {whole(slotB, true).on(RungRescue, 0, true), []device.Slot{slotB}, at(slotA, KindOther), whole(slotB, true).on(RungSlot, 2, true)},
		"rescue, at the last step": {whole(slotB, false).on(RungPristine, 0, false), []device.Slot{device.Rescue}, at(slotB, KindCommitted), whole(slotB, false).on(RungSlot, 2, false)},
		"rescue after a fall back": {fellBack(slotB).on(RungRescue, 2, false), []device.Slot{device.Rescue}, at(slotB, KindFallback), fellBack(slotB).on(RungSlot, 2, false)},
		"rescue and committed":     {whole(slotB, false).on(RungRescue, 2, false), []device.Slot{device.Rescue, slotB}, at(slotA, KindOther), whole(slotB, false).on(RungSlot, 2, false)},
		"everything":               {whole(slotB, true), places(), none, whole(slotB, true).on(RungSlot, 2, true)},
	} {
		var restore []func()
		for _, slot := range c.gone {
			restore = append(restore, m.unbootable(slot))
		}
		m.setBoth(block(t, 7, c.now))
		data := block(t, 7, c.then)
		m.check(name, expectation{c.want, [2][]byte{data, data}})
		for _, f := range restore {
			f()
		}
	}
	for _, c := range []struct {
		gone []device.Slot
		want device.Boot
	}{
		{nil, at(slotA, KindUnsaved)}, {[]device.Slot{slotA}, at(slotB, KindUnsaved)}, {[]device.Slot{slotA, slotB}, at(device.Rescue, KindRescue)},
	} {
		for _, slot := range c.gone {
			defer m.unbootable(slot)()
		}
		m.setBoth(nil)
		m.check(fmt.Sprintf("no state, %v gone", c.gone), expectation{boot: c.want})
	}
}

// TestGrubNeverLoops: boots that never come up, those of a rescue system that
// panics among them, visit each rung again and again, and none for longer than its
// tries. A rung where nothing can be started has no turn.
func TestGrubNeverLoops(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	for name, c := range map[string]struct {
		start State
		gone  []device.Slot
		round []string // the rungs, each for three boots
	}{
		"rescue panics":               {whole(slotA, true), nil, []string{KindCommitted, KindPristine, KindOther, KindRescue}},
		"that, and no other slot":     {whole(slotA, false), nil, []string{KindCommitted, KindPristine, KindRescue}},
		"that, after a fall back":     {fellBack(slotB), nil, []string{KindFallback, KindPristine, KindRescue}},
		"no rescue":                   {whole(slotA, true), []device.Slot{device.Rescue}, []string{KindCommitted, KindPristine, KindOther}},
		"no rescue and no other slot": {whole(slotB, false), []device.Slot{device.Rescue}, []string{KindCommitted, KindPristine}},
		"the slot is damaged":         {whole(slotA, true), []device.Slot{slotA}, []string{KindOther, KindOther, KindOther, KindRescue}},
		"both slots are damaged":      {whole(slotA, true), []device.Slot{slotA, slotB}, []string{KindRescue}},
	} {
		var restore []func()
		for _, slot := range c.gone {
			restore = append(restore, m.unbootable(slot))
		}
		m.setBoth(block(t, 7, c.start))
		var way, want []string
		for i := range 2*len(c.round)*FullTries + 1 {
			r := m.boot()
			way = append(way, r.booted().Kind)
			want = append(want, c.round[i/FullTries%len(c.round)])
		}
		if diff := cmp.Diff(want, way); diff != "" {
			t.Errorf("%s: kinds of boots (-want +got):\n%s", name, diff)
		}
		for _, f := range restore {
			f()
		}
	}
}

// TestGrubStartFails: the kernel loads and does not start.
func TestGrubStartFails(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	m.kernels = "true" // and so "boot" fails, as nothing is loaded
	m.setBoth(block(t, 7, trial(slotB, 2)))
	r := m.boot()
	want := []string{"(hd0,gpt3)/boot/vmlinuz", "(hd0,gpt2)/boot/vmlinuz", "(hd0,gpt4)/boot/vmlinuz", "(hd0,gpt3)/boot/vmlinuz"}
	if diff := cmp.Diff(want, r.tried); diff != "" {
		t.Errorf("kernels that were tried (-want +got):\n%s\n%s", diff, r.output)
	}
	wantEnd(t, r, m.name)
	if got := m.get(0, grubenv.Size); !bytes.Equal(got, block(t, 7, fellBack(slotA).on(RungSlot, 2, false))) {
		t.Errorf("the state afterwards: %s", got)
	}
}

// TestGrubNoInitrd: a slot with a kernel and no initrd is not started without one.
func TestGrubNoInitrd(t *testing.T) {
	needTools(t, "debugfs")
	t.Parallel()
	m := newMachine(t, "ab")
	run(t, "debugfs", "-w", "-R", "rm /boot/initrd.img", m.path("slotB"))
	m.writeAt(m.read("slotB"), slotStart(slotB))
	m.setBoth(block(t, 7, trial(slotB, 2)))
	r := m.boot()
	if want := (device.Boot{Slot: slotA, Kind: KindFallback}); r.booted() != want {
		t.Errorf("GRUB boots %v, want %v", r.booted(), want)
	}
	// The emulator's own "boot" says this, as it has loaded nothing.
	if strings.Contains(r.output, "load the kernel first") {
		t.Errorf("GRUB starts a kernel without its initrd:\n%s", r.output)
	}
}

// wantEnd fails unless GRUB gave its reason and restarted, without a prompt.
func wantEnd(t *testing.T, r result, disk string) {
	t.Helper()
	if !strings.Contains(r.output, "nothing on disk '"+disk+"' can be started; restarting") {
		t.Errorf("GRUB did not say why it restarts:\n%s", r.output)
	}
	if strings.Contains(r.output, "grub>") || strings.Contains(r.output, "press") {
		t.Errorf("GRUB waits for a person:\n%s", r.output)
	}
}

// TestGrubNothingToStart: both slots and rescue are gone.
func TestGrubNothingToStart(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	for _, slot := range places() {
		m.unbootable(slot)
	}
	for _, st := range []State{committed(slotB), whole(slotB, true), committed(slotB).on(RungRescue, 2, true), trial(slotB, 1)} {
		m.setBoth(block(t, 7, st))
		r := m.boot()
		for _, want := range []string{"(hd0,gpt3)/boot/vmlinuz", "(hd0,gpt2)/boot/vmlinuz", "(hd0,gpt4)/boot/vmlinuz"} {
			if !slices.Contains(r.tried, want) {
				t.Errorf("%v: tried %q, want %q among it", st, r.tried, want)
			}
		}
		if r.cmdline != "" {
			t.Errorf("%v: booted %q", st, r.cmdline)
		}
		wantEnd(t, r, m.name)
	}
}

// limitWrites makes writes to the disk beyond an offset fail.
func (m *machine) limitWrites(offset int64) {
	m.wrapper = []string{"sh", "-c", fmt.Sprintf(`trap "" XFSZ; ulimit -f %d; exec "$@"`, offset/512), "sh"}
}

// TestGrubLostWrites: the disk takes the writes and forgets them, so that
// save_env is content and the counter would never drop.
func TestGrubLostWrites(t *testing.T) {
	needTools(t, "strace")
	t.Parallel()
	m := newMachine(t, "ab")
	m.wrapper = []string{"strace", "-o", os.DevNull, "-f", "-P", m.path("disk"), "-e", "trace=write", "-e", "inject=write:retval=512"}
	for _, st := range []State{trial(slotB, 3), whole(slotA, true), fellBack(slotA), whole(slotA, true).on(RungSlot, 0, true),
		whole(slotA, true).on(RungRescue, 3, true), whole(slotA, false).on(RungRescue, 0, false)} {
		data := block(t, 7, st)
		m.setBoth(data)
		m.check(fmt.Sprintf("%v, lost writes", st), expectation{device.Boot{Slot: slotA, Kind: KindUnsaved}, [2][]byte{data, data}})
	}
	// The first save holds, two sectors of each copy, and the next one does not: without
	// a rescue system the ladder starts over, and user space must know that it is not
	// counted.
	m.wrapper[len(m.wrapper)-1] += ":when=5+"
	m.unbootable(device.Rescue)
	m.setBoth(block(t, 7, whole(slotA, true).on(RungRescue, 3, true)))
	data := block(t, 7, whole(slotA, true).on(RungRescue, 2, true))
	m.check("starting over, lost writes", expectation{device.Boot{Slot: slotA, Kind: KindUnsaved}, [2][]byte{data, data}})
}
