package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/slot"
)

// ErrNothingToRepair says that nothing is known that the other slot should hold.
var ErrNothingToRepair = errors.New("nothing is known that the other slot should hold")

// ErrOtherImage says that a repair was offered another image than the slot's.
var ErrOtherImage = errors.New("this is not the image that the slot should hold")

// The outcomes of a repair.
const (
	Sound    Outcome = "sound"    // nothing was damaged, nothing was written
	Repaired Outcome = "repaired" // every byte is there again
)

// Repair makes the other slot hold again what the ledger says it holds: that very
// digest, and only the segments that differ are written. The boot state counts on
// the slot no more before its first byte changes, and counts on it as before when
// all was read back. source finds the digest, where reference came from.
//
// The floor does not apply: nothing is installed that was not here before.
func Repair(ctx context.Context, m Machine, source func(ctx context.Context, reference, digest string) (Offer, error), o Options) (_ Result, err error) {
	release, err := m.Lock()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	r := &run{Machine: m, Options: o}
	r.result.Slot = m.Booted.Other()
	l, err := m.Ledger.Load()
	if err != nil {
		return Result{}, err
	}
	e := l.Slot(r.result.Slot)
	if e == nil {
		return Result{}, fmt.Errorf("repairing slot %s: %w", r.result.Slot, ErrNothingToRepair)
	}
	state, _, err := m.Boot.Load()
	if err != nil {
		return Result{}, err
	}
	if r.offer, err = source(ctx, e.Reference, e.Digest); err != nil {
		return Result{}, err
	}
	if r.offer.Digest().String() != e.Digest {
		return Result{}, fmt.Errorf("repairing slot %s with %s: %w: that is %s", r.result.Slot, r.offer.Digest(), ErrOtherImage, e.Digest)
	}
	if r.target, err = m.OpenSlot(r.result.Slot); err != nil {
		return Result{}, fmt.Errorf("opening slot %s: %w", r.result.Slot, err)
	}
	defer func() { err = errors.Join(err, r.target.Close()) }()
	if err := r.permit(ctx, e, l); err != nil {
		return Result{}, err
	}
	return r.result, r.mend(ctx, e, state)
}

// permit verifies and admits the image that was here before.
func (r *run) permit(ctx context.Context, e *ledger.Entry, l *ledger.Ledger) error {
	verified, err := r.vouch(ctx, e.Reference)
	if err != nil {
		return err
	}
	f, err := r.facts(l)
	if err != nil {
		return err
	}
	f.FloorVersion, f.FloorEpoch, f.Version = "", 0, r.result.Image.Config().Version
	f.Failed = func(string) (string, bool) { return "", false }
	r.plan, err = admit.Decide(verified, f, false)
	return err
}

// mend writes what differs.
func (r *run) mend(ctx context.Context, e *ledger.Entry, state boot.State) error {
	blobs, err := r.offer.Blobs(ctx, r.Progress)
	if err != nil {
		return err
	}
	f := filling{r.result.Slot, r.target, r.plan.Image(), blobs, r.Progress}
	missing, err := f.compare(ctx)
	if err != nil {
		return err
	}
	r.result.Reused = r.plan.Image().Config().Rootfs.Segments() - missing.Count()
	if missing.Count() == 0 && counts(state, r.result.Slot, e) {
		r.result.Outcome = Sound
		return r.Records.Keep(r.result.Slot, r.record)
	}
	if err := r.Boot.Disarm(r.Booted); err != nil {
		return err
	}
	written, err := f.write(ctx, missing)
	if err != nil {
		return err
	}
	if err := r.Records.Keep(written.Slot(), r.record); err != nil {
		return err
	}
	err = r.Ledger.Update(func(l *ledger.Ledger) error {
		l.Add(ledger.Event{At: time.Now().UTC(), Kind: "repaired", Slot: written.Slot(), Version: e.Version, Digest: e.Digest})
		return nil
	})
	if err != nil {
		return err
	}
	r.result.Outcome = Repaired
	r.release(ctx)
	return mild(r.Log, r.trustAgain(written, e, state))
}

// counts reports whether the boot state has what a whole slot of this kind gives it;
// a repair that was cut took that away.
func counts(state boot.State, name device.Slot, e *ledger.Entry) bool {
	return e.State != ledger.Committed || state.Phase == boot.Trial || state.Rootfs == name || state.Other
}

// trustAgain gives the boot state back what Disarm took, and nothing more: an armed
// trial is armed, a slot that was committed is a rung of the ladder.
func (r *run) trustAgain(written slot.Written, e *ledger.Entry, before boot.State) error {
	switch {
	case before.Phase == boot.Trial && before.Rootfs == written.Slot():
		return r.Boot.Arm(written, before.Tries)
	case e.State == ledger.Committed:
		return r.Boot.Regained(written)
	}
	return nil
}
