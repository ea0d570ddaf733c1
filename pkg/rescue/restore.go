package rescue

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// Order says what to restore.
type Order struct {
	// Slot is the slot to write. Empty means the proven one if this very image was
	// committed in it, else the other one.
	Slot device.Slot
	// Offer is the image. If it is the one that was committed in the slot, it is
	// restored; any other one is installed, and goes on trial.
	Offer upgrade.Offer
	// Reference is what to record as its origin; empty means the offer's name.
	Reference string
	// Retry permits an image that failed its trial here.
	Retry bool
}

// Restore writes an image into a slot and makes the machine start from there. It
// takes the lock.
func Restore(ctx context.Context, m Machine, o Order, sink progress.Sink) (r Result, err error) {
	release, err := m.Lock()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	survey := m.brief()
	if err := m.acknowledge(&survey); err != nil {
		return Result{}, err
	}
	if o.Slot == "" {
		o.Slot = survey.place(o.Offer.Digest().String())
	}
	return m.restore(ctx, survey, o, sink)
}

// place is the slot for an image.
func (s *Survey) place(digest string) device.Slot {
	first := cmp.Or(s.Proven, device.SlotA)
	if found := s.slotOf(first); found != nil && found.Committed && found.Digest == digest {
		return first
	}
	return first.Other()
}

// brief is a survey without reading the slots.
func (m Machine) brief() Survey {
	blind := m
	blind.OpenSlot = func(device.Slot) (upgrade.Target, error) { return nil, errors.New("not read") }
	return Look(context.Background(), blind, nil)
}

// acknowledge records a trial that failed before the rescue system was reached:
// its image must not be installed again, and the boot state must be free to change.
func (m Machine) acknowledge(s *Survey) error {
	if !s.known || s.phase != boot.FellBack {
		return nil
	}
	failed := s.Proven.Other()
	err := m.Ledger.Update(func(l *ledger.Ledger) error {
		if e := l.Slot(failed); e == nil || e.State != ledger.Failed {
			l.Fail(failed, "it did not come up, nor did the slot before it", time.Now().UTC())
		}
		return nil
	})
	if err != nil {
		// The data partition may be what is broken: that must not end the rescue.
		m.Log.Warn("the failed trial is not recorded", "error", err)
	}
	if err := mild(m, m.Boot.Acknowledge()); err != nil {
		return err
	}
	s.phase = boot.Committed
	if slot := s.slotOf(failed); slot != nil {
		slot.Committed = false
	}
	return nil
}

// restore is Restore under the lock.
func (m Machine) restore(ctx context.Context, s Survey, o Order, sink progress.Sink) (_ Result, err error) {
	sink.Say(progress.Verify, "verifying "+o.Offer.Digest().String())
	verified, record, err := m.verify(ctx, o)
	if err != nil {
		return Result{}, wrap(o.Slot, err)
	}
	target, err := m.OpenSlot(o.Slot)
	if err != nil {
		return Result{}, wrap(o.Slot, err)
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	known := s.slotOf(o.Slot)
	same := known != nil && known.Committed && known.Digest == verified.Image().Digest().String()
	if err := m.admit(verified, target.Size(), same, o.Retry); err != nil {
		return Result{}, wrap(o.Slot, err)
	}
	if !same {
		// On trial is only ever the other slot than the proven one.
		if s.Proven == o.Slot {
			return Result{}, wrap(o.Slot, errNotOther)
		}
		if err := m.forget(s, o.Slot); err != nil {
			return Result{}, wrap(o.Slot, err)
		}
	}
	written, err := upgrade.Fill(ctx, o.Slot, target, verified, o.Offer, sink)
	if err != nil {
		return Result{}, wrap(o.Slot, err)
	}
	c := verified.Image().Config()
	r := Result{Restored, o.Slot, c.Version, written.Digest(), verified.KeyName()}
	if same {
		return r, wrap(o.Slot, m.name(written, record, verified))
	}
	r.Outcome = Installed
	return r, wrap(o.Slot, m.arm(s, written, record, verified))
}

var errNotOther = errors.New("this is not the image that was committed in this slot, and only the other slot can take a new one on trial")

func (m Machine) verify(ctx context.Context, o Order) (trust.Verified, proof.Record, error) {
	img, err := o.Offer.Describe(ctx)
	if err != nil {
		return trust.Verified{}, proof.Record{}, err
	}
	sigs, err := o.Offer.Signatures(ctx)
	if err != nil {
		return trust.Verified{}, proof.Record{}, err
	}
	reference := o.Reference
	if reference == "" {
		reference = o.Offer.Name()
	}
	verifier, err := m.Verifier(reference)
	if err != nil {
		return trust.Verified{}, proof.Record{}, err
	}
	verified, err := verifier.Verify(ctx, img, sigs)
	return verified, proof.New(img, sigs, reference), err
}

// admit applies the rules of an upgrade. For what was committed in this very slot
// the floor is no question, nor where it would be upgraded from.
func (m Machine) admit(v trust.Verified, size int64, same, retry bool) error {
	l, err := m.Ledger.Load()
	if err != nil {
		m.Log.Warn("the ledger is lost; the floor is the version of the rescue system", "error", err)
	}
	f := m.facts(l, size)
	if same {
		f.FloorVersion, f.FloorEpoch, f.Version = "", 0, v.Image().Config().Version
	}
	_, err = admit.Decide(v, f, retry)
	return err
}

// forget takes everything back that names a slot or tells of it, before it is
// written with another image.
func (m Machine) forget(s Survey, name device.Slot) error {
	if s.known {
		if err := mild(m, m.Boot.Disarm(s.Proven)); err != nil {
			return err
		}
	}
	if err := m.Records.Drop(name); err != nil {
		m.Log.Warn("what the slot held is not forgotten", "error", err)
	}
	err := m.Ledger.Update(func(l *ledger.Ledger) error {
		delete(l.Slots, name)
		return nil
	})
	if err != nil {
		m.Log.Warn("what the slot held is not forgotten", "error", err)
	}
	return nil
}

// name makes a restored slot the one that is booted. That it cannot be recorded
// must not keep the machine down: the data partition may be what is broken.
func (m Machine) name(w slot.Written, r proof.Record, v trust.Verified) error {
	if err := m.record(w, r, v, ledger.Committed); err != nil {
		m.Log.Warn("the restored slot is not recorded", "error", err)
	}
	return mild(m, m.Boot.Restored(w))
}

// arm puts a new image on trial.
func (m Machine) arm(s Survey, w slot.Written, r proof.Record, v trust.Verified) error {
	if err := m.record(w, r, v, ledger.Staged); err != nil {
		m.Log.Warn("the installed image is not recorded", "error", err)
	}
	if !s.known {
		// Nothing says which slot is proven. The other one is named, so that a trial
		// that fails ends on the ladder, and at its end here.
		if err := mild(m, m.Boot.Commit(w.Slot().Other())); err != nil {
			return err
		}
	}
	return mild(m, m.Boot.Arm(w, m.Tries))
}

// reprove makes a slot that was found whole the one that is booted: it is compared
// and read back once more, which is the only way to a slot.Written.
func (m Machine) reprove(ctx context.Context, found *Slot, sink progress.Sink) (_ Result, err error) {
	target, err := m.OpenSlot(found.Name)
	if err != nil {
		return Result{}, wrap(found.Name, err)
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	verifier, err := m.Verifier(found.record.Reference())
	if err != nil {
		return Result{}, wrap(found.Name, err)
	}
	verified, err := found.record.Verify(ctx, verifier)
	if err != nil {
		return Result{}, wrap(found.Name, err)
	}
	missing, err := slot.Compare(ctx, target, proof.Want(found.Name, verified.Image()), sink)
	if err == nil && missing.Count() > 0 {
		err = errors.New("it is no longer whole")
	}
	if err != nil {
		return Result{}, wrap(found.Name, err)
	}
	written, err := missing.Write(ctx, func(func(int, []byte) error) error { return nil }, sink)
	if err != nil {
		return Result{}, wrap(found.Name, err)
	}
	r := Result{Restored, found.Name, found.Version, written.Digest(), verified.KeyName()}
	return r, wrap(found.Name, m.name(written, found.record, verified))
}

// at is the reference of exactly this digest, in the repository of a reference.
func at(reference, digest string) string {
	repository, _, _ := strings.Cut(reference, "@")
	if colon := strings.LastIndex(repository, ":"); colon > strings.LastIndex(repository, "/") {
		repository = repository[:colon]
	}
	return repository + "@" + digest
}

// mild lets a change pass that is in effect in one copy only.
func mild(m Machine, err error) error {
	if errors.Is(err, boot.ErrOneCopy) {
		m.Log.Warn("boot state", "error", err)
		return nil
	}
	return err
}
