package model_test

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/test/crash/model"
)

// world is a directory with the file "f", which holds "old", and a program that
// replaces it.
type world struct {
	base    model.State
	dir     *model.Node
	old     *model.Node
	next    *model.Node
	ops     []model.Op
	durable bool
}

func newWorld(fs model.FS) *world {
	w := &world{base: model.NewState()}
	w.dir, w.old = &model.Node{ID: 1, Kind: model.Dir, FS: fs}, &model.Node{ID: 2, FS: fs}
	w.next = &model.Node{ID: 3, FS: fs}
	w.base.SetContent(w.old, []byte("old"))
	w.base.SetEntry(w.dir, "f", w.old)
	return w
}

func (w *world) do(c model.Change, text string) {
	n := 2 * len(w.ops)
	w.ops = append(w.ops, model.Op{Begin: n, End: n + 1, Do: c, Text: text, Durable: w.durable})
}

// states lists what the directory may hold, a line for each state.
func (w *world) states(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	counts, err := model.Explore(w.base, w.ops, model.Bounds{Exhaustive: 8, Seed: 1}, func(s model.State, _ model.Cut) error {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(s.Entries(w.dir))) {
			content := strings.ReplaceAll(string(s.Content(s.Look(w.dir, name))), "\x00", "0")
			names = append(names, name+"="+strings.ReplaceAll(content, "\xff", "?"))
		}
		found[strings.Join(names, " ")] = true
		return nil
	})
	if err != nil || counts.Bounded != 0 {
		t.Fatalf("Explore: %+v, %v", counts, err)
	}
	return slices.Sorted(maps.Keys(found))
}

func (w *world) expect(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, w.states(t)); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

func (w *world) write(n *model.Node, text string) {
	w.do(model.Write{Node: n, Data: []byte(text)}, "write")
}

func (w *world) create() { w.do(model.Entries{{Dir: w.dir, Name: "t", Node: w.next}}, "new t") }

func (w *world) rename() {
	w.do(model.Entries{{Dir: w.dir, Name: "f", Node: w.next}, {Dir: w.dir, Name: "t"}}, "rename")
}

// A file that is written in place after it was emptied, as grub-editenv does.
func TestTruncateAndWrite(t *testing.T) {
	w := newWorld(model.Ext4)
	w.do(model.Truncate{Node: w.old}, "empty")
	w.write(w.old, "new")
	w.do(model.Sync{Node: w.old}, "fsync")
	w.expect(t, "f=old", "f=", "f=new", "f=000", "f=???")
}

// The right way to replace a file, and without its syncs.
func TestReplace(t *testing.T) {
	w := newWorld(model.Ext4)
	w.create()
	w.write(w.next, "new")
	w.do(model.Sync{Node: w.next}, "fsync")
	w.rename()
	w.do(model.Sync{Node: w.dir}, "fsync dir")
	w.expect(t, "f=old", "f=old t=", "f=old t=new", "f=old t=000", "f=old t=???", "f=new")

	w = newWorld(model.Ext4)
	w.create()
	w.write(w.next, "new")
	w.rename()
	w.expect(t, "f=old", "f=old t=", "f=old t=new", "f=old t=000", "f=old t=???", "f=new", "f=", "f=000", "f=???")
}

// On FAT a rename may lose the name or keep both.
func TestRenameOnFAT(t *testing.T) {
	w := newWorld(model.FAT)
	w.base.SetContent(w.next, []byte("new"))
	w.base.SetEntry(w.dir, "t", w.next)
	w.rename()
	w.expect(t, "f=old t=new", "f=new", "f=new t=new", "f=old")
}

// What is durable at once stays, and a sync of another file orders nothing.
func TestDurable(t *testing.T) {
	w := newWorld(model.Ext4)
	w.durable = true
	w.write(w.old, "new")
	w.durable = false
	other := &model.Node{ID: 9}
	w.base.SetContent(other, []byte("x"))
	w.base.SetEntry(w.dir, "o", other)
	w.write(other, "y")
	w.do(model.Sync{Node: w.old}, "fsync")
	w.expect(t, "f=old o=x", "f=new o=x", "f=??? o=x", "f=new o=y", "f=new o=?")
}

// A call that had not returned when a sync began is not covered by it.
func TestOverlappingCalls(t *testing.T) {
	w := newWorld(model.Ext4)
	w.ops = []model.Op{
		{Begin: 1, End: 4, Do: model.Write{Node: w.old, Data: []byte("new")}, Text: "write"},
		{Begin: 2, End: 3, Do: model.Sync{Node: w.old}, Text: "fsync"},
	}
	w.expect(t, "f=old", "f=new", "f=???")
}

// A write of several sectors arrives in parts; unwritten parts keep what was there.
func TestTears(t *testing.T) {
	pool, node := model.NewPool(), &model.Node{ID: 1, Kind: model.Block}
	old, now := bytes.Repeat([]byte{'o'}, 8*model.Sector), bytes.Repeat([]byte{'n'}, 8*model.Sector)
	v, err := pool.ReadVolume(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		t.Fatal(err)
	}
	base := model.NewState()
	base.SetVolume(node, v)
	found := map[string]bool{}
	ops := []model.Op{{Begin: 0, End: 1, Do: model.Write{Node: node, Data: now}, Text: "write"}}
	_, err = model.Explore(base, ops, model.Bounds{Exhaustive: 8}, func(s model.State, _ model.Cut) error {
		var b strings.Builder
		data := s.Volume(node).Chunk(0)
		for i := range 8 {
			b.WriteByte(data[i*model.Sector])
		}
		found[b.String()] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for k := range 9 {
		for _, want := range []string{strings.Repeat("n", k) + strings.Repeat("o", 8-k), strings.Repeat("o", k) + strings.Repeat("n", 8-k)} {
			if !found[want] {
				t.Errorf("%s is missing", want)
			}
		}
	}
	if len(found) != 16 {
		t.Errorf("%d states, want 16", len(found))
	}
}
