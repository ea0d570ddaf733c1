package crash

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
)

// seed is that of every random choice.
const seed = 3

// exhaustive reports whether this is the long run ("make crash").
func exhaustive() bool { return os.Getenv("OSCTL_EXHAUSTIVE") == "1" }

// bounds are how far each operation is explored.
func bounds() model.Bounds {
	if exhaustive() {
		return model.Bounds{Exhaustive: 8, Samples: 200, Tears: 0, Seed: seed}
	}
	return model.Bounds{Exhaustive: 4, Samples: 10, Tears: 8, Seed: seed}
}

// most is how many different classes of states osctl goes on from, for each
// operation.
func most() int {
	if exhaustive() {
		return 60
	}
	return 5
}

// recording is what an operation did.
type recording struct {
	world *record.World
	log   record.Log
	// What the running slot holds, and the /etc of slot B before and after.
	running, etcBefore, etcAfter [sha256.Size]byte
}

// record brings a machine to where an operation starts and records it.
func (s *site) record(o *operation) *recording {
	s.t.Helper()
	m := s.newMachine()
	o.prepare(m)
	world, base, err := record.Read(m.dir, s.pool, roots()...)
	if err != nil {
		s.t.Fatal(err)
	}
	log, err := world.Run(s.t.Context(), base, m.command(o.on, o.args...))
	if err != nil {
		s.t.Fatal(err)
	}
	// The recorder must have missed nothing.
	files, after, err := record.Read(m.dir, s.pool, roots()...)
	if err != nil {
		s.t.Fatal(err)
	}
	if diff := cmp.Diff(files.Describe(after), world.Describe(log.After)); diff != "" {
		s.t.Fatalf("%s: what the files hold (-) is not what was recorded (+):\n%s", o.name, diff)
	}
	return &recording{world: world, log: log, running: slots(world, base)[o.on.slot[0]-'A'].Hash(),
		etcBefore: etcOfB(world, base), etcAfter: etcOfB(world, log.After)}
}

// kept holds that what a command had written when it ended well stays: the ledger and
// the /etc of slot B.
func (r *recording) kept(s model.State) error {
	ledgerIn := func(s model.State) string {
		return string(s.Content(s.Look(r.world.Nodes["data"], "osctl", ledger.File)))
	}
	if ledgerIn(s) != ledgerIn(r.log.After) || etcOfB(r.world, s) != r.etcAfter {
		return fmt.Errorf("%w: the command had ended well, and the ledger or the /etc of slot B is the old one", errLostUpdate)
	}
	return nil
}

// tally is what came of the states of one operation.
type tally struct {
	model.Counts
	calls, distinct, classes, converged int
	failures                            map[error]int
}

// TestPowerCuts explores every operation.
func TestPowerCuts(t *testing.T) {
	s := newSite(t)
	j := newJudge(s, t)
	total := tally{failures: map[error]int{}}
	t.Logf("%-30s %6s %7s %8s %9s | %8s %8s %8s %8s %8s | %9s", "operation", "calls", "pending", "states", "distinct",
		"bricked", "wrong", "lost", "invar.", "not conv", "continued")
	for _, o := range operations(s) {
		t.Run(o.name, func(t *testing.T) {
			began := time.Now()
			one := j.explore(t, &o, s.record(&o))
			t.Logf("%-30s %s  %v", o.name, one, time.Since(began).Round(time.Second/10))
			total.calls += one.calls
			total.Made += one.Made
			total.Most = max(total.Most, one.Most)
			total.distinct += one.distinct
			total.converged += one.converged
			for kind, n := range one.failures {
				total.failures[kind] += n
			}
		})
	}
	t.Logf("%-30s %s", "all", total)
	t.Logf("GRUB was asked %d times and ran %d times", j.asked+j.headless, j.boots)
	if total.distinct == 0 {
		t.Error("nothing was explored")
	}
}

func (y tally) String() string {
	return fmt.Sprintf("%6d %7d %8d %9d | %8d %8d %8d %8d %8d | %9d", y.calls, y.Most, y.Made, y.distinct,
		y.failures[errBricked], y.failures[errWrongSlot], y.failures[errLostUpdate], y.failures[errInvariant],
		y.failures[errNotConverged], y.converged)
}

// kinds are the failures that are counted.
func kinds() []error {
	return []error{errBricked, errWrongSlot, errLostUpdate, errInvariant, errNotConverged}
}

// fail counts a failure and shows the first of each kind.
func (y tally) fail(t *testing.T, where string, err error) {
	t.Helper()
	known := false
	for _, kind := range kinds() {
		if errors.Is(err, kind) {
			known = true
			if y.failures[kind]++; y.failures[kind] <= 3 {
				t.Errorf("%s: %v", where, err)
			}
		}
	}
	if !known {
		t.Fatalf("%s: %v", where, err)
	}
}

// explore judges all states of one operation.
func (j *judge) explore(t *testing.T, o *operation, r *recording) tally {
	t.Helper()
	y := tally{calls: r.log.Calls, failures: map[error]int{}}
	seen, classes := map[[sha256.Size]byte]bool{}, map[string]bool{}
	counts, err := model.Explore(r.log.Base, r.log.Ops, bounds(), func(s model.State, c model.Cut) error {
		key := s.Hash(r.world.List()...)
		atEnd := c.Before == "the end"
		if seen[key] && !atEnd {
			return nil
		}
		if !seen[key] {
			y.distinct++
			seen[key] = true
		}
		v, err := j.state(o, r, r.world, s, atEnd)
		if err == nil && atEnd {
			err = r.kept(s)
		}
		if err != nil {
			y.fail(t, fmt.Sprintf("%s: %v", o.name, c), err)
			return nil
		}
		class := j.class(r, s, v)
		if classes[class] || len(classes) >= most() {
			return nil
		}
		classes[class] = true
		y.converged++
		if err := j.converge(o, r, s, v); err != nil {
			y.fail(t, fmt.Sprintf("%s: %v", o.name, c), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	y.Counts, y.classes = counts, len(classes)
	return y
}

// class is what osctl can tell a state by: the copies, what it reads of the data
// partition, and which segments of the slots hold what is wanted.
func (j *judge) class(r *recording, s model.State, v verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %q ", v.booted, v.copies)
	data := s.Hash(r.world.Nodes["data"])
	fmt.Fprintf(&b, "%x ", data)
	after := slots(r.world, r.log.After)
	for i, slot := range slots(r.world, s) {
		for c := range slot.Chunks() {
			fmt.Fprintf(&b, "%t", slot.SameChunk(after[i], c))
		}
	}
	return b.String()
}

// converge lets the machine boot from a state, and osctl go on.
func (j *judge) converge(o *operation, r *recording, s model.State, v verdict) error {
	dir, err := os.MkdirTemp(j.fast, "converge")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the test's folder
	m := machine{j.site, dir}
	m.fixed()
	if err := errors.Join(r.world.Put(s, dir), m.putCopies(v.copies)); err != nil {
		return err
	}
	return m.goOn(j, o, v.booted)
}

// goOn is the machine after GRUB: the end of the boot, the same command again, until
// the goal is committed.
func (m machine) goOn(j *judge, o *operation, now booted) error {
	const enough = 5
	for boots := range enough {
		if o.red && now.slot == "B" {
			m.gateIsRed()
		} else {
			m.remove("run")
		}
		if r := m.run(now, settle...); r.code != 0 {
			return fmt.Errorf("%w: settle on %v: %v", errNotConverged, now, r)
		}
		if r := m.run(now, "status"); r.code != 0 {
			return fmt.Errorf("%w: status on %v: %v", errNotConverged, now, r)
		}
		release, err := m.release(j, now.slot)
		if err != nil {
			return err
		}
		if boots == 0 && o.args[0] != "settle" && (o.always || release != o.goal) {
			if err := m.again(o, now); err != nil {
				return err
			}
		}
		if now, err = j.bootMachine(m); err != nil {
			return err
		}
		if release, err = m.release(j, now.slot); err != nil {
			return err
		}
		if release == o.goal && now.kind == "committed" {
			return m.arrived()
		}
	}
	return fmt.Errorf("%w: after %d boots GRUB boots %v", errNotConverged, enough, now)
}

// again runs the command once more. A trial that GRUB could not take is remembered
// as a failure, so it takes --retry.
func (m machine) again(o *operation, now booted) error {
	r := m.run(now, o.args...)
	if r.code == exitRefused && now.kind == "unsaved" {
		r = m.run(now, append(o.args[:len(o.args):len(o.args)], "--retry")...)
	}
	if r.code != 0 {
		return fmt.Errorf("%w: osctl %v on %v: %v", errNotConverged, o.args[0], now, r)
	}
	return nil
}

// exitRefused is the exit code for an image that may not be installed.
const exitRefused = 21

// release is what a slot holds whole, by its name; empty for none.
func (m machine) release(j *judge, slot string) (string, error) {
	w, s, err := record.Read(m.dir, j.pool, roots()...)
	if err != nil || slot == "" {
		return "", err
	}
	return j.holds(s.Volume(w.Nodes[slot+".img"])), nil
}

// arrived checks that the boot state of a machine that has converged is whole.
func (m machine) arrived() error {
	store, err := boot.Open([2]string{m.path("efi/osctl/a/grubenv"), m.path("efi/osctl/b/grubenv")})
	if err != nil {
		return err
	}
	if _, problems, err := store.Load(); err != nil || len(problems) > 0 {
		return fmt.Errorf("%w: the boot state has problems: %v, %w", errNotConverged, problems, err)
	}
	return nil
}
