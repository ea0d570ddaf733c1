package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Record takes the baseline of the running system. When a part of the machine
// does not answer within ten seconds, the error wraps ErrSystemd or
// ErrContainers (or both), and the baseline holds what could be read: the
// caller decides whether that will do. It wraps ErrLabels when a container's labels are
// wrong: the gate would be red for certain.
//
// Containers that declare how they can be asked are: what does not answer now cannot
// get worse.
func Record(ctx context.Context, o Options) (Baseline, error) {
	g := newGate(&o)
	g.recording = true
	seen := g.look(ctx)
	b := Baseline{
		Workloads: []Workload{}, FailedUnits: []string{}, RecordedAt: g.started.Round(0).UTC(),
		Routes: seen.network.Routes, Listening: unpublished(seen.network.Listening, seen.containers),
	}
	var errs []error
	if seen.unitsErr != nil {
		errs = append(errs, fmt.Errorf("recording failed units: %w: %w", ErrSystemd, seen.unitsErr))
	} else {
		b.FailedUnits = append(b.FailedUnits, seen.units.Failed...)
	}
	if seen.containersErr != nil {
		errs = append(errs, fmt.Errorf("recording workloads: %w: %w", ErrContainers, seen.containersErr))
	}
	if seen.networkErr != nil {
		errs = append(errs, fmt.Errorf("recording routes and ports: %w", seen.networkErr))
	}
	var running []Container
	for _, c := range seen.containers {
		if c.Status != Running {
			continue
		}
		if c.Declared.Bad != "" && c.Declared.Level != Ignore {
			errs = append(errs, fmt.Errorf("%w: %s: %s", ErrLabels, c.Workload, c.Declared.Bad))
		}
		running = append(running, c)
	}
	if len(errs) == 0 {
		g.askAll(ctx, running)
	}
	for _, c := range running {
		b.Workloads = append(b.Workloads, c.Workload)
	}
	return b, errors.Join(errs...)
}

// unpublished are the sockets of the machine itself. nerdctl holds each published port of
// a container open, and does so as a process of containerd.service's when containerd has
// started the container: that is the container's business, whose own check says what it
// means when it does not come back.
func unpublished(listening []string, containers []Container) []string {
	return slices.DeleteFunc(slices.Clone(listening), func(line string) bool {
		port, _, _ := strings.Cut(line, " ")
		return slices.ContainsFunc(containers, func(c Container) bool { return slices.Contains(c.Ports, port) })
	})
}

const (
	// recordTries is how often a container is asked before it counts as one that does
	// not answer: whatever it does from then on will do.
	recordTries = 3
	recordGap   = time.Second
	// recordLimit is how long all that may take.
	recordLimit = 40 * time.Second
)

// askAll asks all containers that say how, at the same time, and notes what those say
// that do not answer as they declare.
func (g *gate) askAll(ctx context.Context, list []Container) {
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	var wg sync.WaitGroup
	for i := range list {
		if c := &list[i]; asks(c.Declared) && c.Declared.Level != Ignore {
			wg.Go(func() { c.Failing = g.askOne(ctx, *c) })
		}
	}
	wg.Wait()
}

// askOne returns what a container says that does not answer as it declares, or "".
func (g *gate) askOne(ctx context.Context, c Container) (failing string) {
	for try := 0; try < recordTries && ctx.Err() == nil; try++ {
		if try > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(recordGap):
			}
		}
		r, err := ask(ctx, askLimit(c.Declared), func(ctx context.Context) (result, error) {
			seen, ok := g.o.Containers.Probe(ctx, c)
			return result{seen: seen, ok: ok}, nil
		})
		switch {
		case err != nil:
			failing = err.Error()
		case r.ok:
			return ""
		default:
			failing = r.seen
		}
	}
	if g.o.Log != nil {
		g.o.Log.Warn("a container does not answer as it declares; the gate will not ask that of it", "name", c.String(), "seen", failing)
	}
	return failing
}
