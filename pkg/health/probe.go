package health

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Probe is a check beside those of systemd and of the workloads: an operator's
// script, a command, a question over the network. It is run at the start of the
// gate, again and again until it holds, and once more after the soak.
type Probe struct {
	Kind     Kind
	Name     string        // unique among the probes of its kind
	Level    Level         // Required ("" as well) or Wanted
	Expected string        // in words
	Timeout  time.Duration // of one run, which then counts as failed; 0 is 10 s
	Within   time.Duration // how long it may take until it holds for the first time; 0 is the gate's deadline
	Once     bool          // it is not run during the soak, as long as it holds
	Queue    string        // probes of one queue run one at a time, at first in the order of Options; "" waits for nobody
	// Run returns what was seen and whether that will do. It should heed ctx; when it
	// does not, the gate goes on without it and it is not started again before it has
	// returned.
	Run func(ctx context.Context) (seen string, ok bool)
}

// prober runs one probe until its context is done.
type prober struct {
	Probe
	kick   chan struct{} // it is to run again now
	busy   chan struct{} // holds a token while Run runs
	queue  *queue        // nil if it waits for nobody
	cancel context.CancelFunc

	mu     sync.Mutex
	turn   *turn // its place in the queue; nil if it has none
	result result
	began  time.Duration // when the newest run began, which may be under way
	runs   int           // how many have begun
}

// result is what the last run that came to an end has seen.
type result struct {
	seen  string
	ok    bool
	began time.Duration // since the start of the gate
}

// probe starts a probe of the gate's options.
func (g *gate) probe(ctx context.Context, p Probe) { g.probes = append(g.probes, g.start(ctx, p)) }

func (g *gate) start(ctx context.Context, probe Probe) *prober {
	if probe.Timeout == 0 {
		probe.Timeout = lookLimit
	}
	p := &prober{
		Probe: probe, kick: make(chan struct{}, 1), busy: make(chan struct{}, 1),
		result: result{seen: "has not answered yet"},
	}
	if probe.Queue != "" {
		if g.queues[probe.Queue] == nil {
			g.queues[probe.Queue] = &queue{}
		}
		p.queue = g.queues[probe.Queue]
		p.turn = p.queue.join()
		p.result.seen = "has not had its turn yet"
	}
	ctx, p.cancel = context.WithCancel(ctx)
	go p.run(ctx, g)
	return p
}

// running are all probes that are under way.
func (g *gate) running() []*prober {
	return append(slices.Clone(g.probes), slices.Collect(maps.Values(g.asked))...)
}

func (p *prober) last() result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result
}

// again asks for a run that begins at a moment or later, unless there is one.
func (p *prober) again(from time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began >= from {
		return
	}
	if p.queue != nil && p.turn == nil {
		p.turn = p.queue.join() // here, so that the order is that of who asks
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (p *prober) run(ctx context.Context, g *gate) {
	for ctx.Err() == nil {
		if !p.await(ctx) {
			return
		}
		began := time.Since(g.started)
		p.start(began)
		seen, ok := p.once(ctx)
		p.leave()
		if ctx.Err() != nil {
			return // what was cut off says nothing
		}
		p.mu.Lock()
		p.result = result{seen, ok, began}
		p.mu.Unlock()
		select {
		case g.probed <- struct{}{}:
		default:
		}
		gap := time.NewTimer(g.o.Retry)
		again := gap.C
		if ok && p.Once {
			again = nil
		}
		select {
		case <-ctx.Done():
		case <-again:
		case <-p.kick:
		}
		gap.Stop()
	}
}

// end waits until the probes that are under way have ended what they started: whoever
// asked for the gate may be gone, and the machine reboot, as soon as it returns.
func (g *gate) end() {
	late := time.NewTimer(endLimit)
	defer late.Stop()
	for _, p := range g.running() {
		select {
		case p.busy <- struct{}{}:
		case <-late.C:
			return
		}
	}
}

// start notes that a run begins.
func (p *prober) start(began time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began = began; p.queue != nil && p.runs == 0 {
		p.result.seen = "has not ended yet"
	}
	p.runs++
	select {
	case <-p.kick: // who asked before it began is served by it
	default:
	}
}

// await waits for the probe's turn; false is that it will not come.
func (p *prober) await(ctx context.Context) bool {
	if p.queue == nil {
		return true
	}
	p.mu.Lock()
	if p.turn == nil {
		p.turn = p.queue.join()
	}
	mine := p.turn
	p.mu.Unlock()
	select {
	case <-mine.come:
		return true
	case <-ctx.Done():
		p.leave()
		return false
	}
}

// leave lets the next one of the queue run.
func (p *prober) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue != nil {
		p.queue.leave(p.turn)
		p.turn = nil
	}
}

// once runs the probe within its time.
func (p *prober) once(ctx context.Context) (seen string, ok bool) {
	select {
	case p.busy <- struct{}{}:
	default:
		return "the run before has still not ended", false
	}
	r, err := ask(ctx, p.Timeout, func(ctx context.Context) (result, error) {
		defer func() { <-p.busy }()
		seen, ok := p.Run(ctx)
		return result{seen: seen, ok: ok}, nil
	})
	if err != nil {
		return err.Error(), false
	}
	return r.seen, r.ok
}

// ask keeps one prober for each container that runs, counts and says how it can be
// asked. One that was started again is asked anew.
func (g *gate) ask(ctx context.Context, seen *observation) {
	alive := map[string]bool{}
	for _, c := range seen.containers {
		d := c.Declared
		if c.Status != Running || !asks(d) || level(g.o, c) == Ignore {
			continue
		}
		key := fmt.Sprintf("%s %d", containerKey(c.Workload), c.Pid)
		alive[key] = true
		if g.asked[key] == nil {
			g.asked[key] = g.start(ctx, Probe{Level: level(g.o, c), Timeout: askLimit(d), Run: func(ctx context.Context) (string, bool) {
				return g.o.Containers.Probe(ctx, c)
			}})
		}
		if seen.answers == nil {
			seen.answers = map[string]result{}
		}
		seen.answers[containerKey(c.Workload)] = g.asked[key].last()
	}
	for key, p := range g.asked {
		if !alive[key] {
			p.cancel()
			delete(g.asked, key)
		}
	}
	seen.probes = nil
	for _, p := range g.probes {
		seen.probes = append(seen.probes, probeResult{p.Probe, p.last()})
	}
}

// blameLast marks the probes that held once and have not answered again since the soak
// was over.
func blameLast(checks []Check, probes []*prober, soaked time.Duration) []Check {
	for _, p := range probes {
		r := p.last()
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Kind == p.Kind && c.Name == p.Name })
		if i >= 0 && p.Level != Wanted && r.ok && r.began < soaked {
			checks[i].OK = false
			checks[i].Seen += "; has not answered again after the soak"
		}
	}
	return checks
}

// probeResult is a probe of the options with what it has seen last.
type probeResult struct {
	Probe
	result
}
