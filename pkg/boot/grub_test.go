package boot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

func TestGrubCommandLine(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	m.setBoth(block(t, 7, State{Trial, slotB, 2}))
	r := m.boot()
	want := "(hd0,gpt3)/boot/vmlinuz root=PARTUUID=" + partUUID(slotB) + " ro init=/usr/lib/osctl/preinit" +
		" osctl.slot=B osctl.boot=trial panic=10 rd.emergency=reboot rd.shell=0 systemd.crash_reboot=1" +
		" console=tty0 console=ttyS0,115200 initrd=(hd0,gpt3)/boot/initrd.img"
	if diff := cmp.Diff(want, r.cmdline); diff != "" {
		t.Errorf("the kernel's command line (-want +got):\n%s\n%s", diff, r.output)
	}
}

func (m *machine) setBoth(data []byte) {
	m.t.Helper()
	m.set(0, data)
	m.set(1, data)
}

// store copies the files of the ESP out, for what user space sees.
func (m *machine) store(copies [2][]byte) *Store {
	m.t.Helper()
	return newStore(m.t, copies[0], copies[1])
}

// states are all states that a record can hold, with counters up to 3.
func states() []State {
	var all []State
	for _, slot := range []device.Slot{slotA, slotB} {
		for _, phase := range []Phase{Committed, Trial, FellBack} {
			for tries := range 4 { // what a counter says beside a trial means nothing
				all = append(all, State{phase, slot, tries})
			}
		}
	}
	return all
}

// damaged are the conditions of a copy; good and older are whole.
func damaged(t *testing.T, kind string, st State) []byte {
	t.Helper()
	good := block(t, 7, st)
	switch kind {
	case "good":
		return good
	case "older":
		return block(t, 6, olderState(st))
	case "empty":
		return []byte{}
	case "torn": // the head of a newer record
		return bytes.Replace(good, []byte("seq=7"), []byte("seq=8"), 1)
	case "garbage":
		return bytes.Repeat([]byte("\xff\x00x\n"), grubenv.Size/4)
	case "missing":
		return nil
	}
	t.Fatalf("kind %q", kind)
	return nil
}

// olderState differs from st in the slot that boots.
func olderState(st State) State {
	slot, _ := Next(st)
	return State{Committed, slot.Other(), 0}
}

// expectation is what the pure table says of one boot.
type expectation struct {
	slot   device.Slot
	kind   string
	copies [2][]byte
}

// expect models a boot on which GRUB finds the copies given.
func expect(t *testing.T, kinds [2]string, st State) expectation {
	t.Helper()
	e := expectation{slot: slotA, kind: "unsaved"}
	for i := range kinds {
		e.copies[i] = damaged(t, kinds[i], st)
	}
	now := record{7, st}
	switch {
	case kinds[0] == "good" || kinds[1] == "good":
	case kinds[0] == "older" || kinds[1] == "older":
		now = record{6, olderState(st)}
	default:
		return e
	}
	slot, then := Next(now.state)
	e.slot = slot
	e.kind = map[Phase]string{Committed: "committed", Trial: "trial", FellBack: "fallback"}[then.Phase]
	if now.state.Phase == Trial {
		for i, kind := range kinds {
			if kind == "good" || kind == "older" || kind == "torn" { // what GRUB can write
				e.copies[i] = block(t, now.seq, then)
			}
		}
	}
	return e
}

func (m *machine) check(label string, e expectation) {
	m.t.Helper()
	r := m.boot()
	var got [2][]byte
	for i, want := range e.copies {
		got[i] = m.get(i, len(want))
		if !bytes.Equal(got[i], want) {
			m.t.Errorf("%s: copy %d (-want +got):\n%s\n%s", label, i, cmp.Diff(string(want), string(got[i])), r.output)
		}
	}
	if slot, kind := r.booted(); slot != e.slot || kind != e.kind {
		m.t.Errorf("%s: GRUB boots %q (%s), want %s (%s):\n%s", label, slot, kind, e.slot, e.kind, r.output)
	}
}

// TestGrubTable boots every state with every condition of the two copies.
func TestGrubTable(t *testing.T) {
	needTools(t)
	kinds := []string{"good", "older", "empty", "torn", "garbage", "missing"}
	var boots atomic.Int64
	t.Run("all", func(t *testing.T) {
		for _, a := range kinds {
			t.Run("a "+a, func(t *testing.T) {
				t.Parallel()
				m := newMachine(t, "ab")
				for _, b := range kinds {
					for _, st := range states() {
						m.tableCase(st, [2]string{a, b})
						boots.Add(1)
					}
				}
			})
		}
	})
	if want := int64(len(states()) * len(kinds) * len(kinds)); boots.Load() != want {
		t.Errorf("%d boots, want %d", boots.Load(), want)
	}
	t.Logf("%d boots of the real grub.cfg", boots.Load())
}

func (m *machine) tableCase(st State, kinds [2]string) {
	m.t.Helper()
	before := [2][]byte{damaged(m.t, kinds[0], st), damaged(m.t, kinds[1], st)}
	m.set(0, before[0])
	m.set(1, before[1])
	e := expect(m.t, kinds, st)
	m.check(fmt.Sprintf("%v, a %s, b %s", st, kinds[0], kinds[1]), e)
	m.agree(before, e)
}

// agree fails unless user space, reading the files that GRUB found, expects the
// boot that GRUB made.
func (m *machine) agree(before [2][]byte, e expectation) {
	m.t.Helper()
	st, _, err := m.store(before).Load()
	if err != nil {
		if e.kind != "unsaved" {
			m.t.Errorf("Load: %v, but GRUB found a state", err)
		}
		return
	}
	if slot, _ := Next(st); slot != e.slot {
		m.t.Errorf("Load says %v, but GRUB boots %s", st, e.slot)
	}
}

// TestGrubWhitelist: a value that has no meaning makes its copy worthless, to
// GRUB and to user space alike, whatever the shell-like script could make of it.
func TestGrubWhitelist(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	good := block(t, 7, State{Committed, slotB, 0})
	for _, values := range [][2]string{
		{"seq", "8x"}, {"seq", "0"}, {"seq", "08"}, {"seq", "-8"}, {"seq", "0x8"}, {"seq", "1234567890"}, {"seq", ""},
		{"seq", "--help"}, {"seq", "8 0 B 0 8"}, {"seq", "8\n"}, {"seq", "("}, {"seq", "!"},
		{"ustate", "2"}, {"ustate", "4"}, {"ustate", "00"}, {"ustate", "--help"}, {"ustate", "$ustate"},
		{"rootfs", "C"}, {"rootfs", "b"}, {"rootfs", "AB"}, {"rootfs", "A B"}, {"rootfs", "-u"}, {"rootfs", ""},
		{"boot_counter", "10"}, {"boot_counter", "-1"}, {"boot_counter", "x"}, {"boot_counter", "\\"},
		{"end", "9"}, {"end", ""}, {"end", "8 "}, {"end", "08"},
	} {
		// Sequence number 8 and slot A on trial: the copy would win.
		bad := grubenv.Block{}
		for _, v := range [][2]string{{"seq", "8"}, {"ustate", "1"}, {"rootfs", "A"}, {"boot_counter", "3"}, {"end", "8"}} {
			if v[0] == values[0] {
				v[1] = values[1]
				if v[0] == "seq" && v[1] != "" { // else seq and end would differ
					setVar(t, &bad, "end", v[1])
				}
			}
			if _, known := bad.Get(v[0]); !known {
				setVar(t, &bad, v[0], v[1])
			}
		}
		data, err := bad.Encode()
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			copies := [2][]byte{good, good}
			copies[i] = data
			m.set(0, copies[0])
			m.set(1, copies[1])
			e := expectation{slotB, "committed", copies}
			m.check(fmt.Sprintf("%s=%q in copy %d", values[0], values[1], i), e)
			m.agree(copies, e)
		}
	}
}

func setVar(t *testing.T, b *grubenv.Block, name, value string) {
	t.Helper()
	if err := b.Set(name, value); err != nil {
		t.Fatal(err)
	}
}

// TestGrubMissingVariable: a value that a copy lacks is not taken from the other.
func TestGrubMissingVariable(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	good := block(t, 7, State{Committed, slotB, 0})
	better := block(t, 8, State{Trial, slotA, 3})
	for _, name := range []string{"seq", "ustate", "rootfs", "boot_counter", "end"} {
		for i := range 2 {
			copies := [2][]byte{good, good}
			copies[i] = bytes.Replace(better, []byte("\n"+name+"="), []byte("\n#"+name[1:]+"="), 1)
			if name == "end" || name == "seq" { // the number of the copy before would fit
				copies[i] = bytes.ReplaceAll(copies[i], []byte("=8"), []byte("=7"))
			}
			m.set(0, copies[0])
			m.set(1, copies[1])
			e := expectation{slotB, "committed", copies}
			m.check(fmt.Sprintf("no %s in copy %d", name, i), e)
			m.agree(copies, e)
		}
	}
}

// TestGrubOrder: numbers are compared as numbers, and GRUB and Load agree.
func TestGrubOrder(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	for _, c := range []struct{ a, b int }{
		{9, 10}, {10, 9}, {99_999_999, 100_000_000}, {maxSeq, maxSeq - 1}, {1, maxSeq}, {maxSeq, 1}, {5, 5},
	} {
		copies := [2][]byte{block(t, c.a, State{Committed, slotA, 0}), block(t, c.b, State{Committed, slotB, 0})}
		m.set(0, copies[0])
		m.set(1, copies[1])
		e := expectation{slotA, "committed", copies}
		if c.b > c.a {
			e.slot = slotB
		}
		m.check(fmt.Sprintf("seq %d and %d", c.a, c.b), e)
		m.agree(copies, e)
	}
}

// TestGrubOddFiles: files of a wrong size, and blocks whose lines moved.
func TestGrubOddFiles(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	good := block(t, 7, State{Committed, slotA, 0})
	better := block(t, 8, State{Committed, slotB, 0})
	for name, c := range map[string]struct {
		data []byte
		want device.Slot
	}{
		"short but whole":   {better[:200], slotB},
		"cut":               {better[:60], slotA},
		"signature only":    {better[:25], slotA},
		"more variables":    {bytes.Replace(better, []byte("end="), []byte("saved_entry=x\nend="), 1)[:1024], slotB},
		"line without sign": {bytes.Replace(better, []byte("seq="), []byte("x\nseq="), 1)[:1024], slotA},
		"twice":             {bytes.Replace(better, []byte("###"), []byte("rootfs=A\n###"), 1)[:1024], slotA},
	} {
		for i := range 2 {
			copies := [2][]byte{good, good}
			copies[i] = c.data
			m.set(0, copies[0])
			m.set(1, copies[1])
			e := expectation{c.want, "committed", copies}
			m.check(name, e)
			m.agree(copies, e)
		}
	}
}

// TestGrubDisk: the disk is the one that GRUB came from, under any name.
func TestGrubDisk(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	for _, c := range []struct{ name, root string }{{"hd3", "hd3,gpt1"}, {"hd12", "hd12,gpt1"}, {"hd0", "host"}, {"hd1", ""}} {
		m.name, m.root = c.name, c.root
		m.setBoth(block(t, 7, State{Trial, slotB, 2}))
		data := block(t, 7, State{Trial, slotB, 1})
		m.check(fmt.Sprintf("disk %s, root %q", c.name, c.root), expectation{slotB, "trial", [2][]byte{data, data}})
	}
}

// TestGrubStories: GRUB and the Store in turn, over the same files.
func TestGrubStories(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	s := both(t, maxSeq-2, State{Committed, slotA, 0})
	m.carryIn(s)
	boot := func(want device.Slot, kind string) func() error {
		return func() error {
			m.carryIn(s)
			r := m.boot()
			m.carryOut(s)
			if slot, k := r.booted(); slot != want || k != kind {
				return fmt.Errorf("GRUB boots %q (%s), want %s (%s)", slot, k, want, kind)
			}
			return nil
		}
	}
	for i, step := range []func() error{
		boot(slotA, "committed"),
		func() error { return s.Arm(written(t, slotB), 2) },
		boot(slotB, "trial"), boot(slotB, "trial"), boot(slotA, "fallback"), boot(slotA, "fallback"),
		s.FallBack, s.Acknowledge,
		boot(slotA, "committed"),
		func() error { return s.Arm(written(t, slotB), 1) }, // the number wraps about here
		boot(slotB, "trial"),
		func() error { return s.Commit(slotB) },
		boot(slotB, "committed"),
		func() error { return s.ArmProven(slotA, 3) },
		boot(slotA, "trial"), s.FallBack, boot(slotB, "fallback"), s.Acknowledge,
		func() error { return s.Arm(written(t, slotA), 3) },
		func() error { return s.Disarm(slotB) },
		boot(slotB, "committed"),
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

// carryIn puts the store's files onto the disk, carryOut takes them back.
func (m *machine) carryIn(s *Store) {
	m.t.Helper()
	for i, data := range contents(m.t, s) {
		m.set(i, []byte(data))
	}
}

func (m *machine) carryOut(s *Store) {
	m.t.Helper()
	for i, path := range s.paths {
		if err := os.WriteFile(filepath.Clean(path), m.get(i, grubenv.Size), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
}
