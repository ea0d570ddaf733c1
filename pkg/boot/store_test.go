package boot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
	"github.com/kapernikov/osctl/pkg/slot"
)

// block is the block of a record, which must be valid.
func block(t *testing.T, seq int, s State) []byte {
	t.Helper()
	data, err := record{seq, s}.encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// newStore makes two copies; nil makes none.
func newStore(t *testing.T, a, b []byte) *Store {
	t.Helper()
	dir := t.TempDir()
	paths := [2]string{filepath.Join(dir, "a", "grubenv"), filepath.Join(dir, "b", "grubenv")}
	for i, data := range [][]byte{a, b} {
		if err := os.Mkdir(filepath.Dir(paths[i]), 0o755); err != nil {
			t.Fatal(err)
		}
		if data == nil {
			continue
		}
		if err := os.WriteFile(paths[i], data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(paths)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// both makes two copies of one record.
func both(t *testing.T, seq int, s State) *Store {
	t.Helper()
	return newStore(t, block(t, seq, s), block(t, seq, s))
}

func contents(t *testing.T, s *Store) [2]string {
	t.Helper()
	var got [2]string
	for i, path := range s.paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got[i] = string(data)
	}
	return got
}

// wantBoth fails unless both copies hold exactly the record.
func wantBoth(t *testing.T, s *Store, seq int, st State) {
	t.Helper()
	data := string(block(t, seq, st))
	if diff := cmp.Diff([2]string{data, data}, contents(t, s)); diff != "" {
		t.Errorf("the copies (-want +got):\n%s", diff)
	}
}

// memory is a slot in memory, as slot.Compare wants it.
type memory []byte

func (m memory) Size() int64                                 { return int64(len(m)) }
func (m memory) ReadAt(p []byte, off int64) (int, error)     { return copy(p, m[off:]), nil }
func (m memory) ReadBackAt(p []byte, off int64) (int, error) { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error)    { return copy(m[off:], p), nil }
func (m memory) Sync() error                                 { return nil }

// written proves a slot in the only way there is.
func written(t *testing.T, name device.Slot) slot.Written {
	t.Helper()
	img := bytes.Repeat([]byte{7}, 4096)
	want := slot.Want{Slot: name, Digest: "sha256:test", Size: 4096, SegmentSize: 4096,
		SegmentDigest: func(int) [sha256.Size]byte { return sha256.Sum256(img) }}
	missing, err := slot.Compare(context.Background(), memory(make([]byte, 4096)), want, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := missing.Write(context.Background(), func(put func(int, []byte) error) error { return put(0, img) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	link := path + "2"
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		paths [2]string
		want  string
	}{
		{[2]string{"", path}, "want the paths of two copies"},
		{[2]string{path, ""}, "want the paths of two copies"},
		{[2]string{"x", "x"}, "the same file"},
		{[2]string{path, link}, "the same file"},
	} {
		if _, err := Open(c.paths); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%q): %v, want %q", c.paths, err, c.want)
		}
	}
}

func TestLoadProblems(t *testing.T) {
	now, old := trial(slotB, 2), committed(slotA)
	good := block(t, 10, now)
	with := func(from, to string) []byte {
		data := bytes.Replace(good, []byte(from), []byte(to), 1)
		if bytes.Equal(data, good) {
			t.Fatalf("%q is not in the block", from)
		}
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"good":              {good, nil},
		"other variable":    {with("end=", "x=1\nend="), ErrSize},
		"missing":           {nil, fs.ErrNotExist},
		"empty":             {[]byte{}, grubenv.ErrSignature},
		"zeroes":            {make([]byte, 1024), grubenv.ErrSignature},
		"older":             {block(t, 9, old), ErrOlder}, // decimal, not text, order
		"same number":       {block(t, 10, old), ErrOlder},
		"torn":              {with("seq=10", "seq=11"), ErrTorn},
		"short":             {good[:600], ErrSize},
		"long":              {append(bytes.Clone(good), "####"...), ErrSize},
		"no variables":      {with("seq=", "#eq="), ErrValue},
		"ustate":            {with("ustate=1", "ustate=2"), ErrValue},
		"rootfs":            {with("rootfs=B", "rootfs=C"), ErrValue},
		"lower case":        {with("rootfs=B", "rootfs=b"), ErrValue},
		"counter":           {with("boot_counter=2", "boot_counter=10"), ErrValue},
		"negative counter":  {with("boot_counter=2", "boot_counter=-1"), ErrValue},
		"rung":              {with("rung=0", "rung=4"), ErrValue},
		"no rung":           {with("rung=", "#ung="), ErrValue},
		"other":             {with("other=0", "other=2"), ErrValue},
		"no other":          {with("other=", "#ther="), ErrValue},
		"leading zero":      {[]byte(strings.ReplaceAll(string(good), "=10", "=011")), ErrValue},
		"ten digits":        {[]byte(strings.ReplaceAll(string(good), "=10", "=1000000000")), ErrValue},
		"not a number":      {[]byte(strings.ReplaceAll(string(good), "=10", "=1x")), ErrValue},
		"newline in number": {[]byte(strings.ReplaceAll(string(good), "=10", "=11\\\n")), ErrValue},
	} {
		for i := range 2 {
			copies := [2][]byte{good, good}
			copies[i] = c.data
			if name == "same number" && i == 0 {
				continue // the first copy would win, see TestFirstCopyWinsATie
			}
			s := newStore(t, copies[0], copies[1])
			st, problems, err := s.Load()
			if err != nil || st != now {
				t.Errorf("%s in copy %d: %v, %v", name, i, st, err)
			}
			if c.want == nil {
				if len(problems) != 0 {
					t.Errorf("%s in copy %d: %v, want no problem", name, i, problems)
				}
				continue
			}
			if len(problems) != 1 || problems[0].Path != s.paths[i] || !errors.Is(problems[0].Err, c.want) {
				t.Errorf("%s in copy %d: %v, want %v", name, i, problems, c.want)
			}
		}
	}
}

func TestFirstCopyWinsATie(t *testing.T) {
	a, b := trial(slotB, 1), trial(slotB, 2)
	s := newStore(t, block(t, 5, a), block(t, 5, b))
	st, problems, err := s.Load()
	if err != nil || st != a || len(problems) != 1 || problems[0].Path != s.paths[1] {
		t.Errorf("Load = %v, %v, %v", st, problems, err)
	}
}

func TestUnknown(t *testing.T) {
	garbage := bytes.Repeat([]byte("x"), 1024)
	for _, copies := range [][2][]byte{{nil, nil}, {garbage, garbage}, {nil, {}}} {
		s := newStore(t, copies[0], copies[1])
		if _, problems, err := s.Load(); !errors.Is(err, ErrUnknown) || len(problems) != 2 {
			t.Errorf("Load = %v, %v; want ErrUnknown and two problems", problems, err)
		}
		for action, do := range map[string]func() error{
			"Arm": func() error { return s.Arm(written(t, slotB), 3) }, "FallBack": s.FallBack,
			"Acknowledge": s.Acknowledge, "Repair": s.Repair, "Disarm": func() error { return s.Disarm(slotA) },
		} {
			if err := do(); !errors.Is(err, ErrUnknown) {
				t.Errorf("%s: %v, want ErrUnknown", action, err)
			}
		}
		if err := s.Commit("C"); err == nil {
			t.Error("Commit of slot C")
		}
		if err := s.Commit(slotB); err != nil {
			t.Fatal(err)
		}
		wantBoth(t, s, 1, committed(slotB))
	}
}

func TestStory(t *testing.T) {
	s := both(t, 1, committed(slotA))
	for i, step := range []struct {
		do   func() error
		want State
	}{
		{func() error { return s.Arm(written(t, slotB), 3) }, trial(slotB, 3)},
		{func() error { return s.Commit(slotB) }, whole(slotB, true)},
		{func() error { return s.ArmProven(slotA, 2) }, State{Phase: Trial, Rootfs: slotA, Tries: 2, Other: true}},
		{func() error { return s.TakeBack(slotB) }, whole(slotB, true)},
		{func() error { return s.ArmProven(slotA, 1) }, State{Phase: Trial, Rootfs: slotA, Tries: 1, Other: true}},
		{s.FallBack, fellBack(slotB)},
		{s.Acknowledge, committed(slotB)},
		{func() error { return s.Arm(written(t, slotA), 9) }, trial(slotA, 9)},
		{func() error { return s.Disarm(slotB) }, committed(slotB)},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		wantBoth(t, s, i+2, step.want)
	}
}

// TestRepeatedWritesNothing: an action whose result is there already leaves the
// files alone, number included.
func TestRepeatedWritesNothing(t *testing.T) {
	for _, c := range []struct {
		now State
		do  func(s *Store) error
	}{
		{committed(slotA), func(s *Store) error { return s.Commit(slotA) }},
		{committed(slotA), (*Store).Acknowledge},
		{committed(slotA), (*Store).Repair},
		{committed(slotA), func(s *Store) error { return s.Disarm(slotA) }},
		{fellBack(slotA), (*Store).FallBack},
	} {
		s := both(t, 4, c.now)
		if err := c.do(s); err != nil {
			t.Error(err)
		}
		wantBoth(t, s, 4, c.now)
	}
}

func TestRefusalsWriteNothing(t *testing.T) {
	for _, c := range []struct {
		now  State
		do   func(s *Store) error
		want error
	}{
		{committed(slotA), func(s *Store) error { return s.Arm(slot.Written{}, 3) }, ErrNotWritten},
		{committed(slotA), func(s *Store) error { return s.Arm(written(t, slotA), 3) }, ErrState},
		{committed(slotA), func(s *Store) error { return s.ArmProven(slotA, 3) }, ErrState},
		{committed(slotA), (*Store).FallBack, ErrState},
		{trial(slotB, 3), func(s *Store) error { return s.Arm(written(t, slotB), 3) }, ErrState},
		{trial(slotB, 3), func(s *Store) error { return s.Commit(slotA) }, ErrState},
		{trial(slotB, 3), func(s *Store) error { return s.Disarm(slotB) }, ErrState},
		{trial(slotB, 3), (*Store).Acknowledge, ErrState},
		{fellBack(slotA), func(s *Store) error { return s.Commit(slotA) }, ErrState},
		{fellBack(slotA), func(s *Store) error { return s.Arm(written(t, slotB), 3) }, ErrState},
	} {
		s := both(t, 4, c.now)
		if err := c.do(s); !errors.Is(err, c.want) {
			t.Errorf("now %v: %v, want %v", c.now, err, c.want)
		}
		wantBoth(t, s, 4, c.now)
	}
	for _, tries := range []int{-1, 0, MaxTries + 1} {
		s := both(t, 4, committed(slotA))
		if err := s.Arm(written(t, slotB), tries); err == nil || !strings.Contains(err.Error(), "want 1 to 9") {
			t.Errorf("a trial of %d boots: %v", tries, err)
		}
		wantBoth(t, s, 4, committed(slotA))
	}
}

func TestRepair(t *testing.T) {
	now := trial(slotB, 2)
	good := block(t, 7, now)
	for name, bad := range map[string][]byte{
		"missing": nil, "empty": {}, "garbage": bytes.Repeat([]byte("x"), 1024), "short": good[:300],
		"long": append(bytes.Clone(good), "\nustate=3\n"...)[:1030], "older": block(t, 6, committed(slotA)),
	} {
		for i := range 2 {
			copies := [2][]byte{good, good}
			copies[i] = bad
			s := newStore(t, copies[0], copies[1])
			if err := s.Repair(); err != nil {
				t.Errorf("%s copy %d: %v", name, i, err)
				continue
			}
			wantBoth(t, s, 8, now)
		}
	}
}

// TestRepairMakesTheDirectory: fsck may drop a whole directory of a FAT.
func TestRepairMakesTheDirectory(t *testing.T) {
	s := both(t, 7, committed(slotB))
	if err := os.RemoveAll(filepath.Dir(s.paths[1])); err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(); err != nil {
		t.Fatal(err)
	}
	wantBoth(t, s, 8, committed(slotB))
}

// TestWritesInPlace: the file that GRUB knows stays that file.
func TestWritesInPlace(t *testing.T) {
	s := both(t, 1, committed(slotA))
	before, err := os.Stat(s.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Arm(written(t, slotB), 3); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(s.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the copy was replaced by another file")
	}
	names, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(s.paths[0])), "*", "*"))
	if err != nil || len(names) != 2 {
		t.Errorf("files beside the copies: %v, %v", names, err)
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	paths := [2]string{filepath.Join(dir, "osctl/a/grubenv"), filepath.Join(dir, "osctl/b/grubenv")}
	for _, path := range paths {
		if err := Create(path); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(paths)
	if err != nil {
		t.Fatal(err)
	}
	wantBoth(t, s, 1, committed(slotA))
	if err := Create(paths[0]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a copy: %v, want fs.ErrExist", err)
	}
	data, err := InitialBlock()
	if err != nil {
		t.Fatal(err)
	}
	want := "# GRUB Environment Block\nseq=1\nustate=0\nrootfs=A\nboot_counter=3\nrung=0\nother=0\nend=1\n"
	if diff := cmp.Diff(want+strings.Repeat("#", 1024-len(want)), string(data)); diff != "" {
		t.Errorf("InitialBlock (-want +got):\n%s", diff)
	}
}
