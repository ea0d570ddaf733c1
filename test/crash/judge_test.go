package crash

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/test/crash/grub"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
)

// What a state may be found to be. Each is a failure of the test.
var (
	errBricked      = errors.New("bricked")
	errWrongSlot    = errors.New("wrong slot")
	errLostUpdate   = errors.New("lost update")
	errInvariant    = errors.New("an invariant is broken")
	errNotConverged = errors.New("not converged")
)

// judge boots states with GRUB. What it found once it does not ask again.
type judge struct {
	*site
	grub *grub.Machine
	// verdicts are GRUB's, by the content of the copies and the kinds of the slots.
	verdicts map[[sha256.Size]byte]verdict
	// startable says, by a slot's content, whether GRUB finds a kernel in it.
	startable map[[sha256.Size]byte]bool
	// asked and headless count the questions, boots those that GRUB answered.
	asked, headless, boots int
	fast                   string
}

// verdict is one boot: what was started, and the copies afterwards.
type verdict struct {
	booted
	copies [2][]byte
	output string
}

func newJudge(s *site, t *testing.T) *judge {
	t.Helper()
	return &judge{site: s, grub: newGrub(s, t, s.grubConfig), verdicts: map[[sha256.Size]byte]verdict{}, startable: map[[sha256.Size]byte]bool{}, fast: s.fastDir(t)}
}

func newGrub(s *site, t *testing.T, script []byte) *grub.Machine {
	t.Helper()
	g, err := grub.New(s.fastDir(t), script, slotMiB<<20, s.pool.Zeros(slotMiB<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// copies are the contents of the copies of the boot state, nil for none.
func copies(w *record.World, s model.State) [2][]byte {
	var c [2][]byte
	for i, name := range []string{"a", "b"} {
		if n := s.Look(w.Nodes["efi"], "osctl", name, "grubenv"); n != nil {
			c[i] = append([]byte{}, s.Content(n)...)
		}
	}
	return c
}

func slots(w *record.World, s model.State) [2]model.Volume {
	return [2]model.Volume{s.Volume(w.Nodes["A.img"]), s.Volume(w.Nodes["B.img"])}
}

// boot runs GRUB on these copies and slots. Slots that GRUB cannot tell apart have
// one verdict; now and then it is asked for again, which must not change it.
func (j *judge) boot(c [2][]byte, v [2]model.Volume) (verdict, error) {
	h := sha256.New()
	for i := range c {
		kind, err := j.kind(v[i])
		if err != nil {
			return verdict{}, err
		}
		fmt.Fprintf(h, "%s %t %x ", kind, c[i] == nil, c[i])
	}
	key := [sha256.Size]byte(h.Sum(nil))
	known, ok := j.verdicts[key]
	if j.asked++; ok && j.asked%spotCheck != 0 {
		return known, nil
	}
	got, err := j.bootNow(c, v)
	if err != nil {
		return got, err
	}
	if ok && (got.booted != known.booted || fmt.Sprint(got.copies) != fmt.Sprint(known.copies)) {
		return got, fmt.Errorf("GRUB boots %v from what it booted %v from before: %s", got.booted, known.booted, got.output)
	}
	j.verdicts[key] = got
	return got, nil
}

// spotCheck is how often GRUB is asked although the answer is known.
const spotCheck = 50

func (j *judge) bootNow(c [2][]byte, v [2]model.Volume) (verdict, error) {
	for i := range c {
		if err := errors.Join(j.grub.SetCopy(i, c[i]), j.grub.SetSlot(i, v[i])); err != nil {
			return verdict{}, err
		}
	}
	b, err := j.grub.Boot(j.t.Context())
	if err != nil {
		return verdict{}, err
	}
	j.boots++
	out := verdict{booted: booted{b.Slot, b.Kind}, output: b.Output}
	for i := range c {
		if c[i] != nil {
			if out.copies[i], err = j.grub.Copy(i, len(c[i])); err != nil {
				return verdict{}, err
			}
		}
	}
	return out, nil
}

// kind is what GRUB can tell of a slot: the release that it holds whole, "nothing"
// where it finds no kernel, or else which incomplete content it takes for a system.
func (j *judge) kind(v model.Volume) (string, error) {
	if release := j.holds(v); release != "" {
		return release, nil
	}
	if starts, err := j.canStart(v); err != nil || !starts {
		return "nothing", err
	}
	return fmt.Sprintf("incomplete %x", v.Hash()), nil
}

// bootMachine runs GRUB on the files of a machine, and leaves there what it saved.
func (j *judge) bootMachine(m machine) (booted, error) {
	w, s, err := record.Read(m.dir, j.pool, roots()...)
	if err != nil {
		return booted{}, err
	}
	v, err := j.boot(copies(w, s), slots(w, s))
	if err != nil {
		return booted{}, err
	}
	return v.booted, m.putCopies(v.copies)
}

// putCopies writes the copies as GRUB left them.
func (m machine) putCopies(c [2][]byte) error {
	for i, name := range []string{"a", "b"} {
		if c[i] == nil {
			continue
		}
		if err := os.WriteFile(m.path("efi/osctl/"+name+"/grubenv"), c[i], 0o600); err != nil {
			return err
		}
	}
	return nil
}

// holds says which release a slot holds whole, empty for none.
func (j *judge) holds(v model.Volume) string {
	for version, i := range j.images {
		same := true
		for c := 0; c < imageMiB && same; c++ {
			same = v.SameChunk(i.volume, c)
		}
		if same {
			return version
		}
	}
	return ""
}

// head is the first block, which holds the superblock of the file systems that an
// image may have, in bytes.
const head = 4096

// canStart says whether GRUB would find a kernel in a slot. Of the slots without a
// superblock it is asked for one in so many.
func (j *judge) canStart(v model.Volume) (bool, error) {
	key := v.Hash()
	if known, ok := j.startable[key]; ok {
		return known, nil
	}
	if bytes.Equal(v.Chunk(0)[:head], make([]byte, head)) {
		if j.headless++; j.headless%spotCheck != 1 {
			return false, nil
		}
	}
	if err := j.grub.SetSlot(1, v); err != nil {
		return false, err
	}
	found, err := j.grub.Finds(j.t.Context(), 1)
	j.boots++
	j.startable[key] = found
	return found, err
}

// state judges one state of an operation that a cut left, and returns what GRUB did
// with it.
func (j *judge) state(o *operation, r *recording, w *record.World, s model.State, atEnd bool) (verdict, error) {
	v := slots(w, s)
	got, err := j.boot(copies(w, s), v)
	if err != nil {
		return got, err
	}
	switch got.booted {
	case booted{}:
		return got, fmt.Errorf("%w: GRUB starts nothing: %s", errBricked, got.output)
	case o.after:
	case o.before, o.via:
		if atEnd && o.before != o.after {
			return got, fmt.Errorf("%w: the command had ended well, and GRUB boots %v", errLostUpdate, got.booted)
		}
	default:
		if got.kind != "unsaved" || !strings.Contains(o.proven, got.slot) {
			return got, fmt.Errorf("%w: GRUB boots %v: %s", errWrongSlot, got.booted, got.output)
		}
	}
	return got, errors.Join(j.bootable(o, r, v, got.booted), j.named(o, r, copies(w, s), v), j.books(o, r, w, s, got.booted))
}

// load reads copies of the boot state as osctl does.
func (j *judge) load(c [2][]byte) (boot.State, error) {
	var paths [2]string
	for i := range c {
		paths[i] = filepath.Join(j.fast, "copy"+fmt.Sprint(i))
		err := os.WriteFile(paths[i], c[i], 0o600)
		if c[i] == nil {
			err = os.Remove(paths[i])
		}
		if err != nil {
			return boot.State{}, err
		}
	}
	store, err := boot.Open(paths)
	if err != nil {
		return boot.State{}, err
	}
	s, _, err := store.Load()
	return s, err
}

// named holds that the boot state names no slot that is not whole (3), also not as
// one that a later boot would go down to; or that one is as it was before.
func (j *judge) named(o *operation, r *recording, c [2][]byte, v [2]model.Volume) error {
	s, err := j.load(c)
	if err != nil {
		return fmt.Errorf("%w: %w", errInvariant, err)
	}
	names := []device.Slot{s.Rootfs}
	if s.Phase == boot.Trial || s.Other {
		names = append(names, s.Rootfs.Other())
	}
	for _, n := range names {
		as := v[n[0]-'A']
		if j.holds(as) == "" && !(o.damaged && n == device.SlotB && as.Hash() == r.other) {
			return fmt.Errorf("%w: the boot state is %v, and slot %s is not whole", errInvariant, s, n)
		}
	}
	return nil
}

// bootable holds the invariants about the slots: the running one is untouched (1),
// nothing incomplete is bootable (2, 3, 8), and something complete boots (4).
func (j *judge) bootable(o *operation, r *recording, v [2]model.Volume, got booted) error {
	running := int(o.on.slot[0] - 'A')
	if v[running].Hash() != r.running {
		return fmt.Errorf("%w: the running slot was changed", errInvariant)
	}
	index := int(got.slot[0] - 'A')
	release := j.holds(v[index])
	if release == "" {
		return fmt.Errorf("%w: slot %s is incomplete, and GRUB boots it as %s", errWrongSlot, got.slot, got.kind)
	}
	if release != o.image[got.slot] && (got != o.before || release != o.old) {
		return fmt.Errorf("%w: slot %s holds %s", errWrongSlot, got.slot, release)
	}
	other := v[1-running]
	if j.holds(other) != "" || j.holds(inside(other)) != "" || o.damaged && inside(other).Hash() == r.inside {
		return nil
	}
	starts, err := j.canStart(other)
	if err == nil && starts {
		err = fmt.Errorf("%w: the slot that is written is incomplete, and GRUB would find a kernel in it", errInvariant)
	}
	return err
}

// inside is a slot without the two sectors before the superblock, which belong to no
// file system: where a cut destroyed one of those, it is incomplete for osctl and
// whole for a kernel.
func inside(v model.Volume) model.Volume { return v.Write(0, make([]byte, 2*model.Sector)) }

// books holds the invariants about the data partition: the floor rises only at a
// commit (6), the ledger can be read, and the /etc of a slot that boots is whole.
func (j *judge) books(o *operation, r *recording, w *record.World, s model.State, got booted) error {
	n := s.Look(w.Nodes["data"], "osctl", ledger.File)
	if n == nil {
		return fmt.Errorf("%w: the ledger is gone", errInvariant)
	}
	l, err := ledger.Parse(s.Content(n))
	if err != nil {
		return fmt.Errorf("%w: %w", errInvariant, err)
	}
	if l.Floor.Version != o.floor && (got != o.after || got.kind != "committed") {
		return fmt.Errorf("%w: the floor is %s, and GRUB boots %v", errInvariant, l.Floor.Version, got)
	}
	for name, now := range parts(w, s) {
		old, whole := now == r.before[name], now == r.after[name]
		if !whole && (!old || got == o.after && got != o.before) {
			return fmt.Errorf("%w: %s is neither the old nor the new one", errInvariant, name)
		}
	}
	return nil
}
