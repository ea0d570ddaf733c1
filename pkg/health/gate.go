package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// The defaults of Options.
const (
	DefaultDeadline = 5 * time.Minute
	DefaultSteady   = 5 * time.Second
)

const (
	// lookLimit is how long one question may take before it counts as not
	// answered and is asked again.
	lookLimit = 10 * time.Second
	// lookGap keeps the storm of events while a machine boots from turning into
	// a storm of questions.
	lookGap = 250 * time.Millisecond
	// lookAgain bounds the wait when no event comes. Nothing should need it; a
	// gate that missed an event for want of it would roll back a good system.
	lookAgain = 5 * time.Second
	// lookBlind is the same while there is nothing to subscribe to, such as a
	// containerd that is not up yet.
	lookBlind = time.Second
)

// The parts of the machine that a Baseline is recorded from.
var (
	ErrSystemd    = errors.New("systemd cannot be asked")
	ErrContainers = errors.New("containerd cannot be asked")
)

var (
	errNotConfigured = errors.New("not configured")
	errDeadline      = errors.New("the gate's deadline")
)

// containers is what the gate needs of containerd. Package workload has the
// real one.
type containers interface {
	// Ping returns nil if the daemon says that it serves.
	Ping(ctx context.Context) error
	// List returns the containers of all namespaces, whatever their status.
	List(ctx context.Context) ([]Container, error)
	// Changes returns at once with a channel that gets a first value when it has
	// begun to listen, and one after anything that List returns may have changed
	// since (several changes may be one value). It is closed when no more will
	// come: ctx is done or the daemon is gone.
	Changes(ctx context.Context) <-chan struct{}
}

// manager is what the gate needs of systemd; Systemd is the real one.
type manager interface {
	// Units returns the state of the units in general and of the named ones.
	Units(ctx context.Context, names []string) (Units, error)
	// Changes is to Units what it is to List in containers.
	Changes(ctx context.Context) <-chan struct{}
}

// Options says what is expected and whom to ask. Systemd and Containers have
// to be set: without one of them the gate is red.
type Options struct {
	Systemd       manager       // Systemd{}, or a fake of it
	Containers    containers    // a *workload.Reader, or a fake of it
	Baseline      Baseline      // what has to be true again
	RequiredUnits []string      // full names of units that have to be active
	Deadline      time.Duration // of the whole gate; 0 is DefaultDeadline
	Steady        time.Duration // how long everything has to hold without a break before it is green; 0 is DefaultSteady
	Log           *slog.Logger  // what the gate waits for; nil is no log
}

// Run looks at the machine until everything that o expects holds and has held
// for o.Steady, or the deadline comes. It returns at the deadline at the
// latest, whatever hangs. A caller that cancels ctx gets a report that is not
// green and has to look at ctx.Err before it draws conclusions from it.
func Run(ctx context.Context, o Options) Report {
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if o.Steady == 0 {
		o.Steady = DefaultSteady
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Deadline, errDeadline)
	defer cancel()
	g := gate{o: &o, started: time.Now(), since: map[checkID]time.Duration{}}
	checks, green := g.run(ctx)
	return Report{
		Green:    green,
		Checks:   checks,
		Started:  g.started.Round(0),
		Finished: time.Now().Round(0),
		Duration: time.Since(g.started),
	}
}

// Record takes the baseline of the running system. When a part of the machine
// does not answer within ten seconds, the error wraps ErrSystemd or
// ErrContainers (or both), and the baseline holds what could be read: the
// caller decides whether that will do.
func Record(ctx context.Context, o Options) (Baseline, error) {
	g := gate{o: &o, started: time.Now()}
	seen := g.look(ctx)
	b := Baseline{Workloads: []Workload{}, FailedUnits: []string{}, RecordedAt: g.started.Round(0).UTC()}
	var errs []error
	if seen.unitsErr != nil {
		errs = append(errs, fmt.Errorf("recording failed units: %w: %w", ErrSystemd, seen.unitsErr))
	} else {
		b.FailedUnits = append(b.FailedUnits, seen.units.Failed...)
	}
	if seen.containersErr != nil {
		errs = append(errs, fmt.Errorf("recording workloads: %w: %w", ErrContainers, seen.containersErr))
	}
	for _, c := range seen.containers {
		if c.Status == Running {
			b.Workloads = append(b.Workloads, c.Workload)
		}
	}
	return b, errors.Join(errs...)
}

// checkID tells the checks of one report apart.
type checkID struct {
	kind Kind
	name string
}

// gate is one run. Durations in it count from started, by the monotonic clock.
type gate struct {
	o       *Options
	started time.Time
	last    *observation              // the newest one, nil at first
	since   map[checkID]time.Duration // when each check began to hold; absent if it does not
	held    *time.Duration            // when all of them began to hold; nil if they do not
	bells   [2]<-chan struct{}        // changes of systemd and of the containers; nil if unknown
}

// run looks, judges and waits until it is over.
func (g *gate) run(ctx context.Context) (checks []Check, green bool) {
	for {
		g.subscribe(ctx)
		g.last = g.look(ctx)
		checks = judge(g.o, g.last)
		now := time.Since(g.started)
		all := g.track(checks, now)
		if all && g.held == nil {
			g.held = &now
		} else if !all {
			g.held = nil
		}
		// Once ctx is done, the look may have been cut off: it makes nothing green.
		if all && now-*g.held >= g.o.Steady && ctx.Err() == nil {
			return append(checks, g.steady(ctx, now, true)), true
		}
		g.wait(ctx)
		if ctx.Err() != nil {
			return append(checks, g.steady(ctx, time.Since(g.started), false)), false
		}
	}
}

// track notes since when each check holds, fills in the durations and says
// whether all required ones hold.
func (g *gate) track(checks []Check, now time.Duration) bool {
	all := true
	for i := range checks {
		c := &checks[i]
		id := checkID{c.Kind, c.Name}
		at, held := g.since[id]
		if c.OK != held {
			g.o.Log.Info("health check changed", "kind", c.Kind, "name", c.Name, "ok", c.OK, "seen", c.Seen, "expected", c.Expected)
		}
		switch {
		case !c.OK:
			delete(g.since, id)
			at = now
		case !held:
			g.since[id], at = now, now
		}
		c.Duration = at
		all = all && (c.OK || !c.Required)
	}
	return all
}

// steady is the last check: that all the others hold long enough.
func (g *gate) steady(ctx context.Context, now time.Duration, ok bool) Check {
	c := Check{
		Kind: KindSteady, Name: "steady", Required: true, OK: ok, Duration: now,
		Expected: fmt.Sprintf("everything holds for %v within %v", g.o.Steady, g.o.Deadline),
		Seen:     notSeen,
	}
	switch {
	case !ok && ctx.Err() != nil && !errors.Is(context.Cause(ctx), errDeadline):
		c.Seen = fmt.Sprintf("interrupted after %v: %v", now.Round(time.Millisecond), context.Cause(ctx))
	case g.held != nil:
		c.Seen = fmt.Sprintf("everything held for %v", (now - *g.held).Round(time.Millisecond))
	}
	return c
}

// subscribe asks to be told of changes where that is not the case yet.
func (g *gate) subscribe(ctx context.Context) {
	if g.bells[0] == nil && g.o.Systemd != nil {
		g.bells[0] = g.o.Systemd.Changes(ctx)
	}
	if g.bells[1] == nil && g.o.Containers != nil {
		g.bells[1] = g.o.Containers.Changes(ctx)
	}
}

// wait returns when it is time to look again: something changed, everything
// has held long enough, or it has been a while; or when ctx is done.
func (g *gate) wait(ctx context.Context) {
	gap := time.NewTimer(lookGap)
	defer gap.Stop()
	most := lookAgain
	if g.held != nil {
		most = min(most, g.o.Steady-(time.Since(g.started)-*g.held))
	}
	again := time.NewTimer(most)
	defer again.Stop()
	if most > lookGap {
		select {
		case <-ctx.Done():
			return
		case <-gap.C:
		}
	}
	for {
		rung := true
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			return
		case _, rung = <-g.bells[0]:
			if !rung {
				g.bells[0] = nil
			}
		case _, rung = <-g.bells[1]:
			if !rung {
				g.bells[1] = nil
			}
		}
		if rung {
			return
		}
		again.Reset(min(most, lookBlind))
	}
}

// look asks systemd and containerd at the same time.
func (g *gate) look(ctx context.Context) *observation {
	var seen observation
	asked := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		seen.units, seen.unitsErr = ask(ctx, func(ctx context.Context) (Units, error) {
			if g.o.Systemd == nil {
				return Units{}, errNotConfigured
			}
			return g.o.Systemd.Units(ctx, g.o.RequiredUnits)
		})
	})
	wg.Go(func() {
		seen.containers, seen.containersErr = ask(ctx, func(ctx context.Context) ([]Container, error) {
			if g.o.Containers == nil {
				return nil, errNotConfigured
			}
			if err := g.o.Containers.Ping(ctx); err != nil {
				return nil, err
			}
			return g.o.Containers.List(ctx)
		})
	})
	wg.Wait()
	// A question that the deadline cut off before its time was up says nothing
	// about who was asked; what was seen before does.
	if g.last != nil && ctx.Err() != nil && time.Since(asked) < lookLimit {
		return g.last
	}
	return &seen
}

// ask returns what f returns, or gives up on it after lookLimit or when ctx is
// done, even if f does not heed its context.
func ask[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	answers := make(chan answer, 1)
	go func() {
		value, err := f(ctx)
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		if a.err == nil || ctx.Err() == nil {
			return a.value, a.err
		}
	case <-ctx.Done():
	}
	var none T
	return none, fmt.Errorf("no answer after %v", time.Since(asked).Round(time.Millisecond))
}
