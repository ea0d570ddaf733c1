package boot

import (
	"errors"
	"testing"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/slot"
)

// A restored slot is booted from the first rung, whatever the state was.
func TestRestored(t *testing.T) {
	rescued := whole(slotA, true)
	rescued.Rung, rescued.Tries = RungRescue, 0
	for name, tt := range map[string]struct {
		from State
		slot device.Slot
		want State
	}{
		"the committed slot, from the last rung":      {rescued, slotA, whole(slotA, true)},
		"the other slot, from the last rung":          {rescued, slotB, whole(slotB, false)},
		"the slot that a fall back leads to":          {fellBack(slotA), slotA, whole(slotA, false)},
		"the slot on trial, which was committed once": {trial(slotB, 2), slotB, whole(slotB, false)},
		"the proven slot during a trial":              {trial(slotB, 2), slotA, whole(slotA, false)},
	} {
		s := newStore(t, block(t, 5, tt.from), block(t, 5, tt.from))
		if err := s.Restored(written(t, tt.slot)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, problems, err := s.Load(); err != nil || len(problems) > 0 || got != tt.want {
			t.Errorf("%s: %v, %v, %v; want %v", name, got, problems, err, tt.want)
		}
	}
	s := newStore(t, nil, []byte("garbage"))
	if err := s.Restored(written(t, slotB)); err != nil {
		t.Errorf("without a valid copy: %v", err)
	}
	if got, _, err := s.Load(); err != nil || got != whole(slotB, false) {
		t.Errorf("without a valid copy: %v, %v", got, err)
	}
}

// The other slot is a rung again after a repair, and the rest stays as it is.
func TestRegained(t *testing.T) {
	lower := whole(slotA, false)
	lower.Rung, lower.Tries = RungPristine, 1
	want := lower
	want.Other = true
	s := newStore(t, block(t, 5, lower), block(t, 5, lower))
	if err := s.Regained(written(t, slotB)); err != nil {
		t.Fatal(err)
	}
	if got, _, err := s.Load(); err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestRestoredAndRegainedRefuse(t *testing.T) {
	for name, tt := range map[string]struct {
		from State
		act  func(*Store) error
		want error
	}{
		"restored without a proof":      {committed(slotA), func(s *Store) error { return s.Restored(slot.Written{}) }, ErrNotWritten},
		"restored the rescue system":    {committed(slotA), func(s *Store) error { return s.Restored(written(t, device.Rescue)) }, ErrNotWritten},
		"armed the rescue system":       {committed(slotA), func(s *Store) error { return s.Arm(written(t, device.Rescue), 3) }, ErrState},
		"regained without a proof":      {committed(slotA), func(s *Store) error { return s.Regained(slot.Written{}) }, ErrNotWritten},
		"regained the booted slot":      {committed(slotA), func(s *Store) error { return s.Regained(written(t, slotA)) }, ErrState},
		"regained during a trial":       {trial(slotB, 2), func(s *Store) error { return s.Regained(written(t, slotA)) }, ErrState},
		"regained the rescue system":    {committed(slotA), func(s *Store) error { return s.Regained(written(t, device.Rescue)) }, ErrState},
		"regained, no copy being valid": {State{}, func(s *Store) error { return s.Regained(written(t, slotB)) }, ErrUnknown},
	} {
		a := []byte("garbage")
		if tt.from != (State{}) {
			a = block(t, 5, tt.from)
		}
		s := newStore(t, a, a)
		if err := tt.act(s); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if got, _, _ := s.Load(); got != tt.from {
			t.Errorf("%s changed the state to %v", name, got)
		}
	}
}
