package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"time"

	"golang.org/x/sys/unix"
)

// The defaults of Options.
const (
	DefaultDeadline = 5 * time.Minute
	DefaultSteady   = 30 * time.Second
	DefaultRetry    = 5 * time.Second
)

const (
	// lookLimit is how long one question may take before it counts as not
	// answered and is asked again.
	lookLimit = 10 * time.Second
	// lookGap keeps the storm of events while a machine boots from turning into
	// a storm of questions.
	lookGap = 250 * time.Millisecond
	// lookGapMost is what the gap grows to while looks find nothing new, whatever
	// tells of changes: nerdctl's health checks alone do so every few seconds, each
	// with several events.
	lookGapMost = 2 * time.Second
	// lookAgain bounds the wait when no event comes. Nothing should need it; a
	// gate that missed an event for want of it would roll back a good system.
	lookAgain = 10 * time.Second
	// lookUntold is how long what systemd said stands while it is not listened to, whatever
	// else is looked at meanwhile; it is asked anew at the end of the soak. A required unit
	// that was away in between is seen to have come back.
	lookUntold = 5 * time.Second
	// networkAgain is how long what was read of the network stands while nothing was
	// wrong with it: nobody tells of its changes, and to read it costs more than all
	// the rest of a look. It is read anew at the end of the soak.
	networkAgain = 20 * time.Second
	// networkBad is the same while something is wrong with it.
	networkBad = 5 * time.Second
	// lookBlind is the same while there is nothing to subscribe to, such as a
	// containerd that is not up yet.
	lookBlind = time.Second
	// endLimit is how long probes that heed their context may take to end what they
	// have started when the gate is over.
	endLimit = 2 * time.Second
)

// The parts of the machine that a Baseline is recorded from.
var (
	ErrSystemd    = errors.New("systemd cannot be asked")
	ErrContainers = errors.New("containerd cannot be asked")
)

// ErrLabels is that a container says something that cannot be understood.
var ErrLabels = errors.New("labels are wrong")

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
	// Probe asks a running container what its Declaration says that it answers, and
	// returns what was seen and whether all of it holds.
	Probe(ctx context.Context, c Container) (seen string, ok bool)
}

// network is what the gate wants to know of the machine's network; package device
// has the real one.
type network interface {
	// Facts is the present state.
	Facts(ctx context.Context) (Network, error)
}

// Network is the state of the machine's network.
type Network struct {
	// Routes are the default routes and those by a gateway, as in "ipv4 default dev
	// eth0" or "ipv4 10.1.0.0/16 dev eth1".
	Routes []string
	// Listening are the sockets that services listen on, as in "tcp/22 ssh.service".
	Listening []string
	// Unplugged are the interfaces that are there and have no carrier.
	Unplugged []string
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
	Network       network       // nil records and checks nothing
	Baseline      Baseline      // what has to be true again
	Probes        []Probe       // what else has to hold
	NetworkLevel  Level         // what routes and ports mean for the verdict; "" is Required
	RequiredUnits []string      // full names of units that have to be active
	Tolerated     []string      // patterns, as of path.Match, of units that may fail
	Deadline      time.Duration // of the whole gate; 0 is DefaultDeadline
	Steady        time.Duration // how long everything has to hold without a break before it is green; 0 is DefaultSteady
	Retry         time.Duration // the gap between two runs of a Probe; 0 is DefaultRetry
	// Progress is told, from one goroutine, of each change of a check, and every few
	// seconds while nothing changes; nil is nobody.
	Progress func(Progress)
	Log      *slog.Logger // what the gate waits for; nil is no log
}

// Run looks at the machine until everything that o expects holds and has held
// for o.Steady, or the deadline comes, or something can no longer come true in
// time. It returns at the deadline at the latest, whatever hangs; two seconds later when
// a probe has to end what it started. A caller that
// cancels ctx gets a report that is not green and has to look at ctx.Err before it
// draws conclusions from it.
func Run(ctx context.Context, o Options) Report {
	o.Deadline = cmp.Or(o.Deadline, DefaultDeadline)
	o.Steady = cmp.Or(o.Steady, DefaultSteady)
	o.Retry = cmp.Or(o.Retry, DefaultRetry)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	used := processorTime()
	ctx, cancel := context.WithTimeoutCause(ctx, o.Deadline, errDeadline)
	defer cancel()
	g := newGate(&o)
	for _, p := range o.Probes {
		g.probe(ctx, p)
	}
	checks, green := g.run(ctx)
	r := Report{
		Green:    green,
		Checks:   checks,
		Started:  g.started.Round(0),
		Finished: time.Now().Round(0),
		Duration: time.Since(g.started),
		Overhead: processorTime() - used,
	}
	o.Log.Info("health gate ended", "green", green, "took", r.Duration.Round(time.Millisecond), "overhead", r.Overhead.Round(time.Millisecond))
	cancel()
	g.end()
	return r
}

// processorTime is what this process has used of the processors so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	ever    map[checkID]bool          // which checks have held at some time
	held    *time.Duration            // when all of them began to hold; nil if they do not
	bells   [2]<-chan struct{}        // changes of systemd and of the containers; nil if unknown
	deafen  func()                    // ends that systemd tells of changes; nil if it does not
	probed  chan struct{}             // a probe has a new result
	probes  []*prober                 // of Options
	queues  map[string]*queue         // by Probe.Queue
	asked   map[string]*prober        // of containers that run, by containerKey and process
	runs    map[string]life           // by containerKey, what ran when it was last seen
	entered map[string]uint64         // when each required unit became active, of those that were at the last look
	found   []Check                   // of the newest look
	foundAt time.Duration
	gap     time.Duration // before the next look
	blind   bool          // there is nobody who tells of changes
	booted  bool          // all that is asked of systemd holds
	quiet   bool          // nobody told of one before this look

	recording   bool // the look is for a baseline
	readNetwork bool // something was wrong with the network when it was read
}

func newGate(o *Options) *gate {
	return &gate{
		o: o, started: time.Now(), since: map[checkID]time.Duration{}, ever: map[checkID]bool{},
		probed: make(chan struct{}, 1), asked: map[string]*prober{}, queues: map[string]*queue{}, runs: map[string]life{}, entered: map[string]uint64{},
		gap: lookGap,
	}
}

// run looks, judges and waits until it is over.
func (g *gate) run(ctx context.Context) (checks []Check, green bool) {
	for {
		g.subscribe(ctx)
		g.last = g.look(ctx)
		g.ask(ctx, g.last)
		checks = judge(g.o, g.last)
		g.readNetwork = slices.ContainsFunc(checks, func(c Check) bool { return c.Kind == KindNetwork && !c.OK })
		g.booted = !slices.ContainsFunc(checks, func(c Check) bool { return (c.Kind == KindSystemd || c.Kind == KindUnit) && !c.OK })
		if g.booted {
			g.deaf()
		}
		now := time.Since(g.started)
		all := g.track(checks, now)
		g.pace(checks, now)
		if all && g.held == nil {
			g.held = &now
		} else if !all {
			g.held = nil
		}
		g.report(checks, now)
		// Once ctx is done, the look may have been cut off: it makes nothing green.
		if all && g.soaked(g.last.at) && ctx.Err() == nil && g.confirmed(*g.held+g.o.Steady) {
			return append(checks, g.steady(ctx, now, true)), true
		}
		if c := g.hopeless(checks, now); c != nil {
			c.Seen += fmt.Sprintf(", after %v", now.Round(time.Second))
			c.Expected += fmt.Sprintf(" within %v", c.within)
			return g.blame(checks, now), false
		}
		g.wait(ctx, checks)
		if ctx.Err() != nil {
			end := time.Since(g.started)
			return append(g.blame(checks, end), g.steady(ctx, end, false)), false
		}
	}
}

// confirmed reports whether every probe that counts has held in a run that began
// after the soak, and asks those again that have not run since.
func (g *gate) confirmed(soaked time.Duration) bool {
	all := true
	for _, p := range g.running() {
		if p.Level == Wanted {
			continue
		}
		if r := p.last(); !r.ok || r.began < soaked {
			p.again(soaked)
			all = false
		}
	}
	return all
}

// hopeless is a required check whose own time has passed before it ever held; nil
// when there is none.
func (g *gate) hopeless(checks []Check, now time.Duration) *Check {
	for i := range checks {
		c := &checks[i]
		if c.Required && !c.OK && c.within > 0 && now >= c.within && !g.ever[checkID{c.Kind, c.Name}] {
			return c
		}
	}
	return nil
}

// blame marks, in a red report, the workloads that were started again too late to
// hold for long enough (at the moment of the last look they may run or not); and the
// probes that did not come to an end when all else had held.
func (g *gate) blame(checks []Check, now time.Duration) []Check {
	for i := range checks {
		c := &checks[i]
		if c.again == 0 || c.OK && now-g.since[checkID{c.Kind, c.Name}] >= g.o.Steady {
			continue
		}
		c.OK = false
		if text := "started again " + times(c.again) + " during the gate"; !strings.Contains(c.Seen, text) {
			c.Seen += "; " + text
		}
	}
	if g.soaked(now) {
		return blameLast(checks, g.probes, *g.held+g.o.Steady)
	}
	return checks
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// report tells of the progress.
func (g *gate) report(checks []Check, now time.Duration) {
	if g.o.Progress == nil {
		return
	}
	p := Progress{Started: g.started.Round(0), Elapsed: now, Deadline: g.o.Deadline, Steady: g.o.Steady, Checks: slices.Clone(checks)}
	if g.held != nil {
		held := now - *g.held
		p.Held = &held
	}
	g.o.Progress(p)
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
			g.ever[id] = true
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
