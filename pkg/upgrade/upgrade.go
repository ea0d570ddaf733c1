package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/assemble"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/channel"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
)

// Offer is a resolved reference (fetch.Ref): everything about one digest.
type Offer interface {
	Name() string
	Digest() digest.Digest
	Describe(ctx context.Context) (osimage.Image, error)
	Signatures(ctx context.Context) ([]osimage.Signature, error)
	Blobs(ctx context.Context, sink progress.Sink) (osimage.Blobs, error)
	Release(ctx context.Context) error
}

// Target is the inactive slot, opened exclusively (disk.Device).
type Target interface {
	slot.Medium
	io.Closer
}

// bootState is what an upgrade changes of the boot state (boot.Store).
type bootState interface {
	Load() (boot.State, []boot.Problem, error)
	Disarm(booted device.Slot) error
	Arm(w slot.Written, tries int) error
	Regained(w slot.Written) error
	Repair() error
}

// Verifier decides whether the image's signatures satisfy the policy.
type Verifier interface {
	Verify(ctx context.Context, img osimage.Image, sigs []osimage.Signature) (trust.Verified, error)
}

// Machine is everything that an upgrade needs of the machine it runs on.
type Machine struct {
	// Booted is the slot that runs; the other one is the target.
	Booted device.Slot
	// Facts are what admit decides on; SlotSize is filled in here.
	Facts admit.Machine
	// Lock keeps other changes out.
	Lock func() (release func() error, err error)
	// OpenSlot opens the inactive slot.
	OpenSlot func(device.Slot) (Target, error)
	Verifier Verifier
	// Channel is what the policy asks of the tag that the offer was named by; nil asks
	// nothing.
	Channel *channel.Guard
	Boot    bootState
	Ledger  *ledger.Store
	// Committed are the floors that the committed slots themselves tell: the second
	// place where the floor is kept, beside the ledger.
	Committed []ledger.Floor
	// Records keeps what each slot should hold, to be proven offline.
	Records *proof.Store
	// Ready refuses a machine that could not end what an upgrade begins; nil refuses
	// none. Room refuses when so many bytes of packs cannot be kept; nil likewise.
	Ready func() error
	Room  func(fetch int64, packs []ocispec.Descriptor) error
	// CloneEtc copies the /etc of one slot to the other.
	CloneEtc func(ctx context.Context, from, to device.Slot) error
	// Rehearse looks into the written system with the /etc that it will have, and
	// refuses one that should not be started. The slot is not held open meanwhile, as it
	// could not be mounted then. nil refuses none.
	Rehearse func(ctx context.Context, slot device.Slot) error
	// Images holds what a rollback needs of the workloads; nil holds nothing.
	Images Images
	// Record takes the baseline for the gate of the new system.
	Record func(ctx context.Context) (health.Baseline, error)
	Log    *slog.Logger
}

// Options says how far to go.
type Options struct {
	// CheckOnly stops after the decision, DownloadOnly after the packs.
	CheckOnly, DownloadOnly bool
	// Retry permits a digest that failed its trial here.
	Retry bool
	// AllowDowngrade asks for what admit.Downgrade describes.
	AllowDowngrade bool
	// Tries is how many boots the new system gets.
	Tries    int
	Progress progress.Sink
}

// Outcome is how far an upgrade went.
type Outcome string

// The outcomes.
const (
	UpToDate   Outcome = "up-to-date" // the image runs already
	Available  Outcome = "available"  // it would be installed
	Downloaded Outcome = "downloaded"
	Staged     Outcome = "staged" // it starts at the next boot
)

// Result is what an upgrade did.
type Result struct {
	Outcome  Outcome
	Image    osimage.Image
	SignedBy string
	Slot     device.Slot
	// Fetched is the number of bytes of packs that were needed, Reused the
	// number of segments that the slot held already.
	Fetched int64
	Reused  int
}

// run is one upgrade on its way.
type run struct {
	Machine
	Options
	offer  Offer
	record proof.Record
	plan   admit.Plan
	target Target
	result Result
}

// Run brings the offered image into the inactive slot and arms it. resolve is
// called once, under the lock; from there on only its digest counts.
func Run(ctx context.Context, m Machine, resolve func(context.Context) (Offer, error), o Options) (result Result, err error) {
	release, err := m.Lock()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	r := &run{Machine: m, Options: o}
	r.result.Slot = m.Booted.Other()
	if r.result.Slot == "" {
		return Result{}, fmt.Errorf("choosing the slot to write: %w", device.ErrNoSlot)
	}
	if m.Ready != nil && !o.CheckOnly {
		if err := m.Ready(); err != nil {
			return Result{}, err
		}
	}
	o.Progress.Say(progress.Resolve, "resolving")
	if r.offer, err = resolve(ctx); err != nil {
		return Result{}, err
	}
	if r.target, err = m.OpenSlot(r.result.Slot); err != nil {
		return Result{}, fmt.Errorf("opening slot %s: %w", r.result.Slot, err)
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.decide(ctx); err != nil {
		return Result{}, err
	}
	if err := r.carryOut(ctx); err != nil {
		return Result{}, err
	}
	return r.result, nil
}

// vouch fetches the small parts of the offer and verifies them. reference is what
// the record of the slot keeps as the image's origin.
func (r *run) vouch(ctx context.Context, reference string) (trust.Verified, error) {
	r.Progress.Say(progress.Verify, "verifying "+r.offer.Digest().String())
	img, err := r.offer.Describe(ctx)
	if err != nil {
		return trust.Verified{}, err
	}
	sigs, err := r.offer.Signatures(ctx)
	if err != nil {
		return trust.Verified{}, err
	}
	verified, err := r.Verifier.Verify(ctx, img, sigs)
	if err != nil {
		return trust.Verified{}, err
	}
	r.result.Image, r.result.SignedBy, r.record = img, verified.KeyName(), proof.New(img, sigs, reference)
	return verified, nil
}

// decide settles whether the offered image may be installed.
func (r *run) decide(ctx context.Context) error {
	l, err := r.Ledger.Load()
	if err != nil && !errors.Is(err, ledger.ErrCorrupt) {
		return err
	}
	if err != nil {
		r.Log.Warn("the ledger is lost; the floor is that of the committed slots", "error", err)
	}
	if r.known(l) {
		return nil
	}
	if err := r.follow(ctx, l); err != nil {
		return err
	}
	verified, err := r.vouch(ctx, r.offer.Name())
	if err != nil {
		return err
	}
	img := r.result.Image
	if running := l.Slot(r.Booted); running != nil && running.Digest == img.Digest().String() {
		r.result.Outcome = UpToDate
		return nil
	}
	if r.armed(l, img) {
		r.result.Outcome = Staged
		return nil
	}
	facts, err := r.facts(l)
	if err != nil {
		return err
	}
	r.plan, err = admit.Decide(verified, facts, r.Retry)
	return err
}

// armed reports whether an earlier run brought this very image as far as it goes.
func (r *run) armed(l *ledger.Ledger, img osimage.Image) bool {
	state, _, err := r.Boot.Load()
	e := l.Slot(r.result.Slot)
	return err == nil && state.Phase == boot.Trial && state.Rootfs == r.result.Slot &&
		e != nil && e.State == ledger.Staged && e.Digest == img.Digest().String()
}

// facts completes what admit decides on. The floor is the highest of the ledger's
// and those of the committed slots. Where all of these are lost, it is the running
// version: it was committed once, or is on trial above the floor.
func (r *run) facts(l *ledger.Ledger) (f admit.Machine, err error) {
	f = r.Facts
	f.SlotSize = r.target.Size()
	floor := l.Floor
	for _, c := range r.Committed {
		if floor, err = floor.Or(c); err != nil {
			return f, fmt.Errorf("finding the floor: %w", err)
		}
	}
	f.FloorVersion, f.FloorEpoch = floor.Version, floor.Epoch
	if f.FloorVersion == "" {
		f.FloorVersion = f.Version
	}
	f.Downgrade.Asked, f.Downgrade.Committed = r.AllowDowngrade, l.Committed
	f.Failed = func(digest string) (string, bool) {
		failure := l.FailureOf(digest)
		if failure == nil {
			return "", false
		}
		return failure.Reason, true
	}
	return f, nil
}

// carryOut goes on from the decision as far as the options say.
func (r *run) carryOut(ctx context.Context) error {
	switch {
	case r.result.Outcome == Staged && !r.CheckOnly && !r.DownloadOnly:
		// A cut right after arming leaves one copy of the boot state behind the other,
		// and the packs held.
		r.release(ctx)
		return mild(r.Log, r.Boot.Repair())
	case r.result.Outcome != "":
		return nil
	case r.CheckOnly:
		r.result.Outcome = Available
		return nil
	}
	blobs, err := r.offer.Blobs(ctx, r.Progress)
	if err != nil {
		return err
	}
	f := filling{r.result.Slot, r.target, r.plan.Image(), blobs, r.Progress}
	missing, err := f.compare(ctx)
	if err != nil {
		return err
	}
	r.result.Fetched = assemble.Size(r.plan.Image(), missing.Has)
	r.result.Reused = r.plan.Image().Config().Rootfs.Segments() - missing.Count()
	if r.Room != nil {
		if err := r.Room(r.kept(missing), r.plan.Image().Packs()); err != nil {
			return err
		}
	}
	if r.DownloadOnly {
		r.result.Outcome = Downloaded
		return assemble.Fetch(ctx, r.plan.Image(), missing.Has, blobs)
	}
	return r.stage(ctx, f, missing)
}

// kept is the number of bytes of packs that the data partition has to take: all
// that is downloaded ahead of time, or the pack of the segment that is written last.
func (r *run) kept(missing *slot.Missing) int64 {
	switch {
	case r.DownloadOnly:
		return r.result.Fetched
	case missing.Has(0):
		return 0
	}
	return r.plan.Image().Packs()[0].Size
}

// stage writes the slot and makes it the next to boot.
func (r *run) stage(ctx context.Context, f filling, missing *slot.Missing) error {
	// The baseline comes first: a machine that cannot say what runs now could not
	// judge the new system, and should learn that before its slot is gone.
	baseline, err := r.Record(ctx)
	if err != nil {
		return fmt.Errorf("recording what runs now: %w", err)
	}
	if err := r.keepImages(ctx); err != nil {
		return err
	}
	if err := r.Boot.Disarm(r.Booted); err != nil {
		return err
	}
	err = r.Ledger.Update(func(l *ledger.Ledger) error {
		delete(l.Slots, r.result.Slot)
		return nil
	})
	if err := errors.Join(err, r.Records.Drop(r.result.Slot)); err != nil {
		return err
	}
	r.dropImages(ctx)
	written, err := f.write(ctx, missing)
	if err != nil {
		return err
	}
	return r.arm(ctx, written, baseline)
}

// arm makes the written slot the next to boot. What belongs to its first boot is
// in place before the boot state names it.
func (r *run) arm(ctx context.Context, written slot.Written, baseline health.Baseline) error {
	if err := r.CloneEtc(ctx, r.Booted, written.Slot()); err != nil {
		return fmt.Errorf("giving slot %s its /etc: %w", written.Slot(), err)
	}
	if err := r.rehearse(ctx, written.Slot()); err != nil {
		return err
	}
	r.Progress.Say(progress.Arm, "arming slot "+string(written.Slot()))
	if err := r.Records.Keep(written.Slot(), r.record); err != nil {
		return err
	}
	c, now := r.plan.Image().Config(), time.Now().UTC()
	basis := ledger.Basis(r.plan.Basis())
	err := r.Ledger.Update(func(l *ledger.Ledger) error {
		l.Slots[written.Slot()] = &ledger.Entry{
			Digest: written.Digest(), Product: c.Product, Version: c.Version, Epoch: c.Epoch, Created: c.Created,
			Reference: r.offer.Name(), SignedBy: r.plan.SignedBy(), Basis: &basis, State: ledger.Staged, StagedAt: now, Baseline: &baseline,
		}
		l.Add(ledger.Event{At: now, Kind: "staged", Slot: written.Slot(), Version: c.Version, Digest: written.Digest(), Rule: basis.Rule})
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.Boot.Arm(written, r.Tries); err != nil {
		return err
	}
	r.result.Outcome = Staged
	r.release(ctx)
	return nil
}

// release lets the packs go. The system is armed by then, and the next upgrade
// releases what is left, so it does not fail.
func (r *run) release(ctx context.Context) {
	if err := r.offer.Release(ctx); err != nil {
		r.Log.Warn("downloaded packs are still held", "error", err)
	}
}
