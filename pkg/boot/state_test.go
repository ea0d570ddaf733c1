package boot

import (
	"errors"
	"testing"

	"github.com/kapernikov/osctl/pkg/device"
)

const (
	slotA = device.SlotA
	slotB = device.SlotB
)

func TestNext(t *testing.T) {
	for _, c := range []struct {
		now  State
		boot device.Slot
		then State
	}{
		{State{Committed, slotA, 0}, slotA, State{Committed, slotA, 0}},
		{State{Committed, slotB, 0}, slotB, State{Committed, slotB, 0}},
		{State{Trial, slotB, 3}, slotB, State{Trial, slotB, 2}},
		{State{Trial, slotB, 1}, slotB, State{Trial, slotB, 0}},
		{State{Trial, slotB, 0}, slotA, State{FellBack, slotA, 0}},
		{State{Trial, slotA, 0}, slotB, State{FellBack, slotB, 0}},
		{State{FellBack, slotA, 0}, slotA, State{FellBack, slotA, 0}},
	} {
		boot, then := Next(c.now)
		if boot != c.boot || then != c.then {
			t.Errorf("Next(%v) = %s, %v; want %s, %v", c.now, boot, then, c.boot, c.then)
		}
	}
}

// TestNextEnds: whatever the state, boots alone reach a proven slot and stay there.
func TestNextEnds(t *testing.T) {
	for tries := range MaxTries + 1 {
		s := State{Trial, slotB, tries}
		for boots := range tries {
			var slot device.Slot
			if slot, s = Next(s); slot != slotB {
				t.Fatalf("boot %d of a trial with %d tries: slot %s", boots+1, tries, slot)
			}
		}
		for range 3 {
			var slot device.Slot
			if slot, s = Next(s); slot != slotA || s != (State{FellBack, slotA, 0}) {
				t.Fatalf("after %d tries: slot %s, %v", tries, slot, s)
			}
		}
	}
}

// TestTransitions is the table of docs/boot-states.md: for each phase, with slot A
// as rootfs, what each action makes of it. A missing entry is a refusal.
func TestTransitions(t *testing.T) {
	phases := []State{{Committed, slotA, 0}, {Trial, slotA, 2}, {FellBack, slotA, 0}}
	actions := map[string]func(s State) (State, error){
		"arm A":    func(s State) (State, error) { return s.armed(slotA, 3) },
		"arm B":    func(s State) (State, error) { return s.armed(slotB, 3) },
		"arm none": func(s State) (State, error) { return s.armed("", 3) },
		"commit A": func(s State) (State, error) { return s.committed(slotA) },
		"commit B": func(s State) (State, error) { return s.committed(slotB) },
		"disarm A": func(s State) (State, error) { return s.disarmed(slotA) },
		"disarm B": func(s State) (State, error) { return s.disarmed(slotB) },
	}
	want := map[string]map[Phase]State{
		"arm A":    {},
		"arm B":    {Committed: {Trial, slotB, 3}},
		"arm none": {},
		"commit A": {Committed: {Committed, slotA, 0}, Trial: {Committed, slotA, 0}},
		"commit B": {Committed: {Committed, slotB, 0}},
		"disarm A": {Committed: {Committed, slotA, 0}, FellBack: {FellBack, slotA, 0}},
		"disarm B": {Committed: {Committed, slotA, 0}, Trial: {Committed, slotB, 0}, FellBack: {FellBack, slotA, 0}},
	}
	for action, do := range actions {
		for _, now := range phases {
			got, err := do(now)
			then, allowed := want[action][now.Phase]
			switch {
			case !allowed && !errors.Is(err, ErrState):
				t.Errorf("%s, now %v: %v, %v; want ErrState", action, now, got, err)
			case allowed && (err != nil || got != then):
				t.Errorf("%s, now %v: %v, %v; want %v", action, now, got, err, then)
			}
		}
	}
}
