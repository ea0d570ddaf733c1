package crash

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
)

// partition is the file of the rescue partition, as large as a slot.
const partition = "R.img"

// replacement is the recorded write of a new rescue system over an old one.
type replacement struct {
	*judge
	old, next    image
	world        *record.World
	log          record.Log
	args         []string
	whole, empty int
	converged    int
}

// TestCutsInRescue cuts the power while the rescue partition of a machine that runs
// gets another system. Slots and boot state are what they were; the partition is the
// old one, the new one, or nothing that GRUB could start; and what is kept of its
// image is about what it holds.
func TestCutsInRescue(t *testing.T) {
	s := newSite(t)
	j := newJudge(s, t)
	r := j.replaceRescue()
	seen := map[[sha256.Size]byte]bool{}
	counts, err := model.Explore(r.log.Base, r.log.Ops, bounds(), func(now model.State, c model.Cut) error {
		key, atEnd := now.Hash(r.world.List()...), c.Before == "the end"
		if seen[key] && !atEnd {
			return nil
		}
		first := !seen[key]
		seen[key] = true
		err := r.look(now, atEnd)
		if err == nil && first && len(seen)%11 == 1 && r.converged < most() {
			r.converged++
			err = r.again(now)
		}
		if err != nil {
			t.Errorf("%v: %v", c, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rescue partition: %d calls, %d pending at most, %d distinct states: %d with a whole rescue system, %d with none; %d continued",
		r.log.Calls, counts.Most, len(seen), r.whole, r.empty, r.converged)
	if r.whole == 0 || r.empty == 0 || r.converged == 0 {
		t.Error("the cuts did not reach every stage")
	}
}

// replaceRescue records the command on a machine that has a rescue system.
func (j *judge) replaceRescue() *replacement {
	s := j.site
	s.t.Helper()
	r := &replacement{judge: j, old: s.image("gateway-rescue", "1.0", 20), next: s.image("gateway-rescue", "1.1", 21)}
	m := s.newMachine()
	s.writeFile(m.path(partition), make([]byte, slotMiB<<20))
	m.must(committedA, "install", "--rescue", r.old.layout, "--progress", "none")
	r.args = []string{"install", "--rescue", r.next.layout, "--progress", "none"}
	world, base, err := record.Read(m.dir, s.pool, r.roots()...)
	if err != nil {
		s.t.Fatal(err)
	}
	r.world = world
	if r.log, err = world.Run(s.t.Context(), base, m.command(committedA, r.args...)); err != nil {
		s.t.Fatal(err)
	}
	if v := r.log.After.Volume(world.Nodes[partition]); !same(v, r.next.volume) {
		s.t.Fatal("the recorder missed something: the partition does not hold the new system")
	}
	return r
}

func (r *replacement) roots() []record.Root {
	return append(roots(), record.Root{Name: partition, Block: true})
}

// same reports whether a volume holds an image.
func same(v, image model.Volume) bool {
	for c := range imageMiB {
		if !v.SameChunk(image, c) {
			return false
		}
	}
	return true
}

// look judges one state.
func (r *replacement) look(now model.State, atEnd bool) error {
	for _, name := range []string{"efi", "A.img", "B.img"} {
		if n := r.world.Nodes[name]; now.Hash(n) != r.log.Base.Hash(n) {
			return fmt.Errorf("%w: %s was changed", errInvariant, name)
		}
	}
	kept := func(s model.State) *model.Node { return s.Look(r.world.Nodes["data"], "osctl", "slots", "rescue.json") }
	v := now.Volume(r.world.Nodes[partition])
	old, next := same(inside(v), inside(r.old.volume)), same(inside(v), inside(r.next.volume))
	if old || next {
		r.whole++
	} else {
		r.empty++
		starts, err := r.canStart(v)
		if err != nil || starts {
			return fmt.Errorf("%w: the rescue partition is incomplete, and GRUB would find a kernel in it: %w", errInvariant, err)
		}
	}
	switch n := kept(now); {
	case n == nil:
	case string(now.Content(n)) == string(r.log.Base.Content(kept(r.log.Base))) && !old,
		string(now.Content(n)) == string(r.log.After.Content(kept(r.log.After))) && !same(v, r.next.volume):
		return fmt.Errorf("%w: what is kept of the rescue system is not about what is there", errInvariant)
	}
	if atEnd && (kept(now) == nil || !same(v, r.next.volume)) {
		return fmt.Errorf("%w: the command had ended well, and the rescue system or what is kept of it is missing", errLostUpdate)
	}
	return nil
}

// again runs the same command on a state.
func (r *replacement) again(now model.State) error {
	dir, err := os.MkdirTemp(r.fast, "converge")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the test's folder
	m := machine{r.site, dir}
	m.fixed()
	if err := r.world.Put(now, dir); err != nil {
		return err
	}
	if result := m.run(committedA, r.args...); result.code != 0 {
		return fmt.Errorf("%w: the same command again: %v", errNotConverged, result)
	}
	w, s, err := record.Read(m.dir, r.pool, r.roots()...)
	if err == nil && !same(s.Volume(w.Nodes[partition]), r.next.volume) {
		err = errors.New("the rescue system is not whole")
	}
	if err != nil {
		return fmt.Errorf("%w: after the same command again: %w", errNotConverged, err)
	}
	return nil
}
