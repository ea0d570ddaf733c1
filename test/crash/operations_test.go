package crash

import (
	"bytes"
	"errors"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/grubenv"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/test/crash/model"
)

// firstLedger is that of an installed machine.
func (s *site) firstLedger(m machine) {
	s.t.Helper()
	l, err := ledger.New(ledger.Entry{
		Digest: digest.FromString("1.0").String(), Product: "gateway", Version: "1.0",
		Created: time.Unix(1_800_000_000, 0).UTC(), Reference: "registry.example.com/os:1.0", SignedBy: "release",
	}, time.Unix(1_800_000_000, 0).UTC())
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := l.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	s.writeFile(m.path("data/osctl/ledger.json"), data)
}

// operation is something that osctl does and that a power cut may interrupt.
type operation struct {
	name string
	// prepare brings a new machine to where the operation starts.
	prepare func(m machine)
	// on is what runs during the operation, args the command.
	on   booted
	args []string
	// before and after are what GRUB boots of the state before and of that after.
	before, after booted
	// via is what GRUB may boot in between, when neither is right.
	via booted
	// old is the release that slot B holds before it is written, if any.
	old string
	// image is the release that a slot has to hold when GRUB boots it.
	image map[string]string
	// floor is the version below which nothing may be installed as long as GRUB
	// boots what it booted before.
	floor string
	// goal is the release that is committed in the end. The command is run again
	// unless that runs already; always runs it in any case.
	goal   string
	always bool
	// proven are the slots that GRUB may boot unsaved: while a cut has left a copy
	// that cannot be written, it boots the proven slot.
	proven string
	// red is that the gate fails in slot B.
	red bool
	// rung is that the other slot has to be a rung of the ladder in the end.
	rung bool
	// damaged is that slot B, a rung of the ladder, is damaged before.
	damaged bool
}

var (
	committedA = booted{"A", "committed"}
	committedB = booted{"B", "committed"}
	trialA     = booted{"A", "trial"}
	trialB     = booted{"B", "trial"}
	fallbackA  = booted{"A", "fallback"}
)

func (s *site) upgradeTo(version string) []string {
	return []string{"upgrade", "--progress", "none", "--from", s.images[version].layout}
}

// grubBoots plays GRUB for a machine: it boots once.
func (m machine) grubBoots(want booted) {
	m.t.Helper()
	j := newJudge(m.site, m.t)
	got, err := j.bootMachine(m)
	if err != nil {
		m.t.Fatal(err)
	}
	if got != want {
		m.t.Fatalf("GRUB boots %v, want %v", got, want)
	}
}

// operations are all that change a machine.
func operations(s *site) []operation {
	staged := func(m machine) { m.must(committedA, s.upgradeTo("1.1")...) }
	onTrial := func(m machine) { staged(m); m.grubBoots(trialB) }
	onB := func(m machine) { onTrial(m); m.must(trialB, "settle") }
	back := func(m machine) {
		onB(m)
		m.must(committedB, "rollback")
		m.grubBoots(trialA)
		m.must(trialA, "settle")
	}
	failed := func(m machine) {
		onTrial(m)
		m.gateIsRed()
		m.must(trialB, settle...)
		m.grubBoots(fallbackA)
	}
	one, two := map[string]string{"A": "1.0", "B": "1.1"}, map[string]string{"A": "1.0", "B": "1.2"}
	return append([]operation{
		{name: "upgrade into an empty slot", prepare: func(machine) {}, on: committedA, args: s.upgradeTo("1.1"), rung: true,
			before: committedA, after: trialB, image: one, floor: "1.0", goal: "1.1", always: true, proven: "A"},
		{name: "upgrade over an armed trial", prepare: staged, on: committedA, args: s.upgradeTo("1.2"), rung: true,
			before: trialB, after: trialB, via: committedA, image: two, old: "1.1", floor: "1.0", goal: "1.2", always: true, proven: "A"},
		{name: "upgrade over a committed slot", prepare: back, on: committedA, args: s.upgradeTo("1.2"), rung: true,
			before: committedA, after: trialB, image: two, old: "1.1", floor: "1.1", goal: "1.2", always: true, proven: "A"},
		{name: "commit", prepare: onTrial, on: trialB, args: settle, rung: true,
			before: trialB, after: committedB, image: one, floor: "1.0", goal: "1.1", proven: "AB"},
		{name: "fall back", prepare: func(m machine) { onTrial(m); m.gateIsRed() }, on: trialB, args: settle,
			before: trialB, after: fallbackA, image: one, floor: "1.0", goal: "1.0", proven: "A", red: true},
		{name: "acknowledge", prepare: failed, on: fallbackA, args: settle,
			before: fallbackA, after: committedA, image: one, floor: "1.0", goal: "1.0", proven: "A"},
		{name: "rollback to the proven slot", prepare: onB, on: committedB, args: []string{"rollback"}, rung: true,
			before: committedB, after: trialA, image: one, floor: "1.1", goal: "1.0", proven: "B"},
		{name: "rollback of a trial", prepare: onTrial, on: trialB, args: []string{"rollback"},
			before: trialB, after: fallbackA, image: one, floor: "1.0", goal: "1.0", proven: "A"},
		{name: "rollback of an armed trial", prepare: staged, on: committedA, args: []string{"rollback"},
			before: trialB, after: committedA, image: one, floor: "1.0", goal: "1.0", proven: "A"},
		{name: "repair of a damaged copy", prepare: func(m machine) { m.writeFile(m.path("efi/osctl/a/grubenv"), make([]byte, 1024)) },
			on: committedA, args: settle, before: committedA, after: committedA, image: alone, floor: "1.0", goal: "1.0", proven: "A"},
		{name: "repair of a missing copy", prepare: func(m machine) { m.remove("efi/osctl/b") },
			on: committedA, args: settle, before: committedA, after: committedA, image: alone, floor: "1.0", goal: "1.0", proven: "A"},
		{name: "repair of the other slot", prepare: func(m machine) { back(m); m.damage("B.img") }, on: committedA,
			args: append(s.upgradeTo("1.1"), "--repair"), rung: true, damaged: true,
			before: committedA, after: committedA, image: one, floor: "1.1", goal: "1.0", always: true, proven: "A"},
	}, append(orders(staged), s.numbers(onTrial)...)...)
}

// alone are the slots of a machine that was just installed.
var alone = map[string]string{"A": "1.0"}

// orders are the operations that the next boot carries out.
func orders(staged func(machine)) []operation {
	resetEtc, reset := []string{"etc", "reset", "hostname"}, []string{"reset", "--apps=keep", "--yes"}
	of := func(name string, prepare func(machine), args ...string) operation {
		return operation{name: name, prepare: prepare, on: committedA, args: args, before: committedA, after: committedA,
			image: alone, floor: "1.0", goal: "1.0", always: true, proven: "A"}
	}
	armed := of("order to reset /etc of both slots", staged, resetEtc...)
	armed.before, armed.after, armed.goal, armed.rung = trialB, trialB, "1.1", true
	armed.image = map[string]string{"A": "1.0", "B": "1.1"}
	return []operation{
		of("order to reset /etc", func(machine) {}, resetEtc...),
		armed,
		of("order of a factory reset", func(machine) {}, reset...),
		of("end of that order", func(m machine) { m.must(committedA, reset...) }, "reset", "--cancel"),
	}
}

// numbers are the operations where the boot state begins its numbers anew, and one
// on a boot state of the system before osctl.
func (s *site) numbers(onTrial func(machine)) []operation {
	one := map[string]string{"A": "1.0", "B": "1.1"}
	const last = "999999999"
	wrapped := func(prepare func(machine)) func(machine) {
		return func(m machine) { prepare(m); m.setNumber(last) }
	}
	return []operation{
		{name: "upgrade from the last number", prepare: wrapped(func(machine) {}), on: committedA, args: s.upgradeTo("1.1"), rung: true,
			before: committedA, after: trialB, image: one, floor: "1.0", goal: "1.1", always: true, proven: "A"},
		{name: "commit from the last number", prepare: wrapped(onTrial), on: trialB, args: settle, rung: true,
			before: trialB, after: committedB, image: one, floor: "1.0", goal: "1.1", proven: "AB"},
		{name: "rollback from the last number", prepare: wrapped(onTrial), on: trialB, args: []string{"rollback"},
			before: trialB, after: fallbackA, image: one, floor: "1.0", goal: "1.0", proven: "A"},
		{name: "upgrade from the old system", prepare: machine.oldSystem, on: committedA, args: s.upgradeTo("1.1"), rung: true,
			before: committedA, after: trialB, image: one, floor: "1.0", goal: "1.1", always: true, proven: "A"},
	}
}

// copyPaths are the two copies of the boot state.
func (m machine) copyPaths() []string {
	return []string{m.path("efi/osctl/a/grubenv"), m.path("efi/osctl/b/grubenv")}
}

// setNumber gives both copies a sequence number.
func (m machine) setNumber(number string) {
	m.t.Helper()
	for _, path := range m.copyPaths() {
		block, err := grubenv.Parse(m.readFile(path))
		if err != nil {
			m.t.Fatal(err)
		}
		m.putBlock(path, block, [][2]string{{"seq", number}, {"end", number}})
	}
}

// oldSystem gives the machine one copy, as the system before osctl wrote it: its
// variables without ours, and others.
func (m machine) oldSystem() {
	m.t.Helper()
	m.putBlock(m.copyPaths()[0], grubenv.Block{}, [][2]string{{"ustate", "0"}, {"rootfs", "A"}, {"boot_counter", "0"}, {"drive", "hd0"}})
	m.remove("efi/osctl/b")
}

func (m machine) putBlock(path string, block grubenv.Block, values [][2]string) {
	m.t.Helper()
	for _, v := range values {
		if err := block.Set(v[0], v[1]); err != nil {
			m.t.Fatal(err)
		}
	}
	data, err := block.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	m.writeFile(path, data)
}

// damage changes a sector of a slot, where its system has data.
func (m machine) damage(name string) {
	m.t.Helper()
	f, err := os.OpenFile(m.path(name), os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	const at = 2<<20 + 3*model.Sector
	_, err = f.WriteAt(bytes.Repeat([]byte{0x5a}, model.Sector), at)
	if err := errors.Join(err, f.Close()); err != nil {
		m.t.Fatal(err)
	}
}

// settle is what runs at the end of each boot.
var settle = []string{"settle", "--no-reboot"}

// gateIsRed leaves the report of a gate that failed.
func (m machine) gateIsRed() {
	m.writeFile(m.path("run/health.json"), []byte(`{"green":false,"checks":[{"kind":"unit","name":"planted","required":true,"seen":"failed","expected":"active","ok":false}]}`))
}

func (m machine) remove(name string) {
	m.t.Helper()
	if err := os.RemoveAll(m.path(name)); err != nil {
		m.t.Fatal(err)
	}
}
