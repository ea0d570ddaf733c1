package crash

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync/atomic"
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
		return model.Bounds{Exhaustive: 8, Samples: 400, Tears: 0, Seed: seed}
	}
	return model.Bounds{Exhaustive: 4, Samples: 10, Tears: 8, Seed: seed}
}

// most is how many different classes of states osctl goes on from, for each
// operation.
func most() int {
	if exhaustive() {
		return 150
	}
	return 5
}

// recording is what an operation did.
type recording struct {
	world *record.World
	log   record.Log
	// What the running slot holds, and slot B before, and that without the sectors that
	// belong to no file system.
	running, other, inside [sha256.Size]byte
	// The parts of the data partition that are old or new, before and after.
	before, after map[string][sha256.Size]byte
	// end is the boot state that the command leaves.
	end boot.State
}

// parts are what a cut leaves old or new, never a mixture: the /etc of each slot,
// its order to reset, the order for all of the machine.
func parts(w *record.World, s model.State) map[string][sha256.Size]byte {
	data := w.Nodes["data"]
	found := map[string][sha256.Size]byte{"the order of a factory reset": s.Hash(s.Look(data, "osctl", "reset.json"))}
	for _, slot := range []string{"A", "B"} {
		found["the /etc of slot "+slot] = s.Hash(s.Look(data, "etc", slot, "upper"), s.Look(data, "etc", slot, "work"))
		found["the order to reset the /etc of slot "+slot] = s.Hash(s.Look(data, "etc", slot, "reset.json"))
	}
	return found
}

// record brings a machine to where an operation starts and records it.
func (j *judge) record(o *operation) *recording {
	s := j.site
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
	end, err := j.load(copies(world, log.After))
	if err != nil {
		s.t.Fatal(err)
	}
	return &recording{world: world, log: log, running: slots(world, base)[o.on.slot[0]-'A'].Hash(),
		other: slots(world, base)[1].Hash(), inside: inside(slots(world, base)[1]).Hash(),
		before: parts(world, base), after: parts(world, log.After), end: end}
}

// kept holds that what a command had written when it ended well stays: the boot
// state, the ledger, the /etc of the slots, orders, and the slot that it wrote.
func (j *judge) kept(r *recording, s model.State) error {
	file := func(s model.State, names ...string) string {
		return string(s.Content(s.Look(r.world.Nodes["data"], append([]string{"osctl"}, names...)...)))
	}
	state, err := j.load(copies(r.world, s))
	switch {
	case err != nil:
	case state != r.end:
		err = fmt.Errorf("the boot state is %v, not %v", state, r.end)
	case file(s, ledger.File) != file(r.log.After, ledger.File):
		err = errors.New("the ledger is the old one")
	case file(s, "slots", "B.json") != file(r.log.After, "slots", "B.json"):
		err = errors.New("what is kept of the image in slot B is not there")
	case !maps.Equal(parts(r.world, s), r.after):
		err = errors.New("an /etc, or an order to reset one, is the old one")
	case j.holds(slots(r.world, s)[1]) != j.holds(slots(r.world, r.log.After)[1]):
		err = errors.New("slot B does not hold what it held")
	}
	if err != nil {
		return fmt.Errorf("%w: the command had ended well, and %w", errLostUpdate, err)
	}
	return nil
}

// tally is what came of the states of one operation.
type tally struct {
	model.Counts
	calls, distinct, classes, converged int
	failures                            map[error]int
}

// TestPowerCuts explores every operation. They are independent of each other, and so
// run at once, as many as there are processors.
func TestPowerCuts(t *testing.T) {
	s := newSite(t)
	list := operations(s)
	rows := make([]*tally, len(list))
	var asked, boots atomic.Int64
	t.Cleanup(func() {
		t.Logf("%-34s %6s %7s %8s %9s | %8s %8s %8s %8s %8s | %9s", "operation", "calls", "pending", "states", "distinct",
			"bricked", "wrong", "lost", "invar.", "not conv", "continued")
		total := tally{failures: map[error]int{}}
		for i, row := range rows {
			if row != nil {
				t.Logf("%-34s %s", list[i].name, row)
				total.add(*row)
			}
		}
		t.Logf("%-34s %s", "all", total)
		b := bounds()
		t.Logf("%d times between two syncs, in %d of them more than %d changes were pending: there every prefix, every single one, all but each one, and %d random subsets (seed %d)",
			total.Windows, total.Bounded, b.Exhaustive, b.Samples, b.Seed)
		t.Logf("GRUB was asked %d times and ran %d times", asked.Load(), boots.Load())
		if total.distinct == 0 {
			t.Error("nothing was explored")
		}
	})
	for i, o := range list {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			own := s.beside(t, fmt.Sprintf("cuts%d", i))
			j := newJudge(own, t)
			o := operations(own)[i]
			rows[i] = j.explore(t, &o, j.record(&o))
			asked.Add(int64(j.asked + j.headless))
			boots.Add(int64(j.boots))
			t.Logf("%s: %d distinct states, %d continued, %v", o.name, rows[i].distinct, rows[i].converged, time.Since(began).Round(time.Second/10))
		})
	}
}

func (y *tally) add(one tally) {
	y.calls += one.calls
	y.Made += one.Made
	y.Most = max(y.Most, one.Most)
	y.Windows += one.Windows
	y.Bounded += one.Bounded
	y.distinct += one.distinct
	y.converged += one.converged
	for kind, n := range one.failures {
		y.failures[kind] += n
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
func (j *judge) explore(t *testing.T, o *operation, r *recording) *tally {
	t.Helper()
	y := &tally{calls: r.log.Calls, failures: map[error]int{}}
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
			err = j.kept(r, s)
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
			return m.arrived(j, o)
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

// arrived checks that a machine that has converged is whole: the boot state, and the
// other slot where that has to be a rung.
func (m machine) arrived(j *judge, o *operation) error {
	store, err := boot.Open([2]string(m.copyPaths()))
	if err != nil {
		return err
	}
	state, problems, err := store.Load()
	if err != nil || len(problems) > 0 {
		return fmt.Errorf("%w: the boot state has problems: %v, %w", errNotConverged, problems, err)
	}
	if !o.rung {
		return nil
	}
	if !state.Other {
		return fmt.Errorf("%w: the boot state is %v", errNotConverged, state)
	}
	got, err := m.release(j, string(state.Rootfs.Other()))
	if err == nil && got == "" {
		err = fmt.Errorf("%w: slot %s is not whole", errNotConverged, state.Rootfs.Other())
	}
	return err
}
