package boot

import (
	"errors"
	"fmt"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/slot"
)

// Restored names the slot that w proves as the one to boot, from the first rung and
// with all tries. It is for the rescue system, where no slot runs: whatever the
// state was, and also when no copy is valid. The caller knows that the image was
// committed once. It fails with ErrNotWritten for what proves no slot.
func (s *Store) Restored(w slot.Written) error {
	const action = "naming the restored slot"
	if !w.Valid() || w.Slot().Other() == "" {
		return fmt.Errorf("%s: %w", action, ErrNotWritten)
	}
	err := s.change(action, func(st State) (State, error) { return st.restored(w.Slot()), nil })
	if errors.Is(err, ErrUnknown) {
		return s.put(action, record{1, whole(w.Slot(), false)}, 0)
	}
	return err
}

// restored keeps the other slot as a rung only where it was one beside this slot.
func (s State) restored(target device.Slot) State {
	return whole(target, s.Phase == Committed && s.Rootfs == target && s.Other)
}

// Regained makes the other slot a rung of the ladder again, after Disarm and a
// repair: w proves that it holds what it held, and the caller knows that this was
// committed once. It fails with ErrNotWritten for what proves nothing, and with
// ErrState on trial and for the slot that is booted.
func (s *Store) Regained(w slot.Written) error {
	const action = "trusting the repaired slot"
	if !w.Valid() {
		return fmt.Errorf("%s: %w", action, ErrNotWritten)
	}
	return s.change(action, func(st State) (State, error) { return st.regained(w.Slot()) })
}

func (s State) regained(target device.Slot) (State, error) {
	switch {
	case s.Phase == Trial:
		return s.refuse("a trial is under way")
	case target != s.Rootfs.Other():
		return s.refuse(fmt.Sprintf("slot %q is not the other one", string(target)))
	}
	s.Other = true
	return s, nil
}
