// Package rescue brings a machine back whose slots do not come up. It runs in the
// rescue system, where no slot runs and nobody is there.
//
// Look tells what happened, from the boot state, the ledger and the slots
// themselves. Restore writes an image into a slot: the one that was committed
// there, byte for byte, or another one that the policy and the floor admit. Attempt
// chooses what to restore, and Watch goes on attempting until something worked.
//
// What it promises, beyond what the packages below do:
//
//   - A slot that holds what it should is not written, and the boot state names a
//     slot only by a slot.Written.
//   - Nothing is accepted that an upgrade would refuse. The one exception is the
//     very image that the ledger says was committed in that slot: it may be older
//     than the floor, as in a rollback.
//   - An image that was never committed here goes on trial.
//   - The data partition is neither checked nor formatted by itself.
//
// It refuses to know where images come from, and to restart the machine.
package rescue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// bootState is what rescue changes of the boot state (boot.Store).
type bootState interface {
	Load() (boot.State, []boot.Problem, error)
	Disarm(booted device.Slot) error
	Arm(w slot.Written, tries int) error
	Commit(booted device.Slot) error
	Acknowledge() error
	Restored(w slot.Written) error
	Settle() error
}

// Machine is everything that rescue needs of the machine.
type Machine struct {
	// Facts are what admit decides on. Version is that of the rescue system, the
	// floor where the ledger is lost; SlotSize and the rest are filled in here.
	Facts admit.Machine
	// Reference is what to install when nothing says where the slots' images came
	// from; it may be empty.
	Reference string
	// Tries is how many boots a new image gets.
	Tries int
	// Lock keeps other changes out.
	Lock func() (release func() error, err error)
	// OpenSlot opens a slot for writing.
	OpenSlot func(device.Slot) (upgrade.Target, error)
	// Resolve finds the image that a reference means. The source is closed when the
	// attempt is over.
	Resolve func(ctx context.Context, reference string) (Source, error)
	// Verifier is the policy, asked about what a reference named.
	Verifier func(reference string) (upgrade.Verifier, error)
	Boot     bootState
	Ledger   *ledger.Store
	Records  *proof.Store
	Log      *slog.Logger
}

// Source is an image that was found.
type Source struct {
	upgrade.Offer
	Close func() error
}

// Slot is what is known of one slot.
type Slot struct {
	Name device.Slot `json:"slot"`
	// Version, Digest and Reference say what the slot should hold; empty if
	// nothing is known.
	Version   string `json:"version,omitempty"`
	Digest    string `json:"digest,omitempty"`
	Reference string `json:"reference,omitempty"`
	// Committed says that this image passed its gate in this slot once, and did
	// not fail afterwards.
	Committed bool `json:"committed"`
	// Whole says that every signed byte was read back from the medium.
	Whole bool `json:"whole"`
	// Damage is what differs; Problem says why nothing could be proven.
	Damage  []slot.Range `json:"damage,omitempty"`
	Problem string       `json:"problem,omitempty"`

	record proof.Record
}

// Survey is what happened to the machine, as far as it can be known.
type Survey struct {
	// State is the boot state in words. Proven is the slot that it trusts; empty
	// when no copy of it is valid.
	State  string      `json:"state"`
	Proven device.Slot `json:"proven,omitempty"`
	Slots  []Slot      `json:"slots"` // A, B
	// Floor is the oldest that may be installed.
	Floor ledger.Floor `json:"floor"`
	// LastFailure is the newest image that did not pass its trial.
	LastFailure *ledger.Failure `json:"lastFailure,omitempty"`
	// History is the newest events, newest first.
	History []ledger.Event `json:"history"`
	// Problems is what could not be read.
	Problems []string `json:"problems"`

	phase boot.Phase
	known bool // a copy of the boot state is valid
}

// shownEvents is how much of the history a survey has.
const shownEvents = 10

// slotOf is what is known of a slot.
func (s *Survey) slotOf(name device.Slot) *Slot {
	for i := range s.Slots {
		if s.Slots[i].Name == name {
			return &s.Slots[i]
		}
	}
	return nil
}

// Look reads the boot state, the ledger and both slots. It writes nothing and does
// not fail: what cannot be read is a problem of the survey.
func Look(ctx context.Context, m Machine, sink progress.Sink) Survey {
	s := Survey{State: "unknown", Slots: []Slot{}, History: []ledger.Event{}, Problems: []string{}}
	state, problems, err := m.Boot.Load()
	for _, p := range problems {
		s.Problems = append(s.Problems, "boot state: "+p.String())
	}
	if err == nil {
		s.State, s.Proven, s.phase, s.known = state.String(), state.Proven(), state.Phase, true
	}
	l, err := m.Ledger.Load()
	if err != nil {
		s.Problems = append(s.Problems, "what happened here is unknown: "+err.Error())
	}
	s.Floor = l.Floor
	for i := len(l.History) - 1; i >= 0 && len(s.History) < shownEvents; i-- {
		s.History = append(s.History, l.History[i])
	}
	if n := len(l.Failed); n > 0 {
		s.LastFailure = &l.Failed[n-1]
	}
	for _, name := range []device.Slot{device.SlotA, device.SlotB} {
		s.Slots = append(s.Slots, m.lookAt(ctx, name, s, l, sink))
	}
	return s
}

// lookAt proves one slot.
func (m Machine) lookAt(ctx context.Context, name device.Slot, s Survey, l *ledger.Ledger, sink progress.Sink) Slot {
	found := Slot{Name: name}
	record, err := m.Records.Load(name)
	if err != nil {
		found.Problem = err.Error()
	} else {
		found.record = record
		found.Version, found.Digest, found.Reference = record.Image().Config().Version, record.Image().Digest().String(), record.Reference()
	}
	if e := l.Slot(name); e != nil {
		if err == nil && e.Digest != found.Digest {
			// The ledger is written last: the record is of an image that never got there.
			found.Problem, found.record = "the record is about another image than the ledger has there", proof.Record{}
		}
		found.Version, found.Digest, found.Reference = e.Version, e.Digest, e.Reference
		found.Committed = !e.CommittedAt.IsZero() && e.State != ledger.Failed
	} else if err == nil && s.known && s.phase != boot.Trial && s.Proven == name {
		// The ledger is lost; the boot state still says that the slot was committed.
		found.Committed = true
	}
	if found.Problem != "" {
		return found
	}
	if err := m.prove(ctx, &found, sink); err != nil {
		found.Problem = err.Error()
	}
	return found
}

func (m Machine) prove(ctx context.Context, found *Slot, sink progress.Sink) (err error) {
	verifier, err := m.Verifier(found.record.Reference())
	if err != nil {
		return err
	}
	target, err := m.OpenSlot(found.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	v, err := found.record.Prove(ctx, verifier, target, sink)
	if err != nil {
		return err
	}
	found.Whole, found.Damage = v.Whole(), v.Damage
	return nil
}

// Outcome is what Restore or Attempt did.
type Outcome string

// The outcomes.
const (
	// Restored: the slot holds again what was committed in it, and is booted.
	Restored Outcome = "restored"
	// Installed: another image is in the slot and on trial.
	Installed Outcome = "installed"
	// Whole: the slots hold what they should, and there is nothing newer.
	Whole Outcome = "whole"
)

// Result says which slot was brought to what.
type Result struct {
	Outcome  Outcome     `json:"outcome"`
	Slot     device.Slot `json:"slot,omitempty"`
	Version  string      `json:"version,omitempty"`
	Digest   string      `json:"digest,omitempty"`
	SignedBy string      `json:"signedBy,omitempty"`
}

// facts are what an image has to satisfy in this slot.
func (m Machine) facts(l *ledger.Ledger, size int64) admit.Machine {
	f := m.Facts
	f.SlotSize = size
	f.FloorVersion, f.FloorEpoch = l.Floor.Version, l.Floor.Epoch
	if f.FloorVersion == "" {
		f.FloorVersion = f.Version
	} else {
		// What was committed last is what an upgrade would have started from.
		f.Version = l.Floor.Version
	}
	f.Failed = func(digest string) (string, bool) {
		failure := l.FailureOf(digest)
		if failure == nil {
			return "", false
		}
		return failure.Reason, true
	}
	return f
}

// record brings the ledger and the slot's record up to what was written.
func (m Machine) record(w slot.Written, r proof.Record, v trust.Verified, state ledger.State) error {
	if err := m.Records.Keep(w.Slot(), r); err != nil {
		return err
	}
	c, now, basis := r.Image().Config(), time.Now().UTC(), ledger.Basis(v.Basis())
	return m.Ledger.Update(func(l *ledger.Ledger) error {
		kind := "restored"
		if state == ledger.Staged {
			kind = "staged"
		}
		l.Slots[w.Slot()] = &ledger.Entry{
			Digest: w.Digest(), Product: c.Product, Version: c.Version, Epoch: c.Epoch, Created: c.Created,
			Reference: r.Reference(), SignedBy: v.KeyName(), Basis: &basis, State: ledger.Staged, StagedAt: now,
		}
		l.Add(ledger.Event{At: now, Kind: kind, Slot: w.Slot(), Version: c.Version, Digest: w.Digest(), Rule: basis.Rule, Reason: "by the rescue system"})
		if state == ledger.Committed {
			return l.Commit(w.Slot(), now)
		}
		return nil
	})
}

// wrap says what was being done.
func wrap(name device.Slot, err error) error {
	if err != nil {
		return fmt.Errorf("restoring slot %s: %w", name, err)
	}
	return nil
}
