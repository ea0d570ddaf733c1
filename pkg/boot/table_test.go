package boot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// states are all states that the variables can tell.
func states() []State {
	var all []State
	for _, phase := range []Phase{Committed, Trial, FellBack} {
		for _, slot := range []device.Slot{slotA, slotB} {
			for rung := RungSlot; rung <= RungRescue; rung++ {
				for _, other := range []bool{false, true} {
					for tries := range MaxTries + 1 {
						all = append(all, State{Phase: phase, Rootfs: slot, Tries: tries, Rung: rung, Other: other})
					}
				}
			}
		}
	}
	return all
}

// condition is what may be wrong with a copy.
type condition string

const (
	good       condition = "good"
	older      condition = "older"
	empty      condition = "empty"
	tornSector condition = "torn at 512" // the write destroyed the first sector
	tornInside condition = "torn inside" // the head of a newer record
	garbage    condition = "garbage"
	wrongSize  condition = "wrong size"
	missing    condition = "missing"
	unwritable condition = "unwritable"
)

func conditions() []condition {
	return []condition{good, older, empty, tornSector, tornInside, garbage, wrongSize, missing, unwritable}
}

// of is the content of a copy in that condition, nil for none.
func (c condition) of(t *testing.T, st State) []byte {
	t.Helper()
	data := block(t, 7, st)
	switch c {
	case good, unwritable:
		return data
	case older:
		return block(t, 6, olderState(st))
	case empty:
		return []byte{}
	case tornSector:
		return append(bytes.Repeat([]byte{0xff}, grubenv.Sector), data[grubenv.Sector:]...)
	case tornInside:
		return bytes.Replace(data, []byte("seq=7"), []byte("seq=8"), 1)
	case garbage:
		return bytes.Repeat([]byte("\xff\x00x\n"), grubenv.Size/4)
	case wrongSize:
		return data[:300]
	case missing:
		return nil
	}
	t.Fatalf("condition %q", c)
	return nil
}

// olderState differs from st in the slot that boots.
func olderState(st State) State {
	boot, _ := Next(st)
	if boot.Slot == slotA {
		return whole(slotB, true)
	}
	return whole(slotA, true)
}

// expectation is what the pure table says of one boot.
type expectation struct {
	boot   device.Boot
	copies [2][]byte
}

// expect models a boot on which GRUB finds the copies given.
func expect(t *testing.T, copies [2][]byte, writable [2]bool) expectation {
	t.Helper()
	now, found := winner(copies)
	if !found {
		return expectation{device.Boot{Slot: slotA, Kind: KindUnsaved}, copies}
	}
	boot, then := Next(now.state)
	after := copies
	for i, data := range copies {
		// GRUB writes into whatever begins like a block, up to the end of the file.
		if _, err := grubenv.Parse(data); err == nil && writable[i] {
			after[i] = block(t, now.seq, then)[:len(data)]
		}
	}
	if next, _ := winner(after); next != (record{now.seq, then}) {
		boot = Unsaved(now.state)
	}
	return expectation{boot, after}
}

// winner is the rule by which GRUB and Load choose a copy.
func winner(copies [2][]byte) (best record, found bool) {
	for _, data := range copies {
		b, err := grubenv.Parse(data)
		if err != nil {
			continue
		}
		if r, err := decode(b); err == nil && (!found || r.seq > best.seq) {
			best, found = r, true
		}
	}
	return best, found
}

func (m *machine) check(label string, e expectation) {
	m.t.Helper()
	r := m.boot()
	var got [2][]byte
	for i, want := range e.copies {
		got[i] = m.get(i, len(want))
		if !bytes.Equal(got[i], want) {
			m.t.Errorf("%s: copy %d (-want +got):\n%s\n%s", label, i, cmp.Diff(string(want), string(got[i])), r.output)
		}
	}
	if boot := r.booted(); boot != e.boot {
		m.t.Errorf("%s: GRUB boots %v, want %v:\n%s", label, boot, e.boot, r.output)
	}
}

// sampled is the part of the table that an ordinary run takes: one case in so
// many, a prime, so that each state and each pair of conditions comes up.
const sampled = 29

// TestGrubTable boots every state with every condition of the two copies: all of
// them with OSCTL_EXHAUSTIVE=1, else a fixed sample. It proves Next and grub.cfg
// the same.
func TestGrubTable(t *testing.T) {
	needTools(t)
	all, kinds := states(), conditions()
	total, step := len(all)*len(kinds)*len(kinds), sampled
	if os.Getenv("OSCTL_EXHAUSTIVE") != "" {
		step = 1
	}
	var boots, bricked atomic.Int64
	t.Run("boots", func(t *testing.T) {
		workers := runtime.GOMAXPROCS(0)
		for w := range workers {
			t.Run(fmt.Sprint("worker ", w), func(t *testing.T) {
				t.Parallel()
				x := newTable(t)
				for i := w * step; i < total; i += workers * step {
					st, a, b := all[i%len(all)], kinds[i/len(all)%len(kinds)], kinds[i/len(all)/len(kinds)]
					if !x.run(st, [2]condition{a, b}) {
						bricked.Add(1)
					}
					boots.Add(1)
				}
			})
		}
	})
	if want := int64((total + step - 1) / step); boots.Load() != want {
		t.Errorf("%d boots, want %d", boots.Load(), want)
	}
	t.Logf("%d states x %d conditions of each copy = %d combinations: %d booted with the real grub.cfg, %d bricked",
		len(all), len(kinds), total, boots.Load(), bricked.Load())
}

// table runs cases of the table on disks of its own.
type table struct {
	// last are the disks by the copy that lies last: a, b. A limit on the size of
	// the file makes what lies behind an offset unwritable, so a copy that alone
	// cannot be written has to lie last.
	last [2]*machine
	user *Store // user space's view of the same copies
}

func newTable(t *testing.T) *table {
	t.Helper()
	x := &table{user: newStore(t, nil, nil)}
	x.last = [2]*machine{newMachine(t, "ba"), newMachine(t, "ab")}
	return x
}

// run boots one case, and reports whether anything was booted.
func (x *table) run(st State, kinds [2]condition) bool {
	m := x.last[1]
	switch {
	case kinds[0] == unwritable && kinds[1] == unwritable:
		m.limitWrites(espStart)
	case kinds[0] == unwritable:
		m = x.last[0]
		m.limitWrites(m.data[0])
	case kinds[1] == unwritable:
		m.limitWrites(m.data[1])
	default:
		m.wrapper = nil
	}
	m.t.Helper()
	var before [2][]byte
	for i, kind := range kinds {
		before[i] = kind.of(m.t, st)
		m.set(i, before[i])
	}
	e := expect(m.t, before, [2]bool{kinds[0] != unwritable, kinds[1] != unwritable})
	r := m.boot()
	label := fmt.Sprintf("%+v, a %s, b %s", st, kinds[0], kinds[1])
	if boot := r.booted(); boot != e.boot {
		m.t.Errorf("%s: GRUB boots %v, want %v:\n%s", label, boot, e.boot, r.output)
	}
	for i, want := range e.copies {
		if got := m.get(i, len(want)); !bytes.Equal(got, want) {
			m.t.Errorf("%s: copy %d (-want +got):\n%s\n%s", label, i, cmp.Diff(string(want), string(got)), r.output)
		}
	}
	m.agree(x.user, before, e)
	return r.cmdline != ""
}

// agree fails unless user space, reading the files that GRUB found, expects the
// boot that GRUB made.
func (m *machine) agree(user *Store, before [2][]byte, e expectation) {
	m.t.Helper()
	for i, path := range user.paths {
		err := os.Remove(path)
		if before[i] != nil {
			err = os.WriteFile(filepath.Clean(path), before[i], 0o600)
		}
		if err != nil && !os.IsNotExist(err) {
			m.t.Fatal(err)
		}
	}
	st, _, err := user.Load()
	if err != nil {
		if e.boot != (device.Boot{Slot: slotA, Kind: KindUnsaved}) {
			m.t.Errorf("Load: %v, but GRUB found a state", err)
		}
		return
	}
	if boot, _ := Next(st); boot != e.boot && Unsaved(st) != e.boot {
		m.t.Errorf("Load says %v, but GRUB boots %v", st, e.boot)
	}
}
