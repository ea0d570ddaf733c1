package health

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// observation is one look at the machine. Where an error is set, the other
// fields beside it mean nothing.
type observation struct {
	at            time.Duration // when it began, since the start of the gate
	units         Units
	unitsErr      error
	unitsAt       time.Duration // when systemd was asked
	containers    []Container
	containersErr error
	network       Network
	networkErr    error
	networkAt     time.Duration // when it was read
	probes        []probeResult
	answers       map[string]result // of containers that declare how to be asked, by containerKey
	justStarted   map[string]bool   // by containerKey: started again since the look before
	startedAgain  map[string]int    // by containerKey: how often that was seen in this gate
	unitsAgain    map[string]bool   // units that became active again since the look before
}

// containerKey tells containers apart.
func containerKey(w Workload) string { return w.Namespace + "/" + w.ID }

// life is what is remembered of a container that runs.
type life struct {
	pid      uint32
	restarts int
	again    int // how often it was seen to have been started again
}

// look asks systemd and containerd at the same time.
func (g *gate) look(ctx context.Context) *observation {
	seen := observation{at: time.Since(g.started)}
	var wg sync.WaitGroup
	wg.Go(func() {
		if !g.unitsDue(seen.at) {
			seen.units, seen.unitsErr, seen.unitsAt = g.last.units, g.last.unitsErr, g.last.unitsAt
			return
		}
		seen.unitsAt = seen.at
		seen.units, seen.unitsErr = ask(ctx, lookLimit, func(ctx context.Context) (Units, error) {
			if g.o.Systemd == nil {
				return Units{}, errNotConfigured
			}
			return g.o.Systemd.Units(ctx, g.o.RequiredUnits)
		})
	})
	wg.Go(func() {
		seen.containers, seen.containersErr = ask(ctx, lookLimit, func(ctx context.Context) ([]Container, error) {
			if g.o.Containers == nil {
				return nil, errNotConfigured
			}
			if err := g.o.Containers.Ping(ctx); err != nil {
				return nil, err
			}
			return g.o.Containers.List(ctx)
		})
	})
	wg.Go(func() {
		if !g.networkDue(seen.at) {
			if g.last != nil {
				seen.network, seen.networkErr, seen.networkAt = g.last.network, g.last.networkErr, g.last.networkAt
			}
			return
		}
		seen.networkAt = seen.at
		seen.network, seen.networkErr = ask(ctx, lookLimit, g.o.Network.Facts)
	})
	wg.Wait()
	// A question that the deadline cut off before its time was up says nothing
	// about who was asked; what was seen before does. Who is asked may know of the
	// deadline before the timer of ctx has rung.
	now := time.Since(g.started)
	if g.last != nil && (ctx.Err() != nil || now >= g.o.Deadline) && now-seen.at < lookLimit {
		return g.last
	}
	g.count(&seen)
	return &seen
}

// unitsDue reports whether systemd has to be asked: not all that it said was as it should
// be, it has not been asked for a while, or everything has held for long enough and it
// decides.
func (g *gate) unitsDue(now time.Duration) bool {
	return g.last == nil || !g.booted || now-g.last.unitsAt >= lookUntold || g.soaked(now)
}

// soaked reports whether everything has held for long enough.
func (g *gate) soaked(now time.Duration) bool { return g.held != nil && now-*g.held >= g.o.Steady }

// networkDue reports whether the network has to be read: it has not been for a while,
// something was wrong with it, or everything has held for long enough and it decides.
func (g *gate) networkDue(now time.Duration) bool {
	switch {
	case g.o.Network == nil:
		return false
	case g.recording:
		return true
	case len(g.o.Baseline.Routes)+len(g.o.Baseline.Listening) == 0 || g.o.NetworkLevel == Ignore:
		return false
	case g.last == nil:
		return true
	case g.readNetwork && now-g.last.networkAt >= networkBad:
		return true
	default:
		return now-g.last.networkAt >= networkAgain || g.soaked(now)
	}
}

// count notes which containers were started again since they were last seen, and which
// units became active again.
func (g *gate) count(seen *observation) {
	seen.startedAgain, seen.justStarted, seen.unitsAgain = map[string]int{}, map[string]bool{}, map[string]bool{}
	for name, entered := range seen.units.Entered {
		before, active := g.entered[name]
		seen.unitsAgain[name] = active && before != entered
		delete(g.entered, name)
		if isActive(seen.units.State[name]) {
			g.entered[name] = entered
		}
	}
	for _, c := range seen.containers {
		key := containerKey(c.Workload)
		before, known := g.runs[key]
		if c.Status != Running {
			seen.startedAgain[key] = before.again
			continue
		}
		now := life{c.Pid, c.Restarts, before.again}
		if known && (now.pid != before.pid || now.restarts > before.restarts) {
			now.again++
			seen.justStarted[key] = true
		}
		g.runs[key] = now
		seen.startedAgain[key] = now.again
	}
}

// ask returns what f returns, or gives up on it after limit or when ctx is
// done, even if f does not heed its context.
func ask[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
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

// subscribe asks to be told of changes where that is not the case yet. Of systemd only
// while something of it does not hold: it tells whoever is connected all properties of
// every unit that changes, and each health check of a container is a unit of its own. To
// read that costs more than to look every lookUntold, which the gate does then.
func (g *gate) subscribe(ctx context.Context) {
	if !g.booted && g.bells[0] == nil && g.o.Systemd != nil {
		g.deaf()
		var listening context.Context
		listening, g.deafen = context.WithCancel(ctx)
		g.bells[0] = g.o.Systemd.Changes(listening)
	}
	if g.bells[1] == nil && g.o.Containers != nil {
		g.bells[1] = g.o.Containers.Changes(ctx)
	}
}

// deaf ends that systemd tells of changes.
func (g *gate) deaf() {
	if g.deafen != nil {
		g.deafen()
		g.deafen, g.bells[0] = nil, nil
	}
}

// pace sets the gap before the next look: longer with each one that found nothing new
// though something had told of a change, short again after a quiet time or after one
// that did find something.
func (g *gate) pace(checks []Check, now time.Duration) {
	quiet := g.quiet || now-g.foundAt >= g.gap+lookGapMost
	same := slices.EqualFunc(g.found, checks, func(a, b Check) bool {
		return a.Kind == b.Kind && a.Name == b.Name && a.OK == b.OK && a.Seen == b.Seen
	})
	g.found, g.foundAt = slices.Clone(checks), now
	defer func() { g.blind, g.quiet = false, false }()
	if quiet || g.blind || !same {
		g.gap = lookGap
		return
	}
	g.gap = min(2*g.gap, lookGapMost)
}

// wait returns when it is time to look again: something changed, everything
// has held long enough, or it has been a while; or when ctx is done.
func (g *gate) wait(ctx context.Context, checks []Check) {
	most, now := lookAgain, time.Since(g.started)
	if g.booted {
		most = max(0, g.last.unitsAt+lookUntold-now)
	}
	if g.held != nil && !g.soaked(g.last.at) {
		most = min(most, max(0, g.o.Steady-(now-*g.held)))
	}
	if len(g.last.justStarted) > 0 || !g.booted && g.deafen == nil && g.o.Systemd != nil {
		most = lookGap // what was started again may hold from then on; systemd is listened to from then on
	}
	if g.readNetwork {
		most = min(most, networkBad)
	}
	for _, c := range checks {
		if !c.OK && c.within > now {
			most = min(most, c.within-now)
		}
	}
	again := time.NewTimer(most)
	defer again.Stop()
	if most > lookGap {
		gap := time.NewTimer(min(g.gap, most))
		defer gap.Stop()
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
			g.quiet = most > lookGapMost
			return
		case <-g.probed:
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
		g.blind = true
		again.Reset(min(most, lookBlind))
	}
}
