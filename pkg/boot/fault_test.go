package boot

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/grubenv"
)

// faulty is a copy whose writes go wrong.
type faulty struct {
	medium
	fault string
}

var errPlanted = errors.New("planted fault")

func (f faulty) WriteAt(p []byte, off int64) (int, error) {
	switch f.fault {
	case "error":
		return 0, errPlanted
	case "lost":
		return len(p), nil
	case "torn":
		return f.medium.WriteAt(p[:grubenv.Sector/8], off)
	}
	return f.medium.WriteAt(p, off)
}

func (f faulty) ReadBack() ([]byte, error) {
	if f.fault == "unreadable" {
		return nil, errPlanted
	}
	return f.medium.ReadBack()
}

// plant makes the writes to some copies go wrong.
func plant(s *Store, faults [2]string) {
	s.open = func(path string) (medium, error) {
		m, err := openFile(path)
		for i := range faults {
			if path == s.paths[i] && faults[i] == "open" {
				return nil, errors.Join(errPlanted, m.Close())
			}
			if path == s.paths[i] && err == nil {
				m = faulty{m, faults[i]}
			}
		}
		return m, err
	}
}

func TestFaultyWrites(t *testing.T) {
	now, then := trial(slotB, 2), whole(slotB, true)
	wants := map[string]error{"": nil, "error": errPlanted, "lost": ErrReadBack, "open": errPlanted, "torn": ErrReadBack}
	for a, wantA := range wants {
		for b, wantB := range wants {
			t.Run(fmt.Sprintf("a=%s b=%s", a, b), func(t *testing.T) {
				s := both(t, 7, now)
				plant(s, [2]string{a, b})
				err := s.Commit(slotB)
				st, _, loadErr := s.Load()
				switch {
				case a == "" && b == "":
					if err != nil || st != then {
						t.Errorf("%v, %v", st, err)
					}
				case a == "" || b == "":
					if !errors.Is(err, ErrOneCopy) || loadErr != nil || st != then {
						t.Errorf("%v, %v, %v; want ErrOneCopy and the new state", st, err, loadErr)
					}
				case a == "torn" && b == "torn":
					if errors.Is(err, ErrOneCopy) || !errors.Is(loadErr, ErrUnknown) {
						t.Errorf("%v, %v; want ErrUnknown of Load", err, loadErr)
					}
				default:
					if errors.Is(err, ErrOneCopy) || loadErr != nil || st != now {
						t.Errorf("%v, %v, %v; want an error and the old state", st, err, loadErr)
					}
				}
				for _, want := range []error{wantA, wantB} {
					if want != nil && !errors.Is(err, want) {
						t.Errorf("%v, want %v in it", err, want)
					}
				}
			})
		}
	}
}

// TestUnreadableAfterWrite: a copy that cannot be read back is no success.
func TestUnreadableAfterWrite(t *testing.T) {
	s := both(t, 7, trial(slotB, 2))
	plant(s, [2]string{"unreadable", ""})
	if err := s.Commit(slotB); !errors.Is(err, errPlanted) || !errors.Is(err, ErrOneCopy) {
		t.Errorf("Commit: %v", err)
	}
}

// TestWorseCopyIsWrittenFirst: with one good copy, a cut in the first write must
// not touch it.
func TestWorseCopyIsWrittenFirst(t *testing.T) {
	now := trial(slotB, 2)
	good := block(t, 7, now)
	for name, c := range map[string]struct {
		a, b  []byte
		first int
	}{
		"equal":     {good, good, 0},
		"a garbage": {make([]byte, 1024), good, 0},
		"b garbage": {good, make([]byte, 1024), 1},
		"a older":   {block(t, 6, now), good, 0},
		"b older":   {good, block(t, 6, now), 1},
		"b missing": {good, nil, 1},
	} {
		s := newStore(t, c.a, c.b)
		var order []string
		s.open = func(path string) (medium, error) {
			if len(order) == 0 || order[len(order)-1] != path {
				order = append(order, path)
			}
			return openFile(path)
		}
		if err := s.Commit(slotB); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{s.paths[c.first], s.paths[1-c.first]}, order); diff != "" {
			t.Errorf("%s: order of the writes (-want +got):\n%s", name, diff)
		}
	}
}
