package upgrade_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
	"github.com/kapernikov/osctl/test/sample"
)

var ctx = context.Background()

// bench is a machine of plain files: real slot, real boot state, real ledger.
type bench struct {
	t       *testing.T
	slotB   string
	boot    *boot.Store
	ledger  *ledger.Store
	key     *publish.Key
	machine upgrade.Machine
	steps   []string
	mu      sync.Mutex
	opened  int // packs, or kept
	release int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, slotB: filepath.Join(dir, "rootfsB"), ledger: ledger.Open(filepath.Join(dir, "state"))}
	if err := os.WriteFile(b.slotB, bytes.Repeat([]byte("old "), 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	envs := [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, e := range envs {
		if err := boot.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.boot, err = boot.Open(envs); err != nil {
		t.Fatal(err)
	}
	err = b.ledger.Update(func(l *ledger.Ledger) error {
		first, err := ledger.New(ledger.Entry{Digest: "sha256:first", Product: "gateway", Version: "1.0", Epoch: 1}, time.Now())
		if err == nil {
			*l = *first
			l.Slots[device.SlotB] = &ledger.Entry{Digest: "sha256:older", Version: "0.9", State: ledger.Committed}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	key, _, public := sample.Key(t)
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "release", PEM: public}}})
	if err != nil {
		t.Fatal(err)
	}
	b.key = key
	b.machine = upgrade.Machine{
		Booted: device.SlotA, Verifier: v, Boot: stepping{b.boot, b}, Ledger: b.ledger, Records: proof.Open(filepath.Join(dir, "state")), Log: slog.New(slog.DiscardHandler),
		Facts: admit.Machine{Product: "gateway", Architecture: device.Architecture(), Version: "1.0"},
		Lock: func() (func() error, error) {
			held, err := boot.Lock(filepath.Join(dir, "lock"))
			if err != nil {
				return nil, err
			}
			return held.Release, nil
		},
		OpenSlot: func(s device.Slot) (upgrade.Target, error) {
			if s != device.SlotB {
				t.Errorf("opened slot %s", s)
			}
			return disk.Open(b.slotB)
		},
		CloneEtc: func(_ context.Context, from, to device.Slot) error { b.step("clone " + string(from+to)); return nil },
		Record: func(context.Context) (health.Baseline, error) {
			b.step("record")
			return health.Baseline{Workloads: []health.Workload{{Name: "web"}}}, nil
		},
	}
	return b
}

func (b *bench) step(s string) { b.steps = append(b.steps, s) }

// stepping notes what happens to the boot state.
type stepping struct {
	*boot.Store
	b *bench
}

func (s stepping) Disarm(booted device.Slot) error {
	s.b.step("disarm")
	return s.Store.Disarm(booted)
}

// offer is a layout that notes what is asked of it.
type offer struct {
	fetch.Ref
	b     *bench
	fault func(p ocispec.Descriptor) error
}

func (o offer) Blobs(ctx context.Context, sink progress.Sink) (osimage.Blobs, error) {
	blobs, err := o.Ref.Blobs(ctx, sink)
	return faulty{blobs, o}, err
}

func (o offer) Release(context.Context) error { o.b.release++; return nil }

type faulty struct {
	osimage.Blobs
	o offer
}

// Open is called by several goroutines at once.
func (f faulty) Open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if err := f.note(d); err != nil {
		return nil, err
	}
	return f.Blobs.Open(ctx, d)
}

func (f faulty) Keep(ctx context.Context, d ocispec.Descriptor) error {
	if err := f.note(d); err != nil {
		return err
	}
	return f.Blobs.Keep(ctx, d)
}

func (f faulty) note(d ocispec.Descriptor) error {
	f.o.b.mu.Lock()
	defer f.o.b.mu.Unlock()
	f.o.b.opened++
	if f.o.fault == nil {
		return nil
	}
	return f.o.fault(d)
}

func (b *bench) layout(dir string, fault func(ocispec.Descriptor) error) func(context.Context) (upgrade.Offer, error) {
	return func(ctx context.Context) (upgrade.Offer, error) {
		b.step("resolve")
		l, err := fetch.OpenLayout(dir)
		if err != nil {
			return nil, err
		}
		ref, err := l.Resolve(ctx, "")
		return offer{ref, b, fault}, err
	}
}

func (b *bench) slot() []byte {
	b.t.Helper()
	data, err := os.ReadFile(b.slotB)
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

func (b *bench) state() boot.State {
	b.t.Helper()
	s, problems, err := b.boot.Load()
	if err != nil || len(problems) > 0 {
		b.t.Fatal(err, problems)
	}
	return s
}

func (b *bench) read() *ledger.Ledger {
	b.t.Helper()
	l, err := b.ledger.Load()
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

var next = sample.Image{Version: "1.1", Epoch: 1, Architecture: device.Architecture(), Seed: 9}

func TestRun(t *testing.T) {
	b := newBench(t)
	dir := next.Signed(t, b.key)
	r, err := upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{Tries: 3})
	if err != nil || r.Outcome != upgrade.Staged || r.Slot != device.SlotB || r.SignedBy != "release" {
		t.Fatalf("Run = %+v, %v", r, err)
	}
	if want := (boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 3}); b.state() != want {
		t.Errorf("boot state %v, want %v", b.state(), want)
	}
	if !bytes.HasPrefix(b.slot(), next.Raw()) {
		t.Error("the slot does not hold the image")
	}
	if diff := cmp.Diff([]string{"resolve", "record", "disarm", "clone AB"}, b.steps); diff != "" {
		t.Errorf("steps: %s", diff)
	}
	if record, err := b.machine.Records.Load(device.SlotB); err != nil || record.Image().Digest() != r.Image.Digest() {
		t.Errorf("the record of the slot: %v, %v", record, err)
	}
	l := b.read()
	e := l.Slot(device.SlotB)
	if e == nil || e.State != ledger.Staged || e.Version != "1.1" || e.Baseline == nil || e.Baseline.Workloads[0].Name != "web" || l.Floor.Version != "1.0" {
		t.Errorf("ledger %+v, floor %+v", e, l.Floor)
	}
	if e.Basis == nil || e.Basis.Policy.Validate() != nil || e.Basis.Rule != trust.DefaultRule || !slices.Equal(e.Basis.Signers, []string{"release"}) {
		t.Errorf("the policy that admitted it: %+v", e.Basis)
	}
	if last := l.History[len(l.History)-1]; last.Kind != "staged" || last.Rule != trust.DefaultRule {
		t.Errorf("the history ends with %+v", last)
	}
	if b.release != 1 {
		t.Errorf("released %d times", b.release)
	}
	// The same command again: nothing is fetched, written or armed a second time.
	b.opened, b.steps = 0, nil
	r, err = upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{Tries: 3})
	if err != nil || r.Outcome != upgrade.Staged || b.opened != 0 || len(b.steps) != 1 {
		t.Errorf("again: %+v, %v, %d packs, %v", r, err, b.opened, b.steps)
	}
	// Another image instead takes the armed trial back first.
	other := next
	other.Version, other.Seed = "1.2", 10
	if _, err := upgrade.Run(ctx, b.machine, b.layout(other.Signed(t, b.key), nil), upgrade.Options{Tries: 2}); err != nil {
		t.Fatal(err)
	}
	if want := (boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 2}); b.state() != want || !bytes.HasPrefix(b.slot(), other.Raw()) {
		t.Errorf("boot state %v, want %v", b.state(), want)
	}
}

// What is refused changes nothing and fetches no pack.
func TestRefusalsTouchNothing(t *testing.T) {
	stranger, _, _ := sample.Key(t)
	for name, tt := range map[string]struct {
		dir  func(*bench) string
		want string
	}{
		"unsigned":         {func(b *bench) string { return next.Layout(t) }, "found no signature"},
		"a stranger's key": {func(b *bench) string { return next.Signed(t, stranger) }, "key"},
		"a downgrade":      {func(b *bench) string { i := next; i.Version = "0.9"; return i.Signed(t, b.key) }, "refused by version"},
		"an older epoch":   {func(b *bench) string { i := next; i.Epoch = 0; return i.Signed(t, b.key) }, "refused by epoch"},
		"another product":  {func(b *bench) string { i := next; i.Product = "panel"; return i.Signed(t, b.key) }, "refused by product"},
		"too large":        {func(b *bench) string { i := next; i.MiB = 17; return i.Signed(t, b.key) }, "refused by slot size"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			before, ledgerBefore := b.slot(), b.read()
			_, err := upgrade.Run(ctx, b.machine, b.layout(tt.dir(b), nil), upgrade.Options{Tries: 3})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want %q", err, tt.want)
			}
			if b.opened != 0 || !bytes.Equal(before, b.slot()) || b.state().Phase != boot.Committed || len(b.steps) != 1 {
				t.Errorf("something was touched: %d packs, steps %v", b.opened, b.steps)
			}
			if diff := cmp.Diff(ledgerBefore, b.read()); diff != "" {
				t.Errorf("the ledger changed: %s", diff)
			}
		})
	}
}

// Whatever fails on the way: the boot state never names the slot, the slot is not
// bootable unless it is whole, and the same command converges.
func TestFailuresOnTheWay(t *testing.T) {
	broken := errors.New("broken on purpose")
	for name, plant := range map[string]func(b *bench) func(ocispec.Descriptor) error{
		"the baseline": func(b *bench) func(ocispec.Descriptor) error {
			b.machine.Record = func(context.Context) (health.Baseline, error) { return health.Baseline{}, broken }
			return nil
		},
		"a pack": func(*bench) func(ocispec.Descriptor) error {
			n := 0
			return func(ocispec.Descriptor) error {
				if n++; n == 2 {
					return broken
				}
				return nil
			}
		},
		"the clone of /etc": func(b *bench) func(ocispec.Descriptor) error {
			b.machine.CloneEtc = func(context.Context, device.Slot, device.Slot) error { return broken }
			return nil
		},
		"the rehearsal": func(b *bench) func(ocispec.Descriptor) error {
			b.machine.Rehearse = func(context.Context, device.Slot) error { return broken }
			return nil
		},
		"the slot": func(b *bench) func(ocispec.Descriptor) error {
			open := b.machine.OpenSlot
			b.machine.OpenSlot = func(s device.Slot) (upgrade.Target, error) {
				target, err := open(s)
				return failing{target, broken}, err
			}
			return nil
		},
		"arming": func(b *bench) func(ocispec.Descriptor) error {
			b.machine.Boot = unarmable{stepping{b.boot, b}, broken}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			dir := next.Signed(t, b.key)
			good := b.machine
			fault := plant(b)
			if _, err := upgrade.Run(ctx, b.machine, b.layout(dir, fault), upgrade.Options{Tries: 3}); !errors.Is(err, broken) {
				t.Fatalf("error = %v", err)
			}
			if want := committedA; b.state() != want {
				t.Errorf("boot state %v, want %v", b.state(), want)
			}
			refusals := slices.ContainsFunc(b.read().History, func(e ledger.Event) bool {
				return e.Kind == "refused" && e.Version == "1.1" && e.Reason == broken.Error()
			})
			if refusals != (name == "the rehearsal") {
				t.Errorf("the history has a refusal: %t", refusals)
			}
			slot := b.slot()
			whole, untouched := bytes.HasPrefix(slot, next.Raw()), bytes.HasPrefix(slot, []byte("old "))
			empty := bytes.Equal(slot[:osimage.SegmentSize], make([]byte, osimage.SegmentSize))
			if !whole && !untouched && !empty {
				t.Error("the slot holds half an image that could boot")
			}
			if e := b.read().Slot(device.SlotB); !untouched && e != nil && e.Digest == "sha256:older" {
				t.Error("the ledger says that the slot holds what it held before")
			}
			r, err := upgrade.Run(ctx, good, b.layout(dir, nil), upgrade.Options{Tries: 3})
			if err != nil || r.Outcome != upgrade.Staged || b.state().Phase != boot.Trial {
				t.Errorf("again: %+v, %v", r, err)
			}
		})
	}
}

// The rehearsal has the slot for itself, whole and with its /etc, while nothing names
// it; and a slot that it does not give back is not armed.
func TestRehearsal(t *testing.T) {
	b := newBench(t)
	dir := next.Signed(t, b.key)
	var held *disk.Device
	b.machine.Rehearse = func(_ context.Context, s device.Slot) error {
		b.step("rehearse " + string(s))
		if !bytes.HasPrefix(b.slot(), next.Raw()) || b.state() != committedA || b.read().Slot(s) != nil {
			t.Errorf("the slot is not whole, or named: %v, %+v", b.state(), b.read().Slot(s))
		}
		var err error
		held, err = disk.Open(b.slotB)
		if err != nil {
			t.Errorf("the slot is not lent: %v", err)
		}
		return nil
	}
	_, err := upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{Tries: 3})
	if !errors.Is(err, disk.ErrBusy) || b.state() != committedA {
		t.Errorf("a slot that is held by the rehearsal: %v, boot state %v", err, b.state())
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	lent := b.machine.Rehearse
	b.machine.Rehearse = func(ctx context.Context, s device.Slot) error { return errors.Join(lent(ctx, s), held.Close()) }
	b.steps = nil
	r, err := upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{Tries: 3})
	if err != nil || r.Outcome != upgrade.Staged || b.state().Phase != boot.Trial || r.Fetched != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
	if want := []string{"resolve", "record", "disarm", "clone AB", "rehearse B"}; !slices.Equal(b.steps, want) {
		t.Errorf("steps %v, want %v", b.steps, want)
	}
}

// failing writes fail from 4 MiB on.
type failing struct {
	upgrade.Target
	err error
}

func (f failing) WriteAt(p []byte, off int64) (int, error) {
	if off >= 4<<20 {
		return 0, f.err
	}
	return f.Target.WriteAt(p, off)
}

type unarmable struct {
	stepping
	err error
}

func (u unarmable) Arm(slot.Written, int) error { return u.err }

func TestOptions(t *testing.T) {
	b := newBench(t)
	dir := next.Signed(t, b.key)
	before := b.slot()
	r, err := upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{CheckOnly: true})
	if err != nil || r.Outcome != upgrade.Available || b.opened != 0 {
		t.Errorf("check: %+v, %v, %d packs", r, err, b.opened)
	}
	r, err = upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{DownloadOnly: true})
	if err != nil || r.Outcome != upgrade.Downloaded || b.opened == 0 || b.release != 0 {
		t.Errorf("download: %+v, %v, %d packs", r, err, b.opened)
	}
	if !bytes.Equal(before, b.slot()) || b.state().Phase != boot.Committed {
		t.Error("the machine was changed")
	}
	held, err := b.machine.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{}); !errors.Is(err, boot.ErrBusy) {
		t.Errorf("while another runs: %v", err)
	}
	if err := held(); err != nil {
		t.Fatal(err)
	}
	err = b.ledger.Update(func(l *ledger.Ledger) error {
		l.Slots[device.SlotA].Digest = r.Image.Digest().String()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err = upgrade.Run(ctx, b.machine, b.layout(dir, nil), upgrade.Options{})
	if err != nil || r.Outcome != upgrade.UpToDate {
		t.Errorf("what runs already: %+v, %v", r, err)
	}
}

// A lost ledger does not open the door to a downgrade.
func TestFloorSurvivesALostLedger(t *testing.T) {
	for _, text := range []string{"", "garbage"} {
		b := newBench(t)
		path := filepath.Join(filepath.Dir(b.slotB), "state", ledger.File)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		old := next
		old.Version = "0.9"
		var refusal *admit.Refusal
		if _, err := upgrade.Run(ctx, b.machine, b.layout(old.Signed(t, b.key), nil), upgrade.Options{Tries: 3}); !errors.As(err, &refusal) || refusal.Rule != admit.RuleVersion {
			t.Errorf("with ledger %q: %v", text, err)
		}
		if r, err := upgrade.Run(ctx, b.machine, b.layout(next.Signed(t, b.key), nil), upgrade.Options{Tries: 3}); err != nil || r.Outcome != upgrade.Staged {
			t.Errorf("with ledger %q: %v", text, err)
		}
	}
}

// The ledger and the committed slots both keep the floor, and the highest counts, in
// version and in epoch each: losing one, or putting an old one back, lowers nothing.
func TestFloorIsTheHighest(t *testing.T) {
	for name, tt := range map[string]struct {
		ledger, slots  ledger.Floor
		version, epoch sample.Image // refused
	}{
		"the ledger's is deleted":          {ledger.Floor{}, ledger.Floor{Version: "1.5", Epoch: 2}, sample.Image{Version: "1.4", Epoch: 2}, sample.Image{Version: "1.6", Epoch: 1}},
		"the ledger's is an old copy":      {ledger.Floor{Version: "1.1", Epoch: 1}, ledger.Floor{Version: "1.5", Epoch: 2}, sample.Image{Version: "1.4", Epoch: 2}, sample.Image{Version: "1.6", Epoch: 1}},
		"the slots were rolled back":       {ledger.Floor{Version: "1.5", Epoch: 2}, ledger.Floor{Version: "1.1"}, sample.Image{Version: "1.4", Epoch: 2}, sample.Image{Version: "1.6", Epoch: 1}},
		"each is higher in one of the two": {ledger.Floor{Version: "1.1", Epoch: 2}, ledger.Floor{Version: "1.5", Epoch: 1}, sample.Image{Version: "1.4", Epoch: 2}, sample.Image{Version: "1.6", Epoch: 1}},
	} {
		b := newBench(t)
		if err := b.ledger.Update(func(l *ledger.Ledger) error { l.Floor = tt.ledger; return nil }); err != nil {
			t.Fatal(err)
		}
		b.machine.Committed = []ledger.Floor{{Version: "0.1"}, tt.slots}
		for rule, img := range map[admit.Rule]sample.Image{admit.RuleVersion: tt.version, admit.RuleEpoch: tt.epoch} {
			img.Architecture = next.Architecture
			var refusal *admit.Refusal
			_, err := upgrade.Run(ctx, b.machine, b.layout(img.Signed(t, b.key), nil), upgrade.Options{CheckOnly: true})
			if !errors.As(err, &refusal) || refusal.Rule != rule {
				t.Errorf("%s: %v, want a refusal by %s", name, err, rule)
			}
		}
		same := sample.Image{Version: "1.5", Epoch: 2, Architecture: next.Architecture}
		if r, err := upgrade.Run(ctx, b.machine, b.layout(same.Signed(t, b.key), nil), upgrade.Options{CheckOnly: true}); err != nil || r.Outcome != upgrade.Available {
			t.Errorf("%s: the floor itself: %v", name, err)
		}
	}
	b := newBench(t)
	b.machine.Committed = []ledger.Floor{{Version: "newest"}}
	if _, err := upgrade.Run(ctx, b.machine, b.layout(next.Signed(t, b.key), nil), upgrade.Options{}); err == nil || !strings.Contains(err.Error(), "finding the floor") {
		t.Errorf("with a floor that is no version: %v", err)
	}
}
