package boot

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/kapernikov/osctl/pkg/device"
)

// Phase is GRUB's variable ustate.
type Phase int

// The phases; the numbers are those of the variable.
const (
	// Committed: the slot is proven and is booted every time.
	Committed Phase = 0
	// Trial: the slot is booted while it has tries left, and then the other one,
	// which is proven.
	Trial Phase = 1
	// FellBack: the slot is proven and is booted because the other one failed its
	// trial; user space has not yet recorded the failure.
	FellBack Phase = 3
)

// String is the phase in words: "committed", "on trial" or "fell back".
func (p Phase) String() string {
	switch p {
	case Committed:
		return "committed"
	case Trial:
		return "on trial"
	case FellBack:
		return "fell back"
	}
	return "phase " + strconv.Itoa(int(p))
}

// Rung is GRUB's variable rung: which system stands in for the proven one, after
// it did not come up.
type Rung int

// The rungs, best first; the numbers are those of the variable.
const (
	// RungSlot is the proven slot itself.
	RungSlot Rung = 0
	// RungPristine is the proven slot with the /etc of its image, without the
	// machine's changes.
	RungPristine Rung = 1
	// RungOther is the other slot; only where it was committed once.
	RungOther Rung = 2
	// RungRescue is the rescue partition, the last rung; below it is the first.
	RungRescue Rung = 3
)

// String is the rung in words.
func (r Rung) String() string {
	switch r {
	case RungSlot:
		return "the slot itself"
	case RungPristine:
		return "the slot with a pristine /etc"
	case RungOther:
		return "the other slot"
	case RungRescue:
		return "rescue"
	}
	return "rung " + strconv.Itoa(int(r))
}

const (
	// MaxTries is the largest number of boots that a trial may have: the counter
	// has one digit, so that GRUB rewrites it in place.
	MaxTries = 9
	// FullTries is the number of boots that a proven system has on each rung
	// before GRUB goes one down. grub.cfg has the same number.
	FullTries = 3
	// MaxGiven bounds how many orderly shutdowns in a row give their try back to
	// a system that did not come up in between: one that restarts itself in good
	// order, for ever, has to leave its rung as well.
	MaxGiven = 9
)

// State is what the env copies say. The zero value is no state.
type State struct {
	Phase Phase
	// Rootfs is the slot under test on trial, else the proven one.
	Rootfs device.Slot
	// Tries is the number of boots left, 0 to 9: on trial of the trial, else of
	// the present rung.
	Tries int
	// Rung is RungSlot on trial.
	Rung Rung
	// Other says that the slot beside the proven one holds a system that was
	// committed once and is whole. On trial that is the slot under test.
	Other bool
	// Given is the number of tries that orderly shutdowns have given back since a
	// system last came up, 0 to MaxGiven. GRUB neither reads nor changes it.
	Given int
}

// String is the state in words, for messages.
func (s State) String() string {
	text := fmt.Sprintf("slot %s, %s, tries left: %d", s.Rootfs, s.Phase, s.Tries)
	if s.Phase == Trial {
		return text
	}
	if s.Rung != RungSlot {
		text += ", rung: " + s.Rung.String()
	}
	if s.Other {
		text += ", the other slot is whole"
	}
	return text
}

// Proven is the slot that is known to work: on trial the other one.
func (s State) Proven() device.Slot {
	if s.Phase == Trial {
		return s.Rootfs.Other()
	}
	return s.Rootfs
}

// ErrState is returned by a change that the present state does not allow. The
// message names both.
var ErrState = errors.New("the boot state does not allow that")

// refuse says why an action is not allowed.
func (s State) refuse(reason string) (State, error) {
	return State{}, fmt.Errorf("%w: %s (now: %s)", ErrState, reason, s)
}

// The transitions of user space. Each is allowed exactly where the table in
// docs/boot-states.md has a cell for it; TestTransitions holds that table.

// whole is a committed slot with all its tries.
func whole(slot device.Slot, other bool) State {
	return State{Phase: Committed, Rootfs: slot, Tries: FullTries, Other: other}
}

// armed puts the other, not running slot on trial; proven, if it was committed
// once.
func (s State) armed(target device.Slot, tries int, proven bool) (State, error) {
	switch {
	case tries < 1 || tries > MaxTries:
		return State{}, fmt.Errorf("a trial of %d boots: want 1 to %d", tries, MaxTries)
	case s.Phase == Trial:
		return s.refuse("a trial is under way; it has to be committed, to fall back or to be disarmed first")
	case s.Phase == FellBack:
		return s.refuse("the last failure has not been acknowledged")
	case target != s.Rootfs.Other():
		return s.refuse(fmt.Sprintf("slot %q cannot be put on trial, only the other one can", string(target)))
	}
	return State{Phase: Trial, Rootfs: target, Tries: tries, Other: proven}, nil
}

// committed makes the booted slot the proven one. In phase Committed it may be
// another slot than before, when GRUB could not use the one that is named. That
// one was committed too, so it stays a rung: GRUB passes over it if it cannot be
// started.
func (s State) committed(booted device.Slot) (State, error) {
	switch {
	case s.Phase == FellBack:
		return s.refuse("the last failure has not been acknowledged")
	case s.Phase == Trial && booted != s.Rootfs:
		return s.refuse(fmt.Sprintf("slot %s runs, which is not the one on trial", booted))
	case s.Phase == Committed && booted == s.Rootfs:
		return whole(booted, s.Other), nil
	}
	return whole(booted, true), nil
}

// fallenBack ends a trial with the proven slot. The slot that failed is no rung.
// Twice is as good as once.
func (s State) fallenBack() State {
	if s.Phase == FellBack {
		return s
	}
	return State{Phase: FellBack, Rootfs: s.Proven(), Tries: FullTries, Given: s.Given}
}

// acknowledged ends a fall back that is on record.
func (s State) acknowledged() (State, error) {
	if s.Phase == Trial {
		return s.refuse("a trial is under way")
	}
	return whole(s.Rootfs, s.Other), nil
}

// disarmed is the state in which the slot that does not run may be written: none
// that names it. A trial that was not taken is taken back, and the other slot is
// no rung any more. Where GRUB could not use the committed slot and the other one
// runs, that one is named: it is about to be the only one.
func (s State) disarmed(booted device.Slot) (State, error) {
	switch {
	case s.Phase == Trial && booted != s.Proven():
		return s.refuse(fmt.Sprintf("slot %s runs on trial: commit it or fall back", booted))
	case s.Phase == FellBack && booted != s.Rootfs:
		return s.refuse("the last failure has not been acknowledged")
	case s.Phase == Trial || booted != s.Rootfs:
		return whole(booted, false), nil
	}
	s.Other = false
	return s, nil
}

// takenBack ends a trial that was not booted, and leaves the slots as they are.
func (s State) takenBack(booted device.Slot) (State, error) {
	if s.Phase == Trial && booted == s.Proven() {
		return whole(booted, s.Other), nil
	}
	return s.refuse(fmt.Sprintf("slot %s runs, and no trial waits beside it", booted))
}

// settled gives everything back: the system that runs came up. On trial nothing
// is given, a trial ends by a verdict.
func (s State) settled() State {
	if s.Phase != Trial {
		s.Rung, s.Tries, s.Given = RungSlot, FullTries, 0
	}
	return s
}

// returned gives the try of this boot back, which ends in good order before a
// verdict. Nothing is given to a system that GRUB did not count.
func (s State) returned(booted device.Boot) State {
	most := FullTries
	runs := booted.Slot == s.Rootfs
	switch {
	case s.Phase == Trial:
		most = MaxTries
		runs = runs && booted.Kind == KindTrial
	case s.Rung == RungOther:
		runs = booted.Slot == s.Rootfs.Other()
	case s.Rung == RungRescue:
		runs = false
	}
	if runs && booted.Kind != KindUnsaved && s.Tries < most && s.Given < MaxGiven {
		s.Tries++
		s.Given++
	}
	return s
}
