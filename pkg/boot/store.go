package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/slot"
)

// Errors of a Store, for callers that branch.
var (
	// ErrUnknown: no copy is valid, so nothing says which slot is proven. GRUB then
	// boots slot A and slot B by turns. Commit is the way out: it names the running slot.
	ErrUnknown = errors.New("no copy of the boot state is valid")
	// ErrOneCopy: the change is in effect, but one copy could not be written, and
	// the next fault of the other one loses the state. A warning.
	ErrOneCopy = errors.New("the boot state is changed, but only one copy could be written")
	// ErrNotWritten: the slot was not proven to hold an image.
	ErrNotWritten = errors.New("nothing proves what the slot holds")
)

// Store is the boot state in its two files. It holds nothing of them in memory:
// GRUB changes them too, at every boot of a trial.
type Store struct {
	paths [2]string
	open  func(path string) (medium, error)
}

// Open names the two copies, first copy a, which wins when both have the same
// sequence number. The files need not exist: Load says what is wrong with them.
func Open(paths [2]string) (*Store, error) {
	if paths[0] == "" || paths[1] == "" {
		return nil, errors.New("opening boot state: want the paths of two copies")
	}
	a, errA := os.Stat(paths[0])
	b, errB := os.Stat(paths[1])
	if paths[0] == paths[1] || errA == nil && errB == nil && os.SameFile(a, b) {
		return nil, fmt.Errorf("opening boot state: %s and %s are the same file, want two copies", paths[0], paths[1])
	}
	return &Store{paths: paths, open: openFile}, nil
}

// Load returns the state that GRUB will find at the next boot, and what is wrong
// with either copy. It fails with ErrUnknown when no copy is valid; the problems
// then say why. It changes nothing.
func (s *Store) Load() (State, []Problem, error) {
	found := s.load()
	if found.winner < 0 {
		return State{}, found.problems, fmt.Errorf("loading boot state: %w (%v; %v)",
			ErrUnknown, found.problems[0], found.problems[1])
	}
	return found.record().state, found.problems, nil
}

// loaded is what both copies were found to hold.
type loaded struct {
	copies   [2]reading
	winner   int // the copy that counts, -1 for none
	problems []Problem
}

func (l loaded) record() record { return l.copies[l.winner].record }

func (s *Store) load() loaded {
	l := loaded{winner: -1}
	for i, path := range s.paths {
		l.copies[i] = read(path)
		if l.copies[i].err == nil && (l.winner < 0 || l.copies[i].record.seq > l.record().seq) {
			l.winner = i
		}
	}
	for i, c := range l.copies {
		switch {
		case c.err != nil:
			l.problems = append(l.problems, Problem{s.paths[i], c.err})
		case c.flaw != nil:
			l.problems = append(l.problems, Problem{s.paths[i], c.flaw})
		case c.record != l.record():
			l.problems = append(l.problems, Problem{s.paths[i], ErrOlder})
		}
	}
	return l
}

// Arm puts the slot that w proves on trial for the given number of boots, 1 to
// MaxTries. It fails with ErrNotWritten for the zero Written and with ErrState
// unless a proven slot is committed and w is the other one.
func (s *Store) Arm(w slot.Written, tries int) error {
	if !w.Valid() {
		return fmt.Errorf("arming a trial: %w", ErrNotWritten)
	}
	return s.change("arming a trial", func(st State) (State, error) { return st.armed(w.Slot(), tries, false) })
}

// ArmProven puts a slot on trial that the caller knows to hold a system which was
// committed once: the way back by hand. It refuses what Arm refuses.
func (s *Store) ArmProven(target device.Slot, tries int) error {
	return s.change("arming a trial", func(st State) (State, error) { return st.armed(target, tries, true) })
}

// Disarm makes the slot that does not run free to be written: when it has
// returned, no copy names that slot or counts on it. A trial that has not been
// booted is taken back, and the slot is no rung of the ladder. booted, the running
// slot, is committed afterwards, also where the state named the other one, which
// GRUB could not use. It fails with ErrState when the slot on trial is the one
// that runs, and when a failed slot runs that nobody acknowledged.
func (s *Store) Disarm(booted device.Slot) error {
	return s.change("disarming the trial", func(st State) (State, error) { return st.disarmed(booted) })
}

// TakeBack ends a trial that has not been booted, without touching the slot: booted,
// the running slot, is committed. It fails with ErrState when no such trial waits.
func (s *Store) TakeBack(booted device.Slot) error {
	return s.change("taking the trial back", func(st State) (State, error) { return st.takenBack(booted) })
}

// Commit makes the booted slot the proven one, with all its tries: after a trial,
// after GRUB had to boot the other slot than the committed one, and when no copy
// is valid. The slot that was proven before stays a rung of the ladder. It fails
// with ErrState when the other slot is on trial, or a failure is unacknowledged.
func (s *Store) Commit(booted device.Slot) error {
	if _, err := device.ParseSlot(string(booted)); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	err := s.change("committing", func(st State) (State, error) { return st.committed(booted) })
	if errors.Is(err, ErrUnknown) {
		return s.put("committing", record{1, whole(booted, false)}, 0)
	}
	return err
}

// FallBack ends a trial as failed: the other slot is booted until Acknowledge.
// It changes nothing when the machine fell back already, and fails with ErrState
// when nothing was on trial.
func (s *Store) FallBack() error {
	return s.change("falling back", func(st State) (State, error) {
		if st.Phase == Committed {
			return st.refuse("nothing is on trial")
		}
		return st.fallenBack(), nil
	})
}

// Acknowledge says that the failure of the other slot is on record, durably: the
// proven slot is committed again, with all its tries. It fails with ErrState on
// trial.
func (s *Store) Acknowledge() error {
	return s.change("acknowledging the failure", State.acknowledged)
}

// Settle says that the machine came up: the first rung and all tries are given
// back, and a damaged copy is repaired. On trial it only repairs; a trial ends by
// Commit or FallBack.
func (s *Store) Settle() error {
	return s.change("settling", func(st State) (State, error) { return st.settled(), nil })
}

// GiveBack gives the try of this boot back: the machine is shut down in good
// order before it was settled. booted is what GRUB said of this boot. It changes
// nothing when GRUB took no try for it, when the tries are complete, and after
// MaxGiven times without a Settle, Commit or Acknowledge. To be called once a boot.
func (s *Store) GiveBack(booted device.Boot) error {
	return s.change("giving the try back", func(st State) (State, error) { return st.returned(booted), nil })
}

// Repair makes both copies whole and equal again; the state stays. It writes
// nothing if they are, and fails with ErrUnknown when no copy is valid.
func (s *Store) Repair() error {
	return s.change("repairing", func(st State) (State, error) { return st, nil })
}

// Rewrite writes both copies as they are, whole and equal. It proves, without
// changing the state, that it can be changed, and fails with ErrOneCopy or an
// error of the medium where that is not so, and with ErrUnknown when no copy is
// valid.
func (s *Store) Rewrite() error {
	const action = "checking that the boot state can be written"
	found := s.load()
	if found.winner < 0 {
		return fmt.Errorf("%s: %w (%v; %v)", action, ErrUnknown, found.problems[0], found.problems[1])
	}
	r := found.record()
	r.seq = max(r.seq, 1) // the system before osctl had no numbers
	return s.put(action, r, 1-found.winner)
}

// change applies a transition and writes the result, or nothing if both copies
// hold it already.
func (s *Store) change(action string, transition func(State) (State, error)) error {
	found := s.load()
	if found.winner < 0 {
		return fmt.Errorf("%s: %w (%v; %v)", action, ErrUnknown, found.problems[0], found.problems[1])
	}
	now := found.record()
	state, err := transition(now.state)
	if err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	if state == now.state && len(found.problems) == 0 {
		return nil
	}
	// The better copy is written last: while the other one is written, it is the
	// only one that a cut cannot harm. Equal copies are written a, then b.
	first := 1 - found.winner
	if len(found.problems) == 0 {
		first = 0
	}
	return s.put(action, record{next(now.seq), state}, first)
}

// put writes both copies, the given one first, and a copy that fails does not
// keep the other one from being written: a state that has one good copy left is
// better than one that can never change again. What counts in the end is what the
// next boot will find.
//
// Between the two writes the new copy wins, as its number is higher. After the
// largest number comes 1, and there the old copy wins until both are written.
func (s *Store) put(action string, r record, first int) error {
	block, err := r.encode()
	if err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	var failed error
	for _, i := range [2]int{first, 1 - first} {
		if err := s.write(s.paths[i], block); err != nil {
			failed = errors.Join(failed, fmt.Errorf("writing %s: %w", s.paths[i], err))
		}
	}
	if failed == nil {
		return nil
	}
	if after := s.load(); after.winner >= 0 && after.record() == r {
		return fmt.Errorf("%s: %w: %w", action, ErrOneCopy, failed)
	}
	return fmt.Errorf("%s: the change is not in effect: %w", action, failed)
}

func (s *Store) write(path string, block []byte) error {
	m, err := s.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path, block); err != nil {
			return err
		}
		m, err = s.open(path)
	}
	if err != nil {
		return err
	}
	return errors.Join(overwrite(m, block), m.Close())
}
