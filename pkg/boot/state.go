package boot

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
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

// MaxTries is the largest number of boots that a trial may have: the counter has
// one digit, so that GRUB rewrites it in place.
const MaxTries = 9

// State is what the env copies say. The zero value is no state.
type State struct {
	Phase Phase
	// Rootfs is the slot that GRUB boots: on trial the slot under test, else the
	// proven one.
	Rootfs device.Slot
	// Tries is the number of boots that a trial has left, 0 to MaxTries; 0 in the
	// other phases.
	Tries int
}

// String is the state in words, for messages.
func (s State) String() string {
	if s.Phase == Trial {
		return fmt.Sprintf("slot %s is on trial, tries left: %d", s.Rootfs, s.Tries)
	}
	return fmt.Sprintf("slot %s, %s", s.Rootfs, s.Phase)
}

// Proven is the slot that is known to work: on trial the other one.
func (s State) Proven() device.Slot {
	if s.Phase == Trial {
		return s.Rootfs.Other()
	}
	return s.Rootfs
}

// Next is what GRUB does at a boot, if it can save: the slot that it boots and
// the state that it leaves. A trial without tries left becomes a fall back.
// What it does when it cannot save, or cannot start a slot, is told in
// docs/boot-states.md.
func Next(s State) (device.Slot, State) {
	if s.Phase != Trial {
		return s.Rootfs, s
	}
	if s.Tries == 0 {
		s = s.fallenBack()
		return s.Rootfs, s
	}
	s.Tries--
	return s.Rootfs, s
}

// ErrState is returned by a change that the present state does not allow. The
// message names both.
var ErrState = errors.New("the boot state does not allow that")

// refuse says why an action is not allowed.
func (s State) refuse(reason string) (State, error) {
	return State{}, fmt.Errorf("%w: %s (now: %s)", ErrState, reason, s)
}

// The transitions. Each is allowed exactly where the table in
// docs/boot-states.md has a cell for it; TestTransitions holds that table.

// armed puts the other, not running slot on trial.
func (s State) armed(target device.Slot, tries int) (State, error) {
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
	return State{Trial, target, tries}, nil
}

// committed makes the booted slot the proven one. In phase Committed it may be
// another slot than before: GRUB boots the other one when it cannot start a
// kernel from the one that is named.
func (s State) committed(booted device.Slot) (State, error) {
	switch {
	case s.Phase == FellBack:
		return s.refuse("the last failure has not been acknowledged")
	case s.Phase == Trial && booted != s.Rootfs:
		return s.refuse(fmt.Sprintf("slot %s runs, which is not the one on trial", booted))
	}
	return State{Committed, booted, 0}, nil
}

// fallenBack ends a trial with the proven slot. Twice is as good as once.
func (s State) fallenBack() State {
	return State{FellBack, s.Proven(), 0}
}

// disarmed takes a trial back that was not taken yet.
func (s State) disarmed(booted device.Slot) (State, error) {
	if s.Phase != Trial {
		return s, nil
	}
	if booted != s.Proven() {
		return s.refuse(fmt.Sprintf("slot %s runs on trial: commit it or fall back", booted))
	}
	return State{Committed, booted, 0}, nil
}

// maxSeq is the largest sequence number, the largest with the nine digits that
// grub.cfg accepts; GRUB compares within 32 bits.
const maxSeq = 999_999_999

// record is one copy's content.
type record struct {
	seq   int
	state State
}

// next is the sequence number after seq. After the largest comes 1.
func next(seq int) int {
	if seq >= maxSeq {
		return 1
	}
	return seq + 1
}

// encode makes the block of a record: seq first and end last, so that values of
// two writes do not agree if only a part of the sector arrived.
func (r record) encode() ([]byte, error) {
	seq := strconv.Itoa(r.seq)
	var b grubenv.Block
	for _, v := range [...][2]string{
		{"seq", seq},
		{"ustate", strconv.Itoa(int(r.state.Phase))},
		{"rootfs", string(r.state.Rootfs)},
		{"boot_counter", strconv.Itoa(r.state.Tries)},
		{"end", seq},
	} {
		if err := b.Set(v[0], v[1]); err != nil {
			return nil, err
		}
	}
	if _, err := decode(b); err != nil {
		return nil, err
	}
	return b.Encode()
}

// decode accepts exactly the values that grub.cfg accepts, so that both choose
// the same copy. Variables with other names are left out, as there.
func decode(b grubenv.Block) (record, error) {
	values := map[string]string{}
	for _, v := range [...]struct{ name, pattern string }{
		{"seq", `^[1-9][0-9]{0,8}$`},
		{"ustate", `^[013]$`},
		{"rootfs", `^[AB]$`},
		{"boot_counter", `^[0-9]$`},
		{"end", `^[1-9][0-9]{0,8}$`},
	} {
		value, ok := b.Get(v.name)
		if !ok {
			return record{}, fmt.Errorf("%w: %s is missing", ErrValue, v.name)
		}
		if !regexp.MustCompile(v.pattern).MatchString(value) {
			return record{}, fmt.Errorf("%w: %s=%.20q, want %s", ErrValue, v.name, value, v.pattern)
		}
		values[v.name] = value
	}
	if values["seq"] != values["end"] {
		return record{}, fmt.Errorf("%w: seq=%s, end=%s", ErrTorn, values["seq"], values["end"])
	}
	seq, err := strconv.Atoi(values["seq"])
	if err != nil {
		return record{}, err
	}
	tries := int(values["boot_counter"][0] - '0')
	phase := Phase(values["ustate"][0] - '0')
	if phase != Trial {
		tries = 0
	}
	return record{seq, State{phase, device.Slot(values["rootfs"]), tries}}, nil
}
