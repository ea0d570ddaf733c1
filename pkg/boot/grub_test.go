package boot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

func TestGrubCommandLine(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	m.setBoth(block(t, 7, trial(slotB, 2)))
	r := m.boot()
	want := "(hd0,gpt3)/boot/vmlinuz root=PARTUUID=" + partUUID(slotB) + " ro fsck.mode=skip init=/usr/lib/osctl/preinit" +
		" osctl.slot=B osctl.boot=trial panic=10 rd.emergency=reboot rd.shell=0 systemd.crash_reboot=1" +
		" console=tty0 console=ttyS0,115200 initrd=(hd0,gpt3)/boot/initrd.img"
	if diff := cmp.Diff(want, r.cmdline); diff != "" {
		t.Errorf("the kernel's command line (-want +got):\n%s\n%s", diff, r.output)
	}
	// The rescue system is its initrd, and gets no root.
	m.setBoth(block(t, 7, committed(slotA).on(RungRescue, 3, false)))
	r = m.boot()
	want = "(hd0,gpt4)/boot/vmlinuz osctl.slot=rescue osctl.boot=rescue panic=10 rd.emergency=reboot rd.shell=0" +
		" systemd.crash_reboot=1 console=tty0 console=ttyS0,115200 initrd=(hd0,gpt4)/boot/initrd.img"
	if diff := cmp.Diff(want, r.cmdline); diff != "" {
		t.Errorf("the rescue kernel's command line (-want +got):\n%s\n%s", diff, r.output)
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

// TestGrubWhitelist: a value that has no meaning makes its copy worthless, to
// GRUB and to user space alike, whatever the shell-like script could make of it.
func TestGrubWhitelist(t *testing.T) {
	needTools(t)
	t.Parallel()
	m, user := newMachine(t, "ab"), newStore(t, nil, nil)
	now := committed(slotB)
	good := block(t, 7, now)
	for _, values := range [][2]string{
		{"seq", "8x"}, {"seq", "0"}, {"seq", "08"}, {"seq", "-8"}, {"seq", "0x8"}, {"seq", "1234567890"}, {"seq", ""},
		{"seq", "--help"}, {"seq", "8 0 B 0 8"}, {"seq", "8\n"}, {"seq", "("}, {"seq", "!"},
		{"ustate", "2"}, {"ustate", "4"}, {"ustate", "00"}, {"ustate", "--help"}, {"ustate", "$ustate"},
		{"rootfs", "C"}, {"rootfs", "b"}, {"rootfs", "AB"}, {"rootfs", "A B"}, {"rootfs", "-u"}, {"rootfs", ""},
		{"boot_counter", "10"}, {"boot_counter", "-1"}, {"boot_counter", "x"}, {"boot_counter", "\\"}, {"boot_counter", ""},
		{"rung", "4"}, {"rung", "00"}, {"rung", "x"}, {"rung", " "}, {"rung", ""}, {"rung", "-1"}, {"rung", "--help"},
		{"other", "2"}, {"other", "A"}, {"other", " "}, {"other", ""}, {"other", "01"}, {"other", "("},
		{"end", "9"}, {"end", ""}, {"end", "8 "}, {"end", "08"},
	} {
		// Sequence number 8 and slot A on trial: the copy would win.
		bad := grubenv.Block{}
		for _, v := range [][2]string{{"seq", "8"}, {"ustate", "1"}, {"rootfs", "A"}, {"boot_counter", "3"}, {"rung", "0"}, {"other", "0"}, {"end", "8"}} {
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
			m.counts(fmt.Sprintf("%s=%q in copy %d", values[0], values[1], i), user, copies, record{7, now})
		}
	}
}

// counts fails unless GRUB and user space take the record for the one that counts,
// of what the copies hold, and GRUB leaves what follows from it.
func (m *machine) counts(label string, user *Store, copies [2][]byte, now record) {
	m.t.Helper()
	want, then := Next(now.state)
	r := m.boot()
	if got := r.booted(); got != want {
		m.t.Errorf("%s: GRUB boots %v, want %v:\n%s", label, got, want, r.output)
	}
	after, _ := winner([2][]byte{m.get(0, len(copies[0])), m.get(1, len(copies[1]))})
	if after != (record{now.seq, then}) {
		m.t.Errorf("%s: GRUB leaves %+v, want %+v", label, after, record{now.seq, then})
	}
	m.agree(user, copies, expectation{boot: want})
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
	m, user := newMachine(t, "ab"), newStore(t, nil, nil)
	now := committed(slotB)
	good := block(t, 7, now)
	better := block(t, 8, trial(slotA, 3))
	for _, name := range []string{"seq", "ustate", "rootfs", "boot_counter", "rung", "other", "end"} {
		for i := range 2 {
			copies := [2][]byte{good, good}
			copies[i] = bytes.Replace(better, []byte("\n"+name+"="), []byte("\n#"+name[1:]+"="), 1)
			if name == "end" || name == "seq" { // the number of the copy before would fit
				copies[i] = bytes.ReplaceAll(copies[i], []byte("=8"), []byte("=7"))
			}
			m.set(0, copies[0])
			m.set(1, copies[1])
			m.counts(fmt.Sprintf("no %s in copy %d", name, i), user, copies, record{7, now})
		}
	}
}

// TestGrubOrder: numbers are compared as numbers, and GRUB and Load agree.
func TestGrubOrder(t *testing.T) {
	needTools(t)
	t.Parallel()
	m, user := newMachine(t, "ab"), newStore(t, nil, nil)
	for _, c := range []struct{ a, b int }{
		{9, 10}, {10, 9}, {99_999_999, 100_000_000}, {maxSeq, maxSeq - 1}, {1, maxSeq}, {maxSeq, 1}, {5, 5},
	} {
		copies := [2][]byte{block(t, c.a, committed(slotA)), block(t, c.b, committed(slotB))}
		m.set(0, copies[0])
		m.set(1, copies[1])
		e := expect(t, copies, [2]bool{true, true})
		m.check(fmt.Sprintf("seq %d and %d", c.a, c.b), e)
		m.agree(user, copies, e)
	}
}

// TestGrubOddFiles: files of a wrong size, and blocks whose lines moved.
func TestGrubOddFiles(t *testing.T) {
	needTools(t)
	t.Parallel()
	m, user := newMachine(t, "ab"), newStore(t, nil, nil)
	good := block(t, 7, committed(slotA))
	better := block(t, 8, committed(slotB))
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
			want := device.Boot{Slot: c.want, Kind: KindCommitted}
			if r := m.boot(); r.booted() != want {
				t.Errorf("%s: GRUB boots %v, want %v:\n%s", name, r.booted(), want, r.output)
			}
			m.agree(user, copies, expectation{boot: want})
		}
	}
}

// TestGrubOldFormats: what earlier releases, and the system before osctl, left is
// read as what it meant, and the next boot finds it in today's format. A copy with
// a number counts before one without.
func TestGrubOldFormats(t *testing.T) {
	needTools(t)
	t.Parallel()
	m, user := newMachine(t, "ab"), newStore(t, nil, nil)
	boots := 0
	for _, f := range oldFormats() {
		for _, beside := range []string{"", "older", "newer", "garbage"} {
			for i := range 2 {
				now := f.means
				var copies [2][]byte
				copies[i] = f.encode(t)
				switch beside {
				case "older":
					copies[1-i] = block(t, 6, committed(slotB))
					if !f.numbered {
						now = committed(slotB)
					}
				case "newer":
					copies[1-i], now = block(t, 8, committed(slotB)), committed(slotB)
				case "garbage":
					copies[1-i] = bytes.Repeat([]byte("x"), grubenv.Size)
				}
				label := fmt.Sprintf("%s in copy %d, beside %q", f.vars, i, beside)
				m.set(0, copies[0])
				m.set(1, copies[1])
				want, then := Next(now)
				m.agree(user, copies, expectation{boot: want})
				if r := m.boot(); r.booted() != want {
					t.Errorf("%s: GRUB boots %v, want %v:\n%s", label, r.booted(), want, r.output)
				}
				if got, _ := winner([2][]byte{m.get(0, len(copies[0])), m.get(1, len(copies[1]))}); got.state != then || got.seq == 0 {
					t.Errorf("%s: afterwards %+v, want %+v", label, got, then)
				}
				boots++
			}
		}
	}
	if boots < 100 {
		t.Errorf("%d boots: the formats are not there", boots)
	}
}

// TestGrubTornOldFormat: a copy in the older format with numbers that was torn
// between them, or has only one of them, is worthless to GRUB and to user space.
func TestGrubTornOldFormat(t *testing.T) {
	needTools(t)
	t.Parallel()
	m, user := newMachine(t, "ab"), newStore(t, nil, nil)
	now := committed(slotB)
	for _, vars := range []string{
		"seq=8 ustate=1 rootfs=A boot_counter=3 end=9", "seq=9 ustate=1 rootfs=A boot_counter=3 end=8",
		"seq=8 ustate=1 rootfs=A boot_counter=3", "ustate=1 rootfs=A boot_counter=3 end=8",
	} {
		for i := range 2 {
			good := block(t, 7, now)
			copies := [2][]byte{good, good}
			copies[i] = oldFormat{vars: vars}.encode(t)
			m.set(0, copies[0])
			m.set(1, copies[1])
			m.counts(fmt.Sprintf("%s in copy %d", vars, i), user, copies, record{7, now})
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
		m.setBoth(block(t, 7, trial(slotB, 2)))
		data := block(t, 7, trial(slotB, 1))
		m.check(fmt.Sprintf("disk %s, root %q", c.name, c.root), expectation{device.Boot{Slot: slotB, Kind: KindTrial}, [2][]byte{data, data}})
	}
}

// TestGrubSecondDisk: beside another disk with an ESP, slots and copies of its own,
// which the firmware lists first, GRUB reads, writes and boots the disk that it came
// from, and falls back to no other.
func TestGrubSecondDisk(t *testing.T) {
	needTools(t)
	t.Parallel()
	m, other := newMachine(t, "ab"), newMachine(t, "ab")
	theirs := block(t, 9, committed(slotA))
	other.name, other.root = "hd0", "hd0,gpt1"
	other.setBoth(theirs)
	m.beside = other
	for _, name := range []string{"hd1", "hd2"} {
		m.name, m.root = name, name+",gpt1"
		m.setBoth(block(t, 7, trial(slotB, 2)))
		data := block(t, 7, trial(slotB, 1))
		m.check("beside another disk, "+name, expectation{device.Boot{Slot: slotB, Kind: KindTrial}, [2][]byte{data, data}})
		m.setBoth(nil)
		if r := m.boot(); !strings.HasPrefix(r.cmdline, "("+name+",gpt2)/boot/vmlinuz ") || r.booted().Kind != KindUnsaved {
			t.Errorf("without copies: %q, want slot A of %s, unsaved", r.cmdline, name)
		}
	}
	for _, slot := range places() {
		m.unbootable(slot)
	}
	r := m.boot()
	for _, kernel := range r.tried {
		if !strings.HasPrefix(kernel, "("+m.name+",") {
			t.Errorf("GRUB tries %s of another disk", kernel)
		}
	}
	wantEnd(t, r, m.name)
	for i := range 2 {
		if got := other.get(i, grubenv.Size); !bytes.Equal(got, theirs) {
			t.Errorf("copy %d of the other disk has changed:\n%s", i, got)
		}
	}
}

// TestGrubStories: GRUB and the Store in turn, over the same files.
func TestGrubStories(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	s := both(t, maxSeq-2, committed(slotA))
	m.carryIn(s)
	boot := func(want device.Slot, kind string) func() error {
		return func() error {
			m.carryIn(s)
			r := m.boot()
			m.carryOut(s)
			if got := r.booted(); got.Slot != want || got.Kind != kind {
				return fmt.Errorf("GRUB boots %v, want %s (%s)", got, want, kind)
			}
			return nil
		}
	}
	giveBack := func(slot device.Slot, kind string) func() error {
		return func() error { return s.GiveBack(device.Boot{Slot: slot, Kind: kind}) }
	}
	for i, step := range []func() error{
		boot(slotA, "committed"), boot(slotA, "committed"), s.Settle,
		func() error { return s.Arm(written(t, slotB), 2) },
		boot(slotB, "trial"), boot(slotB, "trial"), boot(slotA, "fallback"), boot(slotA, "fallback"),
		s.FallBack, s.Acknowledge,
		boot(slotA, "committed"),
		func() error { return s.Arm(written(t, slotB), 1) }, // the number wraps about here
		boot(slotB, "trial"), giveBack(slotB, "trial"), boot(slotB, "trial"),
		func() error { return s.Commit(slotB) },
		boot(slotB, "committed"),
		func() error { return s.ArmProven(slotA, 3) },
		boot(slotA, "trial"), s.FallBack, boot(slotB, "fallback"), s.Acknowledge,
		func() error { return s.Arm(written(t, slotA), 3) },
		func() error { return s.Disarm(slotB) },
		boot(slotB, "committed"), s.Settle,
		// The other slot is committed, so the way down leads through it.
		func() error { return s.Arm(written(t, slotA), 1) }, boot(slotA, "trial"), func() error { return s.Commit(slotA) },
		boot(slotA, "committed"), giveBack(slotA, "committed"), boot(slotA, "committed"), boot(slotA, "committed"), boot(slotA, "committed"),
		boot(slotA, "pristine"), giveBack(slotA, "pristine"), boot(slotA, "pristine"), boot(slotA, "pristine"), boot(slotA, "pristine"),
		boot(slotB, "other"), boot(slotB, "other"), boot(slotB, "other"),
		boot(device.Rescue, "rescue"), boot(device.Rescue, "rescue"), boot(device.Rescue, "rescue"),
		boot(slotA, "committed"), // rescue did not help either: from the top
		func() error { return s.Commit(slotB) }, boot(slotB, "committed"),
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
