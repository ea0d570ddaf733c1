package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// ErrNoProvenSlot says that there is nothing to go back to.
var ErrNoProvenSlot = errors.New("the other slot holds no system that was committed here")

// reverser is what a rollback by hand changes of the boot state (boot.Store).
type reverser interface {
	Load() (boot.State, []boot.Problem, error)
	ArmProven(target device.Slot, tries int) error
	TakeBack(booted device.Slot) error
	FallBack() error
}

// Reversal is everything that RollBack needs of the machine: neither network nor
// containerd, which is asked when all is done and need not answer.
type Reversal struct {
	Booted device.Slot
	Lock   func() (release func() error, err error)
	Boot   reverser
	Ledger *ledger.Store
	Tries  int
	// Images holds what the workloads need; nil holds nothing.
	Images Images
	Log    *slog.Logger
}

// Back is what a rollback did.
type Back struct {
	// Slot starts at the next boot.
	Slot device.Slot
	// How says by which way, for people.
	How string
}

// RollBack goes back to the other proven slot. During a trial it ends the trial;
// with a trial armed but not booted it takes the trial back; otherwise the other
// slot, which was committed once, goes on trial: should it no longer work, the
// machine returns by itself.
func RollBack(ctx context.Context, m Reversal) (b Back, err error) {
	release, err := m.Lock()
	if err != nil {
		return Back{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	state, _, err := m.Boot.Load()
	if err != nil {
		return Back{}, err
	}
	l, err := m.Ledger.Load()
	if err != nil {
		m.Log.Warn("the ledger is lost", "error", err)
	}
	other := m.Booted.Other()
	switch {
	case state.Phase == boot.Trial && state.Rootfs == m.Booted:
		b = Back{other, "the trial is ended as failed"}
		m.record(func(l *ledger.Ledger) { l.Fail(m.Booted, "rolled back by hand", time.Now().UTC()) })
		err = m.Boot.FallBack()
	case state.Phase == boot.Trial:
		b = Back{m.Booted, "the armed trial is taken back"}
		err = m.Boot.TakeBack(m.Booted)
	default:
		// The boot state knows; the ledger only explains.
		if !state.Other || m.Booted != state.Rootfs {
			return Back{}, fmt.Errorf("rolling back: %w: %s", ErrNoProvenSlot, holds(other, l.Slot(other)))
		}
		b = Back{other, "it goes on trial, and must pass its gate again"}
		err = m.Boot.ArmProven(other, m.Tries)
	}
	if err := mild(m.Log, err); err != nil {
		return Back{}, fmt.Errorf("rolling back: %w", err)
	}
	m.record(func(l *ledger.Ledger) {
		l.Add(ledger.Event{At: time.Now().UTC(), Kind: "rolled back", Slot: b.Slot, Reason: "by hand: " + b.How})
	})
	m.follow(ctx, b, state.Phase != boot.Trial)
	return b, nil
}

func holds(s device.Slot, e *ledger.Entry) string {
	if e == nil {
		return fmt.Sprintf("slot %s is empty or was written without being finished", s)
	}
	return fmt.Sprintf("slot %s holds %s, which is %s", s, e.Version, e.State)
}

// record notes what happened; a rollback does not fail for want of a note.
func (m Reversal) record(note func(*ledger.Ledger)) {
	err := m.Ledger.Update(func(l *ledger.Ledger) error {
		note(l)
		return nil
	})
	if err != nil {
		m.Log.Warn("the rollback is not recorded", "error", err)
	}
}
