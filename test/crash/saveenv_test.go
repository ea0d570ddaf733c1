package crash

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
)

// saving explores the cuts while GRUB itself saves the boot state.
type saving struct {
	*judge
	t        *testing.T
	slots    [2]model.Volume
	boots    int // that were recorded
	states   int // distinct ones that cuts left
	neither  int // of those, without a valid copy
	failures map[error]int
	seen     map[[sha256.Size]byte]bool
}

// TestCutsInGrub cuts the power at every write that GRUB makes to the disk: on each
// boot from a fresh trial down to the fall back, and from a committed slot down its
// ladder. From each state that is left GRUB boots again, and is cut again.
func TestCutsInGrub(t *testing.T) {
	s := newSite(t)
	j := newJudge(s, t)
	for _, start := range []struct {
		name    string
		prepare func(m machine)
		boots   int
	}{
		{"a trial", func(m machine) { m.must(committedA, s.upgradeTo("1.1")...) }, 5},
		{"a committed slot", func(machine) {}, 5},
	} {
		m := s.newMachine()
		start.prepare(m)
		w, state, err := record.Read(m.dir, s.pool, roots()...)
		if err != nil {
			t.Fatal(err)
		}
		v := &saving{judge: j, t: t, slots: slots(w, state), failures: map[error]int{}, seen: map[[sha256.Size]byte]bool{}}
		now := copies(w, state)
		for range start.boots {
			now = v.cut(now, 2)
		}
		t.Logf("from %s: %d boots of GRUB recorded, %d distinct states after one or two cuts | bricked %d, wrong slot %d, no valid copy after two destroyed sectors %d",
			start.name, v.boots, v.states, v.failures[errBricked], v.failures[errWrongSlot], v.neither)
		if v.states == 0 {
			t.Error("nothing was explored")
		}
	}
}

// cut records one boot, judges what a cut in it leaves, and returns what the whole
// boot leaves. depth is how many boots in a row are cut.
func (v *saving) cut(before [2][]byte, depth int) [2][]byte {
	v.t.Helper()
	log, node, after := v.record(before)
	v.boots++
	then := v.mustBoot(after)
	now := v.mustBoot(before)
	_, err := model.Explore(log.Base, log.Ops, model.Bounds{Exhaustive: 8, Seed: seed}, func(s model.State, c model.Cut) error {
		left := v.copiesOn(s.Volume(node))
		key := sha256.Sum256([]byte(fmt.Sprintf("%q", left)))
		if v.seen[key] {
			return nil
		}
		v.seen[key] = true
		v.states++
		if err := v.allowed(before, after, left, now.booted, then.booted); err != nil {
			for _, kind := range kinds() {
				if errors.Is(err, kind) {
					v.failures[kind]++
				}
			}
			v.t.Errorf("%v: %v", c, err)
			return nil
		}
		if depth > 1 {
			v.cut(left, depth-1)
		}
		return nil
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return after
}

// allowed judges the copies that a cut left: the state is the one before the boot, the
// one after it, or what the other copy said, where an earlier cut had kept the two
// apart; and GRUB boots what belongs to it. Where the cut destroyed a sector that GRUB
// cannot write around, it boots the proven slot unsaved. Two cuts may destroy both
// copies: then it boots slot A, as it does on a machine without a boot state.
func (v *saving) allowed(before, after, left [2][]byte, now, then booted) error {
	got := v.mustBoot(left)
	if got.slot == "" {
		return fmt.Errorf("%w: %s", errBricked, got.output)
	}
	state, err := v.load(left)
	if errors.Is(err, boot.ErrUnknown) && v.damaged(before) {
		v.neither++
		if got.booted != (booted{"A", "unsaved"}) {
			return fmt.Errorf("%w: without a valid copy GRUB boots %v", errWrongSlot, got.booted)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errWrongSlot, err)
	}
	may := []booted{now, then}
	var states []boot.State
	for _, c := range [][2][]byte{before, after, {before[0], before[0]}, {before[1], before[1]}} {
		if known, err := v.load(c); err == nil {
			states = append(states, known)
			may = append(may, v.mustBoot(c).booted, booted{string(known.Proven()), "unsaved"})
		}
	}
	if !slices.Contains(states, state) {
		return fmt.Errorf("%w: the boot state is %v, not one of %v", errWrongSlot, state, states)
	}
	if !slices.Contains(may, got.booted) {
		return fmt.Errorf("%w: GRUB boots %v: %s", errWrongSlot, got.booted, got.output)
	}
	return nil
}

// damaged reports whether a copy has no value that counts.
func (v *saving) damaged(c [2][]byte) bool {
	for i := range c {
		if _, err := v.load([2][]byte{c[i], c[i]}); err != nil {
			return true
		}
	}
	return false
}

func (v *saving) mustBoot(c [2][]byte) verdict {
	v.t.Helper()
	got, err := v.boot(c, v.slots)
	if err != nil {
		v.t.Fatal(err)
	}
	return got
}

// record lets GRUB boot under strace.
func (v *saving) record(before [2][]byte) (record.Log, *model.Node, [2][]byte) {
	v.t.Helper()
	for i := range before {
		if err := errors.Join(v.grub.SetCopy(i, before[i]), v.grub.SetSlot(i, v.slots[i])); err != nil {
			v.t.Fatal(err)
		}
	}
	cmd, err := v.grub.Command()
	if err != nil {
		v.t.Fatal(err)
	}
	world, base, err := record.Read(filepath.Dir(v.grub.Disk()), v.pool, record.Root{Name: filepath.Base(v.grub.Disk()), FS: model.FAT, Block: true})
	if err != nil {
		v.t.Fatal(err)
	}
	log, err := world.Run(v.t.Context(), base, cmd)
	if err != nil {
		v.t.Fatal(err)
	}
	node := world.Nodes[filepath.Base(v.grub.Disk())]
	after := v.copiesOn(log.After.Volume(node))
	for i := range after {
		if real, err := v.grub.Copy(i, len(after[i])); err != nil || string(real) != string(after[i]) {
			v.t.Fatalf("the recorder missed something of GRUB's: copy %d is %q, recorded %q, %v", i, real, after[i], err)
		}
	}
	return log, node, after
}

// copiesOn reads the copies from a disk.
func (v *saving) copiesOn(disk model.Volume) [2][]byte {
	var c [2][]byte
	for i, at := range v.grub.CopyPlaces() {
		c[i] = disk.Chunk(int(at / model.ChunkSize))[at%model.ChunkSize:][:1024]
	}
	return c
}
