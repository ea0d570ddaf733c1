package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/health"
)

// The files of a gate in the runtime directory. The lock says that its writer lives;
// it is another file because the first one is replaced at every change.
const (
	gateFile = "gate.json"
	gateLock = "gate.lock"
)

// Gate is a health gate that runs at this moment.
type Gate struct {
	// Started is by the wall clock, which may have been set meanwhile.
	Started time.Time `json:"started"`
	// SecondsLeft is the longest time until its verdict.
	SecondsLeft int `json:"secondsLeft"`
	// SoakSecondsLeft is how long everything still has to hold; absent while something
	// does not.
	SoakSecondsLeft *int `json:"soakSecondsLeft,omitempty"`
	// Checks counts the checks that decide.
	Checks int `json:"checks"`
	// Waiting are those of them that do not hold.
	Waiting []Awaited `json:"waiting"`
}

// Awaited is a check that does not hold yet.
type Awaited struct {
	Name     string `json:"name"`
	Seen     string `json:"seen"`
	Expected string `json:"expected"`
}

// gateNote is the file: the progress as the gate told it, and when that was by the
// clock that counts from the machine's start and is never set.
type gateNote struct {
	health.Progress
	Noted time.Duration `json:"notedNs"`
}

// GateNotes keeps the progress of a running gate for others to read.
type GateNotes struct {
	dir  string
	lock *os.File // held; nil while another gate has it
}

// NoteGate begins to keep the progress of a gate in a runtime directory, which is
// created if need be. Of two gates at a time the first one is kept.
func NoteGate(dir string) *GateNotes { return &GateNotes{dir: dir} }

// Note replaces what was kept. The error is for a log: no gate fails for it.
func (n *GateNotes) Note(p health.Progress) error {
	if err := n.take(); err != nil || n.lock == nil {
		return err
	}
	now, err := sinceStart()
	if err != nil {
		return err
	}
	data, err := json.Marshal(gateNote{p, now})
	if err != nil {
		return fmt.Errorf("noting the gate's progress: %w", err)
	}
	return atomicfile.Write(filepath.Join(n.dir, gateFile), data, 0o644)
}

// End says that the gate runs no more.
func (n *GateNotes) End() error {
	if n.lock == nil {
		return nil
	}
	err := errors.Join(n.clear(), n.lock.Close())
	n.lock = nil
	return err
}

func (n *GateNotes) clear() error {
	err := os.Remove(filepath.Join(n.dir, gateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// take takes the lock if nobody has it. A lock of an open file can be asked for
// without taking it, so a reader is never in a writer's way (fcntl(2), "Open file
// description locks").
func (n *GateNotes) take() error {
	if n.lock != nil {
		return nil
	}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return fmt.Errorf("noting the gate's progress: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(n.dir, gateLock), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("noting the gate's progress: %w", err)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == nil {
		n.lock = f
		// What one left behind that was killed is not this one's.
		return n.clear()
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = nil // another gate is kept
	}
	return errors.Join(err, f.Close())
}

// ReadGate reads of the gate that runs, by what is kept in a runtime directory; nil
// if none does. What a gate left behind that was killed counts for nothing.
func ReadGate(dir string) (*Gate, error) {
	alive, err := gateRuns(dir)
	if err != nil || !alive {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, gateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it has just begun, or ended
	}
	if err != nil {
		return nil, fmt.Errorf("reading the gate's progress: %w", err)
	}
	var n gateNote
	if err := json.Unmarshal(data, &n); err != nil {
		return nil, fmt.Errorf("reading the gate's progress: %w", err)
	}
	now, err := sinceStart()
	if err != nil {
		return nil, err
	}
	return n.at(now), nil
}

// at is the gate as it stands a while after the note.
func (n gateNote) at(now time.Duration) *Gate {
	passed := max(now-n.Noted, 0)
	g := &Gate{Started: n.Started, SecondsLeft: seconds(n.Deadline - n.Elapsed - passed), Waiting: []Awaited{}}
	for _, c := range n.Checks {
		if !c.Required {
			continue
		}
		g.Checks++
		if !c.OK {
			g.Waiting = append(g.Waiting, Awaited{Name: c.Name, Seen: c.Seen, Expected: c.Expected})
		}
	}
	if n.Held != nil {
		left := min(seconds(n.Steady-*n.Held-passed), g.SecondsLeft)
		g.SoakSecondsLeft = &left
	}
	return g
}

// seconds rounds up: what is left is never said to be less than it is.
func seconds(d time.Duration) int { return max(int(math.Ceil(d.Seconds())), 0) }

// gateRuns reports whether somebody holds the lock of the notes.
func gateRuns(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, gateLock))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking whether a gate runs: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("asking whether a gate runs: %w", err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

// sinceStart is how long this machine has been up. Unlike the wall clock it is the
// same for all processes and is never set.
func sinceStart() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("reading the clock since the start: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
