package boot

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
)

const (
	slotA = device.SlotA
	slotB = device.SlotB
)

// committed, fellBack and trial are the states as user space leaves them.
func committed(slot device.Slot) State {
	return State{Phase: Committed, Rootfs: slot, Tries: FullTries}
}

func fellBack(slot device.Slot) State { return State{Phase: FellBack, Rootfs: slot, Tries: FullTries} }

func trial(slot device.Slot, tries int) State {
	return State{Phase: Trial, Rootfs: slot, Tries: tries}
}

// on is a state that has come down to a rung.
func (s State) on(rung Rung, tries int, other bool) State {
	s.Rung, s.Tries, s.Other = rung, tries, other
	return s
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		now  State
		slot device.Slot
		kind string
		then State
	}{
		{trial(slotB, 3), slotB, KindTrial, trial(slotB, 2)},
		{trial(slotB, 1), slotB, KindTrial, trial(slotB, 0)},
		{trial(slotB, 0), slotA, KindFallback, fellBack(slotA).on(RungSlot, 2, false)},
		{trial(slotA, 0), slotB, KindFallback, fellBack(slotB).on(RungSlot, 2, false)},
		{committed(slotA), slotA, KindCommitted, committed(slotA).on(RungSlot, 2, false)},
		{committed(slotB).on(RungSlot, 9, true), slotB, KindCommitted, committed(slotB).on(RungSlot, 8, true)},
		{committed(slotB).on(RungSlot, 0, true), slotB, KindPristine, committed(slotB).on(RungPristine, 2, true)},
		{committed(slotB).on(RungPristine, 1, true), slotB, KindPristine, committed(slotB).on(RungPristine, 0, true)},
		{committed(slotB).on(RungPristine, 0, true), slotA, KindOther, committed(slotB).on(RungOther, 2, true)},
		{committed(slotB).on(RungPristine, 0, false), device.Rescue, KindRescue, committed(slotB).on(RungRescue, 2, false)},
		{committed(slotB).on(RungOther, 0, true), device.Rescue, KindRescue, committed(slotB).on(RungRescue, 2, true)},
		{committed(slotB).on(RungOther, 3, false), device.Rescue, KindRescue, committed(slotB).on(RungRescue, 2, false)},
		{committed(slotB).on(RungRescue, 9, true), device.Rescue, KindRescue, committed(slotB).on(RungRescue, 8, true)},
		{committed(slotB).on(RungRescue, 1, false), device.Rescue, KindRescue, committed(slotB).on(RungRescue, 0, false)},
		{committed(slotB).on(RungRescue, 0, true), slotB, KindCommitted, committed(slotB).on(RungSlot, 2, true)},
		{fellBack(slotA).on(RungRescue, 0, false), slotA, KindFallback, fellBack(slotA).on(RungSlot, 2, false)},
		{fellBack(slotA), slotA, KindFallback, fellBack(slotA).on(RungSlot, 2, false)},
		{fellBack(slotA).on(RungSlot, 0, false), slotA, KindPristine, fellBack(slotA).on(RungPristine, 2, false)},
	} {
		boot, then := Next(c.now)
		if want := (device.Boot{Slot: c.slot, Kind: c.kind}); boot != want || then != c.then {
			t.Errorf("Next(%v) = %v, %v; want %v, %v", c.now, boot, then, want, c.then)
		}
	}
}

// TestNextGoesRound: whatever the state, boots that never come up go down the
// ladder, from the last rung to the first, no boot without a try less, none of the
// rungs left out and none for longer than its tries.
func TestNextGoesRound(t *testing.T) {
	for _, start := range states() {
		s := start
		for s.Phase == Trial { // at most its tries
			if _, s = Next(s); s.Tries == 0 && s.Phase == Trial {
				_, s = Next(s)
			}
		}
		circle := []Rung{RungSlot, RungPristine, RungOther, RungRescue}
		if !s.Other {
			circle = []Rung{RungSlot, RungPristine, RungRescue}
		}
		if s.Rung == RungOther && !s.Other {
			_, s = Next(s) // a rung that is none is left at once
		}
		at, on := slices.Index(circle, s.Rung), 0
		for range 3*FullTries*len(circle) + MaxTries {
			before := s
			_, s = Next(s)
			on++
			switch {
			case s.Rung == before.Rung && s.Tries == before.Tries-1:
				if on > MaxTries {
					t.Fatalf("from %v: %d boots on rung %v", start, on, s.Rung)
				}
			case before.Tries == 0 && s.Rung == circle[(at+1)%len(circle)] && s.Tries == FullTries-1:
				at, on = (at+1)%len(circle), 1
			default:
				t.Fatalf("from %v: %v became %v", start, before, s)
			}
		}
	}
}

// TestLadder is the whole way down, boot by boot, and round to the first rung.
func TestLadder(t *testing.T) {
	s := trial(slotB, 2)
	var way []string
	for range 13 {
		var boot device.Boot
		boot, s = Next(s)
		way = append(way, string(boot.Slot)+" "+boot.Kind)
	}
	want := []string{"B trial", "B trial", "A fallback", "A fallback", "A fallback", "A pristine", "A pristine", "A pristine",
		"rescue rescue", "rescue rescue", "rescue rescue", "A fallback", "A fallback"}
	if diff := cmp.Diff(want, way); diff != "" {
		t.Errorf("the way down from a trial (-want +got):\n%s", diff)
	}
	s, way = whole(slotA, true), nil
	for range 13 {
		var boot device.Boot
		boot, s = Next(s)
		way = append(way, string(boot.Slot)+" "+boot.Kind)
	}
	want = []string{"A committed", "A committed", "A committed", "A pristine", "A pristine", "A pristine", "B other", "B other", "B other",
		"rescue rescue", "rescue rescue", "rescue rescue", "A committed"}
	if diff := cmp.Diff(want, way); diff != "" {
		t.Errorf("the way down from a committed slot (-want +got):\n%s", diff)
	}
}

// TestTransitions is the table of docs/boot-states.md: for each state, with slot A
// as rootfs, what each action makes of it. A missing entry is a refusal.
func TestTransitions(t *testing.T) {
	low := func(s State) State { s.Rung, s.Tries, s.Given = RungPristine, 1, 4; return s }
	states := map[string]State{
		"committed": whole(slotA, true), "down": low(whole(slotA, true)), "trial": trial(slotA, 2), "fell back": low(fellBack(slotA)),
	}
	down, fell := states["down"], states["fell back"]
	downAlone := down
	downAlone.Other = false
	fellWhole := fellBack(slotA)
	trialOfProven := State{Phase: Trial, Rootfs: slotB, Tries: 3, Other: true}
	alone, both, bothB := whole(slotA, false), whole(slotA, true), whole(slotB, true)
	for action, c := range map[string]struct {
		do   func(s State) (State, error)
		want map[string]State
	}{
		"arm A":    {func(s State) (State, error) { return s.armed(slotA, 3, true) }, nil},
		"arm none": {func(s State) (State, error) { return s.armed("", 3, false) }, nil},
		"arm B": {func(s State) (State, error) { return s.armed(slotB, 3, false) },
			map[string]State{"committed": trial(slotB, 3), "down": trial(slotB, 3)}},
		"arm proven B": {func(s State) (State, error) { return s.armed(slotB, 3, true) },
			map[string]State{"committed": trialOfProven, "down": trialOfProven}},
		"take back A": {func(s State) (State, error) { return s.takenBack(slotA) }, nil},
		"take back B": {func(s State) (State, error) { return s.takenBack(slotB) },
			map[string]State{"trial": whole(slotB, false)}},
		"commit A": {func(s State) (State, error) { return s.committed(slotA) },
			map[string]State{"committed": both, "down": both, "trial": both}},
		"commit B": {func(s State) (State, error) { return s.committed(slotB) },
			map[string]State{"committed": bothB, "down": bothB}},
		"disarm A": {func(s State) (State, error) { return s.disarmed(slotA) },
			map[string]State{"committed": alone, "down": downAlone, "fell back": fell}},
		"disarm B": {func(s State) (State, error) { return s.disarmed(slotB) },
			map[string]State{"committed": whole(slotB, false), "down": whole(slotB, false), "trial": whole(slotB, false)}},
		"settle": {func(s State) (State, error) { return s.settled(), nil },
			map[string]State{"committed": both, "down": both, "trial": trial(slotA, 2), "fell back": fellWhole}},
		"acknowledge": {State.acknowledged,
			map[string]State{"committed": both, "down": both, "fell back": alone}},
	} {
		for name, now := range states {
			got, err := c.do(now)
			then, allowed := c.want[name]
			switch {
			case !allowed && !errors.Is(err, ErrState):
				t.Errorf("%s, %s: %v, %v; want ErrState", action, name, got, err)
			case allowed && (err != nil || got != then):
				t.Errorf("%s, %s: %+v, %v; want %+v", action, name, got, err, then)
			}
		}
	}
}

// TestGiveBack: what an orderly shutdown makes of each state.
func TestGiveBack(t *testing.T) {
	given := func(s State, n int) State { s.Given = n; return s }
	for name, c := range map[string]struct {
		now  State
		slot device.Slot
		kind string
		then State
	}{
		"before the gate":        {committed(slotA).on(RungSlot, 2, true), slotA, KindCommitted, given(committed(slotA).on(RungSlot, 3, true), 1)},
		"again and again":        {given(committed(slotA).on(RungSlot, 2, true), 8), slotA, KindCommitted, given(committed(slotA).on(RungSlot, 3, true), 9)},
		"too often":              {given(committed(slotA).on(RungSlot, 2, true), 9), slotA, KindCommitted, given(committed(slotA).on(RungSlot, 2, true), 9)},
		"settled":                {committed(slotA), slotA, KindCommitted, committed(slotA)},
		"not counted":            {committed(slotA).on(RungSlot, 1, true), slotA, KindUnsaved, committed(slotA).on(RungSlot, 1, true)},
		"pristine":               {committed(slotA).on(RungPristine, 0, true), slotA, KindPristine, given(committed(slotA).on(RungPristine, 1, true), 1)},
		"the other slot":         {committed(slotA).on(RungOther, 0, true), slotB, KindOther, given(committed(slotA).on(RungOther, 1, true), 1)},
		"the other as a stopgap": {committed(slotA).on(RungSlot, 2, false), slotB, KindOther, committed(slotA).on(RungSlot, 2, false)},
		"fell back":              {fellBack(slotA).on(RungSlot, 2, false), slotA, KindFallback, given(fellBack(slotA), 1)},
		"trial":                  {trial(slotB, 2), slotB, KindTrial, given(trial(slotB, 3), 1)},
		"last try of a trial":    {trial(slotB, 0), slotB, KindTrial, given(trial(slotB, 1), 1)},
		"trial, not taken":       {trial(slotB, 2), slotA, KindCommitted, trial(slotB, 2)},
		"trial, unsaved":         {trial(slotB, 2), slotB, KindUnsaved, trial(slotB, 2)},
		"complete trial":         {trial(slotB, 9), slotB, KindTrial, trial(slotB, 9)},
		"rescue":                 {committed(slotA).on(RungRescue, 2, true), device.Rescue, KindRescue, committed(slotA).on(RungRescue, 2, true)},
		"rolled back by hand":    {fellBack(slotA), slotB, KindTrial, fellBack(slotA)},
	} {
		if got := c.now.returned(device.Boot{Slot: c.slot, Kind: c.kind}); got != c.then {
			t.Errorf("%s: %+v, want %+v", name, got, c.then)
		}
	}
}

// TestImpatience: five orderly restarts in a row, each before the gate came to its
// verdict, neither fall back nor leave the rung; a system that restarts itself for
// ever does.
func TestImpatience(t *testing.T) {
	for _, start := range []State{whole(slotA, true), trial(slotB, 3), trial(slotB, 1)} {
		s := start
		for i := range 5 {
			var boot device.Boot
			if boot, s = Next(s); boot.Kind != KindCommitted && boot.Kind != KindTrial {
				t.Fatalf("restart %d from %v: %v", i, start, boot)
			}
			s = s.returned(boot)
		}
		s.Given = 0
		if s != start {
			t.Errorf("%v became %v", start, s)
		}
		visited := map[Rung]bool{}
		for range 30 { // the tries of a trial and of the rungs, and what is given back
			var boot device.Boot
			boot, s = Next(s)
			visited[s.Rung] = true
			s = s.returned(boot)
		}
		if !visited[RungRescue] {
			t.Errorf("30 orderly restarts from %v end in %v, without a turn for rescue", start, s)
		}
	}
}
