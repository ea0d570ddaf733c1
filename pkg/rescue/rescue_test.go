package rescue_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/rescue"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
	"github.com/kapernikov/osctl/test/sample"
)

var ctx = context.Background()

// The images of the tests. oneA is what slot A was committed with.
var (
	oneA = sample.Image{MiB: 2, Seed: 1, Version: "1.0", Epoch: 1}
	oneB = sample.Image{MiB: 2, Seed: 2, Version: "0.9", Epoch: 1}
	next = sample.Image{MiB: 2, Seed: 3, Version: "1.1", Epoch: 1}
	old  = sample.Image{MiB: 2, Seed: 4, Version: "0.8", Epoch: 1}
)

// bench is a machine of plain files: A committed with 1.0, B with 0.9 before it.
type bench struct {
	*testing.T
	dir     string
	boot    *boot.Store
	key     *publish.Key
	machine rescue.Machine
	layouts map[string]string // by reference
	asked   []string
}

const slotSize = 3 << 20

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, dir: t.TempDir(), layouts: map[string]string{}}
	key, _, public := sample.Key(t)
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "release", PEM: public}}})
	b.check(err)
	b.key = key
	envs := [2]string{b.path("a"), b.path("b")}
	b.check(errors.Join(boot.Create(envs[0]), boot.Create(envs[1])))
	b.boot, err = boot.Open(envs)
	b.check(err)
	b.machine = rescue.Machine{
		Facts: admit.Machine{Product: "gateway", Architecture: device.Architecture(), Version: "1.0"}, Tries: 3,
		Lock: func() (func() error, error) {
			held, err := boot.Lock(b.path("lock"))
			if err != nil {
				return nil, err
			}
			return held.Release, nil
		},
		OpenSlot: func(s device.Slot) (upgrade.Target, error) { return disk.Open(b.path(s.Label())) },
		Resolve:  b.resolve, Verifier: func(string) (upgrade.Verifier, error) { return v, nil }, Boot: b.boot, Log: slog.New(slog.DiscardHandler),
		Ledger: ledger.Open(b.path("state")), Records: proof.Open(b.path("state")),
	}
	b.keep(device.SlotB, oneB)
	b.keep(device.SlotA, oneA)
	return b
}

func (b *bench) check(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// publish makes an image resolvable, by its tag and by its digest.
func (b *bench) publish(tag string, img sample.Image) string {
	b.Helper()
	img.Architecture = device.Architecture()
	dir := img.Signed(b, b.key)
	b.layouts["reg/os:"+tag] = dir
	source, err := b.resolve(ctx, "reg/os:"+tag)
	b.check(err)
	digest := source.Digest().String()
	b.check(source.Close())
	b.layouts["reg/os@"+digest] = dir
	b.asked = nil
	return digest
}

func (b *bench) resolve(ctx context.Context, reference string) (rescue.Source, error) {
	b.asked = append(b.asked, reference)
	dir, ok := b.layouts[reference]
	if !ok {
		return rescue.Source{}, fetch.ErrNotFound
	}
	l, err := fetch.OpenLayout(dir)
	if err != nil {
		return rescue.Source{}, err
	}
	ref, err := l.Resolve(ctx, "")
	return rescue.Source{Offer: ref, Close: l.Close}, err
}

// keep commits an image in a slot, with all that an upgrade leaves of it.
func (b *bench) keep(name device.Slot, img sample.Image) {
	b.Helper()
	digest := b.publish(img.Version, img)
	source, err := b.resolve(ctx, "reg/os:"+img.Version)
	b.check(err)
	described, err := source.Describe(ctx)
	b.check(err)
	sigs, err := source.Signatures(ctx)
	b.check(err)
	b.check(source.Close())
	b.check(b.machine.Records.Keep(name, proof.New(described, sigs, "reg/os:"+img.Version)))
	b.check(os.WriteFile(b.path(name.Label()), append(img.Raw(), make([]byte, slotSize-len(img.Raw()))...), 0o600))
	b.check(b.machine.Ledger.Update(func(l *ledger.Ledger) error {
		l.Slots[name] = &ledger.Entry{Digest: digest, Product: "gateway", Version: img.Version, Epoch: 1, Reference: "reg/os:" + img.Version, State: ledger.Staged}
		return l.Commit(name, time.Now())
	}))
	b.asked = nil
}

// destroy overwrites a slot.
func (b *bench) destroy(name device.Slot) {
	b.Helper()
	b.check(os.WriteFile(b.path(name.Label()), bytes.Repeat([]byte("rubbish!"), slotSize/8), 0o600))
}

func (b *bench) holds(name device.Slot, img sample.Image) bool {
	b.Helper()
	data, err := os.ReadFile(b.path(name.Label()))
	b.check(err)
	return bytes.HasPrefix(data, img.Raw())
}

// env writes a boot state, as GRUB left it when it came to the rescue system.
func (b *bench) env(lines string) {
	b.Helper()
	block := "# GRUB Environment Block\n" + lines
	data := append([]byte(block), bytes.Repeat([]byte("#"), 1024-len(block))...)
	b.check(errors.Join(os.WriteFile(b.path("a"), data, 0o600), os.WriteFile(b.path("b"), data, 0o600)))
	if _, _, err := b.boot.Load(); err != nil {
		b.Fatal(err)
	}
}

const rescueRung = "seq=7\nustate=0\nrootfs=A\nboot_counter=0\nrung=3\nother=0\nend=7\n"

func (b *bench) wantState(want boot.State) {
	b.Helper()
	got, problems, err := b.boot.Load()
	if err != nil || len(problems) > 0 || got != want {
		b.Errorf("boot state %v (%v, %v), want %v", got, problems, err, want)
	}
}

func committed(s device.Slot) boot.State {
	return boot.State{Phase: boot.Committed, Rootfs: s, Tries: boot.FullTries}
}

func TestLook(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotB)
	s := rescue.Look(ctx, b.machine, nil)
	if s.Proven != device.SlotA || !strings.Contains(s.State, "rung: rescue") || len(s.History) != 2 || len(s.Problems) != 0 {
		t.Errorf("survey %+v", s)
	}
	if a := s.Slots[0]; !a.Whole || !a.Committed || a.Version != "1.0" || a.Reference != "reg/os:1.0" || a.Problem != "" {
		t.Errorf("slot A %+v", a)
	}
	if diff := cmp.Diff([]slot.Range{{First: 0, Last: 2<<20 - 1}}, s.Slots[1].Damage); diff != "" || s.Slots[1].Whole || !s.Slots[1].Committed {
		t.Errorf("slot B %+v", s.Slots[1])
	}
}

// A machine with nothing left still gives a survey.
func TestLookAtRuins(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"a", "b", "state/ledger.json", "state/slots/A.json"} {
		b.check(os.WriteFile(b.path(name), []byte("rubbish"), 0o600))
	}
	b.check(errors.Join(os.Remove(b.path("state/slots/B.json")), os.Remove(b.path("rootfsA"))))
	s := rescue.Look(ctx, b.machine, nil)
	if s.State != "unknown" || s.Proven != "" || len(s.Problems) == 0 || len(s.Slots) != 2 {
		t.Errorf("survey %+v", s)
	}
	for i, want := range []string{proof.ErrCorrupt.Error(), proof.ErrNone.Error()} {
		if !strings.Contains(s.Slots[i].Problem, want) || s.Slots[i].Whole || s.Slots[i].Committed {
			t.Errorf("slot %+v, want %q", s.Slots[i], want)
		}
	}
}

// Both slots destroyed: the committed one comes back from where it came, by its
// digest, though it is on the floor, and is booted from the first rung.
func TestAttemptRestoresTheCommittedSlot(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	if err != nil || r.Outcome != rescue.Restored || r.Slot != device.SlotA || r.Version != "1.0" || r.SignedBy != "release" {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
	if !b.holds(device.SlotA, oneA) || b.holds(device.SlotB, oneB) {
		t.Error("want slot A restored, and B left alone")
	}
	b.wantState(committed(device.SlotA))
	if l, err := b.machine.Ledger.Load(); err != nil || l.Slot(device.SlotA).Basis == nil || !slices.Equal(l.Slot(device.SlotA).Basis.Signers, []string{"release"}) {
		t.Errorf("nothing says which policy admitted it: %v", err)
	}
	if len(b.asked) != 1 || !strings.HasPrefix(b.asked[0], "reg/os@sha256:") {
		t.Errorf("asked for %v, want the digest once", b.asked)
	}
	s := rescue.Look(ctx, b.machine, nil)
	if !s.Slots[0].Whole || !s.Slots[0].Committed || s.History[0].Kind != "committed" || s.History[1].Kind != "restored" || s.Slots[0].Reference != "reg/os:1.0" {
		t.Errorf("afterwards %+v", s)
	}
}

// A slot that was committed once and is older than the floor may be restored, but
// no other image that old.
func TestFloor(t *testing.T) {
	b := newBench(t)
	b.env(strings.Replace(rescueRung, "rootfs=A", "rootfs=B", 1))
	b.destroy(device.SlotB)
	if _, r, err := rescue.Attempt(ctx, b.machine, nil); err != nil || r.Slot != device.SlotB || r.Version != "0.9" {
		t.Errorf("Attempt = %+v, %v", r, err)
	}
	b.wantState(committed(device.SlotB))
	b.publish("0.8", old)
	source, err := b.resolve(ctx, "reg/os:0.8")
	b.check(err)
	_, err = rescue.Restore(ctx, b.machine, rescue.Order{Slot: device.SlotA, Offer: source}, nil)
	var refusal *admit.Refusal
	if !errors.As(err, &refusal) || refusal.Rule != admit.RuleVersion {
		t.Errorf("an image below the floor: %v", err)
	}
	if !b.holds(device.SlotA, oneA) {
		t.Error("the refused image was written")
	}
}

// The registry lost the committed image: the other slot, which is whole and was
// committed before, is taken instead.
func TestAttemptTakesTheOtherSlot(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	clear(b.layouts)
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	if err != nil || r.Outcome != rescue.Restored || r.Slot != device.SlotB {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
	b.wantState(committed(device.SlotB))
	if !b.holds(device.SlotB, oneB) {
		t.Error("slot B changed")
	}
}

// Neither slot can be restored, and the reference means something newer: that goes
// on trial in the other slot.
func TestAttemptInstallsWhatIsNewer(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	clear(b.layouts)
	b.publish("1.0", next) // the tag moved on
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	if err != nil || r.Outcome != rescue.Installed || r.Slot != device.SlotB || r.Version != "1.1" {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
	if !b.holds(device.SlotB, next) {
		t.Error("slot B does not hold it")
	}
	b.wantState(boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 3})
}

// With whole slots nothing is written, until the reference means something newer.
func TestAttemptOnAWholeMachine(t *testing.T) {
	b := newBench(t)
	b.env(rescueRung)
	before, err := os.ReadFile(b.path("a"))
	b.check(err)
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	if err != nil || r.Outcome != rescue.Whole {
		t.Fatalf("Attempt = %+v, %v", r, err)
	}
	after, err := os.ReadFile(b.path("a"))
	b.check(err)
	if !bytes.Equal(before, after) || !b.holds(device.SlotA, oneA) || !b.holds(device.SlotB, oneB) {
		t.Error("something was written")
	}
	b.publish("1.0", next)
	if _, r, err = rescue.Attempt(ctx, b.machine, nil); err != nil || r.Outcome != rescue.Installed || r.Slot != device.SlotB {
		t.Errorf("with something newer: %+v, %v", r, err)
	}
}

// What failed its trial is on record before anything else, and does not come back.
func TestAttemptRecordsTheFailedTrial(t *testing.T) {
	b := newBench(t)
	digest := b.publish("1.1", next)
	b.check(b.machine.Ledger.Update(func(l *ledger.Ledger) error {
		l.Slots[device.SlotB] = &ledger.Entry{Digest: digest, Version: "1.1", Reference: "reg/os:1.1", State: ledger.Staged}
		return nil
	}))
	b.env("seq=7\nustate=3\nrootfs=A\nboot_counter=0\nrung=3\nother=0\nend=7\n")
	b.destroy(device.SlotA)
	b.destroy(device.SlotB)
	clear(b.layouts)
	b.publish("1.1", next)
	_, r, err := rescue.Attempt(ctx, b.machine, nil)
	var refusal *admit.Refusal
	if !errors.As(err, &refusal) || refusal.Rule != admit.RuleFailed || r.Outcome != "" {
		t.Errorf("Attempt = %+v, %v; want the failed image refused", r, err)
	}
	l, err := b.machine.Ledger.Load()
	b.check(err)
	if l.FailureOf(digest) == nil {
		t.Error("the failure is not on record")
	}
}
