package boot

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
)

// recorder notes what both files hold after each write, and what they would hold
// if the write had destroyed the sector instead.
type recorder struct {
	medium
	t      *testing.T
	s      *Store
	copy   int
	points *[][2][]byte
}

func (r recorder) WriteAt(p []byte, off int64) (int, error) {
	r.t.Helper()
	before := snapshot(r.t, r.s)
	destroyed := before
	destroyed[r.copy] = bytes.Repeat([]byte{0xff}, 512)
	if len(p) > 512 {
		destroyed[r.copy] = append(destroyed[r.copy], p[512:]...)
	} else if len(before[r.copy]) > 512 {
		destroyed[r.copy] = append(destroyed[r.copy], before[r.copy][512:]...)
	}
	n, err := r.medium.WriteAt(p, off)
	*r.points = append(*r.points, before, destroyed, snapshot(r.t, r.s))
	return n, err
}

func snapshot(t *testing.T, s *Store) [2][]byte {
	t.Helper()
	got := contents(t, s)
	return [2][]byte{[]byte(got[0]), []byte(got[1])}
}

// cutPoints runs an action and returns what the files hold after a power cut at
// any moment of it. The second sector never changes, so a tear between the two
// sectors is one of these as well.
func cutPoints(t *testing.T, copies [2][]byte, action func(*Store) error) [][2][]byte {
	t.Helper()
	s := newStore(t, copies[0], copies[1])
	var points [][2][]byte
	s.open = func(path string) (medium, error) {
		m, err := openFile(path)
		if err != nil {
			return nil, err
		}
		i := 0
		if path == s.paths[1] {
			i = 1
		}
		return recorder{m, t, s, i, &points}, nil
	}
	if err := action(s); err != nil {
		t.Fatal(err)
	}
	if len(points) != 6 {
		t.Fatalf("%d moments recorded, want 3 for each of two writes", len(points))
	}
	return points
}

// change is one change of the state and where it starts.
type change struct {
	now, then State
	do        func(*Store) error
}

func changes(t *testing.T) map[string]change {
	return map[string]change{
		"arm": {committed(slotA), trial(slotB, 3),
			func(s *Store) error { return s.Arm(written(t, slotB), 3) }},
		"commit": {trial(slotB, 2), whole(slotB, true),
			func(s *Store) error { return s.Commit(slotB) }},
		"fall back": {trial(slotB, 2), fellBack(slotA), (*Store).FallBack},
		"disarm": {trial(slotB, 3), committed(slotA),
			func(s *Store) error { return s.Disarm(slotA) }},
		"settle": {whole(slotA, true).on(RungPristine, 1, true), whole(slotA, true), (*Store).Settle},
		"give back": {whole(slotA, true).on(RungSlot, 1, true), givenOnce(whole(slotA, true).on(RungSlot, 2, true)),
			func(s *Store) error { return s.GiveBack(device.Boot{Slot: slotA, Kind: KindCommitted}) }},
		"disarm a rung": {whole(slotA, true), whole(slotA, false),
			func(s *Store) error { return s.Disarm(slotA) }},
		"acknowledge": {fellBack(slotA), committed(slotA), (*Store).Acknowledge},
	}
}

func givenOnce(s State) State {
	s.Given = 1
	return s
}

// TestPowerCuts: at any moment of any change, from equal or damaged copies, GRUB
// and Load find the same state, it is the old or the new one, and the same command
// again ends in the new one with both copies whole.
func TestPowerCuts(t *testing.T) {
	needTools(t)
	t.Parallel()
	m := newMachine(t, "ab")
	cuts := 0
	for name, c := range changes(t) {
		for _, seq := range []int{7, maxSeq} {
			good, older := block(t, seq, c.now), block(t, seq-1, committed(slotA))
			garbage := make([]byte, 1024)
			for _, copies := range [][2][]byte{{good, good}, {good, older}, {older, good}, {good, garbage}, {garbage, good}} {
				for i, point := range cutPoints(t, copies, c.do) {
					label := fmt.Sprintf("%s, number %d, moment %d", name, seq, i)
					m.afterCut(label, point, c)
					cuts++
				}
			}
		}
	}
	t.Logf("%d power cuts", cuts)
	if cuts == 0 {
		t.Error("nothing was tested")
	}
}

func (m *machine) afterCut(label string, copies [2][]byte, c change) {
	m.t.Helper()
	s := m.store(copies)
	st, _, err := s.Load()
	if err != nil || st != c.now && st != c.then {
		m.t.Errorf("%s: Load finds %v, %v; want %v or %v", label, st, err, c.now, c.then)
		return
	}
	m.set(0, copies[0])
	m.set(1, copies[1])
	r := m.boot()
	want, _ := Next(st)
	if got := r.booted(); got != want {
		m.t.Errorf("%s: GRUB boots %v, but Load finds %v:\n%s", label, got, st, r.output)
	}
	if st == c.now {
		err = c.do(s)
	} else {
		err = s.Repair()
	}
	after, problems, loadErr := s.Load()
	if err != nil || loadErr != nil || after != c.then || len(problems) != 0 {
		m.t.Errorf("%s: the same again: %v, %v; %v, %v", label, err, loadErr, after, problems)
	}
}

// TestSystemCalls: a copy is opened without being cut to nothing or made, its
// change is one sector, and it is read from the medium before the next copy is
// opened. The test runs itself in strace.
func TestSystemCalls(t *testing.T) {
	if dir := os.Getenv("OSCTL_TEST_COPIES"); dir != "" {
		s, err := Open([2]string{dir + "/a", dir + "/b"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.ArmProven(slotB, 3); err != nil {
			t.Fatal(err)
		}
		return
	}
	if testing.Short() {
		t.Skip("needs strace")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := Create(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("strace", "-f", "-y", "-o", log, "-e", "trace=openat,pwrite64,write,fsync,fadvise64,pread64,rename,renameat,renameat2,ftruncate",
		os.Args[0], "-test.run=^TestSystemCalls$")
	cmd.Env = append(os.Environ(), "OSCTL_TEST_COPIES="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	trace, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, match := range regexp.MustCompile(`(?m)^\d+ +(\w+)\((.*)$`).FindAllStringSubmatch(string(trace), -1) {
		path := regexp.MustCompile(regexp.QuoteMeta(dir) + `/([ab])[">]`).FindStringSubmatch(match[2])
		if path == nil || strings.Contains(match[2], "O_RDONLY") {
			continue
		}
		call := path[1] + " " + match[1]
		if match[1] != "pread64" { // of which the library makes several
			call += " " + regexp.MustCompile(`O_[A-Z|_]+|POSIX_\w+|(?:512|1024), 0\b`).FindString(match[2])
		}
		got = append(got, call)
	}
	var want []string
	for _, name := range []string{"a ", "b "} {
		readBack := []string{name + "fsync ", name + "fadvise64 POSIX_FADV_DONTNEED", name + "pread64"}
		want = append(want, name+"openat O_RDWR|O_DSYNC|O_CLOEXEC")
		want = append(want, readBack...)
		want = append(want, name+"pwrite64 512, 0")
		want = append(want, readBack...)
	}
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("system calls (-want +got):\n%s\n%s", diff, trace)
	}
}
