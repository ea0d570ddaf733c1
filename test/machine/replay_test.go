package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/kapernikov/osctl/test/crash/grub"
	"github.com/kapernikov/osctl/test/writelog"
)

// replay is a disk at an instant of the machine's life.
type replay struct {
	log  string
	disk *os.File // a copy that is written to
	grub *grub.Machine
	// goal is the image that slot B gets; good says which of its sectors are there.
	goal    *os.File
	good    []bool
	lacking int

	// base and now are the sectors of the ESP that the log changes anywhere: as they
	// were before, and as the medium has them after the last flush.
	base, now map[int64][]byte
	pending   []writelog.Entry // writes to the ESP since the last flush
	unflushed bool             // writes to slot B since the last flush

	lose int // the write to slot B that never arrives; 0 for none
	// cuts are the instants at which keep is given the disk.
	cuts  cuts
	since int // writes to the ESP from arming on
	keep  func() error

	verdicts                              map[[sha256.Size]byte]grub.Boot
	armed                                 bool // GRUB would start slot B
	writes, espWrites, slotWrites, states int
	boots                                 int
}

func (s *Story) newReplay(ctx context.Context, base, log string) (*replay, error) {
	size, err := s.provenSize(ctx)
	if err != nil {
		return nil, err
	}
	r := &replay{log: log, base: map[int64][]byte{}, verdicts: map[[sha256.Size]byte]grub.Boot{}}
	if r.disk, err = os.OpenFile(base, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if r.goal, err = os.Open(s.Site.Disk()); err != nil {
		return nil, err
	}
	if r.grub, err = grub.Attach(base+".grub", base); err != nil {
		return nil, err
	}
	r.good = make([]bool, size/writelog.SectorSize)
	r.lacking = len(r.good)
	const step = 1 << 20
	for off := int64(0); off < size; off += step {
		p := make([]byte, min(step, size-off))
		if _, err := r.disk.ReadAt(p, areaOf["B"].from+off); err != nil {
			return nil, err
		}
		if err := r.note(areaOf["B"].from+off, p); err != nil {
			return nil, err
		}
	}
	err = writelog.Read(log, func(e writelog.Entry) error {
		for off := range sectors(e, espArea) {
			if r.base[off] == nil {
				r.base[off] = make([]byte, writelog.SectorSize)
				_, err := r.disk.ReadAt(r.base[off], off)
				return err
			}
		}
		return nil
	})
	r.now = maps.Clone(r.base)
	return r, err
}

func (r *replay) close() {
	for _, c := range []io.Closer{r.disk, r.goal, r.grub} {
		_ = c.Close() //nolint:errcheck // scratch
	}
}

// sectors are those of an entry that lie in an area, by their offset on the disk.
func sectors(e writelog.Entry, a area) map[int64][]byte {
	list := map[int64][]byte{}
	for at := 0; at < len(e.Data); at += writelog.SectorSize {
		if off := e.Offset + int64(at); off >= a.from && off < a.to {
			list[off] = e.Data[at : at+writelog.SectorSize]
		}
	}
	return list
}

// run replays the log. Before the first write and at the end GRUB boots what it
// should; in between each state is judged.
func (r *replay) run(ctx context.Context) error {
	if err := r.judge(ctx, r.now); err != nil {
		return fmt.Errorf("before the first write: %w", err)
	}
	n := 0
	err := writelog.Read(r.log, func(e writelog.Entry) error {
		n++
		if err := r.apply(ctx, e); err != nil {
			return fmt.Errorf("entry %d of the log, %d bytes at %d: %w", n, len(e.Data), e.Offset, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !r.armed || r.lacking > 0 || r.slotWrites == 0 {
		return fmt.Errorf("the log does not hold the upgrade: armed %t, %d sectors lack, %d writes to the slot", r.armed, r.lacking, r.slotWrites)
	}
	return nil
}

// apply lets one request reach the disk.
func (r *replay) apply(ctx context.Context, e writelog.Entry) error {
	if e.Flush {
		for _, p := range r.pending {
			maps.Copy(r.now, sectors(p, espArea))
		}
		r.pending, r.unflushed = nil, false
		return nil
	}
	r.writes++
	switch {
	case areaOf["A"].holds(e):
		return errors.New("a write to the slot that runs, or that ran before")
	case areaOf["B"].holds(e):
		return r.applySlot(ctx, e)
	case espArea.holds(e):
		return r.applyESP(ctx, e)
	}
	_, err := r.disk.WriteAt(e.Data, e.Offset)
	return err
}

// everyWriteToASlot is how many writes to a slot are between two looks: GRUB reads
// of a slot only whether it begins with a file system.
const everyWriteToASlot = 16

func (r *replay) applySlot(ctx context.Context, e writelog.Entry) error {
	if r.armed {
		return errors.New("a write to slot B after it was armed")
	}
	r.slotWrites++
	r.unflushed = true
	if r.slotWrites == r.lose {
		return nil
	}
	start := e.Offset < areaOf["B"].from+mib
	if start {
		// Torn: the first half of it only.
		half := len(e.Data) / writelog.SectorSize / 2 * writelog.SectorSize
		if _, err := r.disk.WriteAt(e.Data[:half], e.Offset); err != nil {
			return err
		}
		if err := r.judge(ctx, r.now); err != nil {
			return err
		}
	}
	if _, err := r.disk.WriteAt(e.Data, e.Offset); err != nil {
		return err
	}
	if err := r.note(e.Offset, e.Data); err != nil {
		return err
	}
	if slices.Contains(r.cuts.slot, r.slotWrites) {
		if err := r.leave(r.now); err != nil {
			return err
		}
	}
	if !start && r.slotWrites%everyWriteToASlot != 0 {
		return nil
	}
	found, err := r.grub.Finds(ctx, 1)
	if err != nil {
		return err
	}
	if found && r.lacking > 0 && r.lose == 0 {
		return fmt.Errorf("%w: GRUB finds a kernel in slot B, which lacks %d sectors", errIncomplete, r.lacking)
	}
	return r.judge(ctx, r.now)
}

// note keeps the account of the sectors of slot B that are what they should be.
func (r *replay) note(off int64, data []byte) error {
	want := make([]byte, len(data))
	if _, err := r.goal.ReadAt(want, off); err != nil {
		return err
	}
	for at := 0; at < len(data); at += writelog.SectorSize {
		i := (off - areaOf["B"].from + int64(at)) / writelog.SectorSize
		if i >= int64(len(r.good)) {
			break
		}
		same := bytes.Equal(data[at:at+writelog.SectorSize], want[at:at+writelog.SectorSize])
		if same != r.good[i] {
			r.good[i] = same
			if same {
				r.lacking--
			} else {
				r.lacking++
			}
		}
	}
	return nil
}

// applyESP judges the states that a cut may leave while a write to the ESP is on its
// way: any of the writes since the last flush may be on the medium, this one torn
// between any two sectors.
func (r *replay) applyESP(ctx context.Context, e writelog.Entry) error {
	if r.unflushed {
		return errors.New("a write to the ESP while writes to the slot are on their way")
	}
	r.espWrites++
	e.Data = bytes.Clone(e.Data)
	for _, earlier := range subsets(r.pending) {
		state := maps.Clone(r.now)
		for _, p := range earlier {
			maps.Copy(state, sectors(p, espArea))
		}
		for _, part := range torn(e) {
			torn := maps.Clone(state)
			maps.Copy(torn, sectors(part, espArea))
			if err := r.judge(ctx, torn); err != nil {
				return err
			}
		}
	}
	r.pending = append(r.pending, e)
	state := maps.Clone(r.now)
	for _, p := range r.pending {
		maps.Copy(state, sectors(p, espArea))
	}
	if err := r.judge(ctx, state); err != nil {
		return err
	}
	boot, err := r.boot(ctx, state)
	if err == nil && r.armed && boot.Slot != "B" {
		err = fmt.Errorf("the armed upgrade is lost: GRUB boots slot %s (%s)", boot.Slot, boot.Kind)
	}
	r.armed = boot.Slot == "B"
	if err != nil || !r.armed {
		return err
	}
	r.since++
	if !slices.Contains(r.cuts.esp, r.since) {
		return nil
	}
	// The first sector of this write has arrived, and nothing after it.
	state = maps.Clone(r.now)
	for _, p := range append(slices.Clone(r.pending[:len(r.pending)-1]), writelog.Entry{Offset: e.Offset, Data: e.Data[:writelog.SectorSize]}) {
		maps.Copy(state, sectors(p, espArea))
	}
	return r.leave(state)
}

// leave gives keep the disk with this state of the ESP.
func (r *replay) leave(state map[int64][]byte) error {
	if r.keep == nil {
		return nil
	}
	for off, data := range state {
		if _, err := r.disk.WriteAt(data, off); err != nil {
			return err
		}
	}
	return r.keep()
}

// most is how many writes between two flushes are combined in every way; of more,
// all and all but one.
const most = 6

func subsets(list []writelog.Entry) [][]writelog.Entry {
	if len(list) > most {
		all := [][]writelog.Entry{nil, list}
		for i := range list {
			all = append(all, slices.Delete(slices.Clone(list), i, i+1))
		}
		return all
	}
	var all [][]writelog.Entry
	for mask := range 1 << len(list) {
		var some []writelog.Entry
		for i, e := range list {
			if mask&(1<<i) != 0 {
				some = append(some, e)
			}
		}
		all = append(all, some)
	}
	return all
}

// torn are the parts of a write: nothing of it, all, and up to or from each sector.
func torn(e writelog.Entry) []writelog.Entry {
	parts := []writelog.Entry{{}, e}
	for at := writelog.SectorSize; at < len(e.Data); at += writelog.SectorSize {
		parts = append(parts,
			writelog.Entry{Offset: e.Offset, Data: e.Data[:at]},
			writelog.Entry{Offset: e.Offset + int64(at), Data: e.Data[at:]})
	}
	return parts
}

var errIncomplete = errors.New("incomplete")

// judge demands that GRUB boots a slot that is complete: A, or B once all of it is on
// the medium.
func (r *replay) judge(ctx context.Context, esp map[int64][]byte) error {
	r.states++
	boot, err := r.boot(ctx, esp)
	switch {
	case err != nil:
		return err
	case boot.Slot == "A":
		return nil
	case boot.Slot == "B" && r.lacking == 0 && !r.unflushed:
		return nil
	case boot.Slot == "B":
		return fmt.Errorf("%w: GRUB boots slot B (%s), which lacks %d sectors: %s", errIncomplete, boot.Kind, r.lacking, boot.Output)
	}
	return fmt.Errorf("bricked: GRUB boots %q (%s): %s", boot.Slot, boot.Kind, boot.Output)
}

// boot asks GRUB, once for equal disks as far as it reads them.
func (r *replay) boot(ctx context.Context, esp map[int64][]byte) (grub.Boot, error) {
	h := sha256.New()
	fmt.Fprintln(h, r.lacking == 0, r.slotWrites/everyWriteToASlot)
	for _, off := range slices.Sorted(maps.Keys(esp)) {
		fmt.Fprintf(h, "%d %x\n", off, esp[off])
	}
	key := [sha256.Size]byte(h.Sum(nil))
	if known, ok := r.verdicts[key]; ok {
		return known, nil
	}
	// All of them: GRUB has saved its state into some of them at the boot before.
	for off, data := range esp {
		if _, err := r.disk.WriteAt(data, off); err != nil {
			return grub.Boot{}, err
		}
	}
	boot, err := r.grub.Boot(ctx)
	if err != nil {
		return boot, err
	}
	r.boots++
	r.verdicts[key] = boot
	return boot, nil
}
