// Package gate has what the tests of the health gate share: a fake systemd and
// a fake containerd, and the suites that a fake has to pass as well as the real
// thing.
//
// The fakes exist to plant what a real daemon does not do on demand: hang, heed
// no context, fail. They are safe for concurrent use and work in a
// testing/synctest bubble.
package gate

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// bells is who has to be told of changes.
type bells struct {
	open []chan struct{}
	gone bool // the daemon is gone: new listeners hear nothing
}

func (b *bells) ring() {
	for _, c := range b.open {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// silence closes all channels, as the end of a daemon does.
func (b *bells) silence() {
	for _, c := range b.open {
		close(c)
	}
	b.open = nil
}

// fake is what both fakes have in common.
type fake struct {
	mu    sync.Mutex
	bells bells
	err   error
	hang  chan struct{}
	delay time.Duration
	asked int
}

// Fail makes the daemon answer everything with err, and its listeners lose
// their connection; nil brings it back.
func (f *fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.bells.gone = err != nil
	if err != nil {
		f.bells.silence()
	}
}

// Hang makes the daemon take questions and answer none, whatever becomes of
// the context, until the returned function is called.
func (f *fake) Hang() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hang := make(chan struct{})
	f.hang = hang
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.hang = nil
		close(hang)
	})
}

// Delay makes the daemon answer late, as long as whoever asks waits.
func (f *fake) Delay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// Asked is how many questions there were.
func (f *fake) Asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// Listeners is how many listen to Changes.
func (f *fake) Listeners() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.bells.open)
}

// answer waits while the daemon hangs and returns its error.
func (f *fake) answer(ctx context.Context) error {
	f.mu.Lock()
	f.asked++
	hang, delay, err := f.hang, f.delay, f.err
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Changes rings at once and after every change until ctx is done or the daemon
// fails.
func (f *fake) Changes(ctx context.Context) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	bell := make(chan struct{}, 1)
	if f.bells.gone || ctx.Err() != nil {
		close(bell)
		return bell
	}
	bell <- struct{}{}
	f.bells.open = append(f.bells.open, bell)
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i := slices.Index(f.bells.open, bell); i >= 0 {
			f.bells.open = slices.Delete(f.bells.open, i, i+1)
			close(bell)
		}
	})
	return bell
}

// Systemd is a fake of health.Systemd. Its zero value has booted and knows no
// unit.
type Systemd struct {
	fake
	states  map[string]string
	entered map[string]uint64
	pending []string
}

// Set gives units their active state, as in "active" or "failed".
func (s *Systemd) Set(state string, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.states == nil {
		s.states, s.entered = map[string]string{}, map[string]uint64{}
	}
	for _, name := range names {
		if state == "active" && s.states[name] != state {
			s.entered[name]++
		}
		s.states[name] = state
	}
	s.bells.ring()
}

// SetPending says which boot jobs are left.
func (s *Systemd) SetPending(jobs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = jobs
	s.bells.ring()
}

// Units returns what was set.
func (s *Systemd) Units(ctx context.Context, names []string) (health.Units, error) {
	if err := s.answer(ctx); err != nil {
		return health.Units{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := health.Units{State: map[string]string{}, Entered: map[string]uint64{}, Pending: slices.Clone(s.pending)}
	for _, name := range slices.Sorted(maps.Keys(s.states)) {
		if s.states[name] == "failed" {
			u.Failed = append(u.Failed, name)
		}
	}
	for _, name := range names {
		u.State[name] = "not-found"
		if state, ok := s.states[name]; ok {
			u.State[name], u.Entered[name] = state, s.entered[name]
		}
	}
	return u, nil
}

// Containers is a fake of workload.Reader. Its zero value has no containers.
type Containers struct {
	fake
	list    []health.Container
	pingErr error
	probe   func(ctx context.Context, c health.Container) (string, bool)
}

// Set replaces all containers.
func (c *Containers) Set(list ...health.Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = slices.Clone(list)
	c.bells.ring()
}

// Ring tells of a change where nothing has changed, every so often until ctx is done, as
// health checks of containers do.
func (c *Containers) Ring(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.mu.Lock()
			c.bells.ring()
			c.mu.Unlock()
		}
	}
}

// FailPing makes the daemon say that it does not serve, though it answers.
func (c *Containers) FailPing(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pingErr = err
}

// Ping returns nil unless the daemon hangs or fails.
func (c *Containers) Ping(ctx context.Context) error {
	if err := c.answer(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pingErr
}

// List returns what was set.
func (c *Containers) List(ctx context.Context) ([]health.Container, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list), nil
}

// OnProbe says what containers answer that run and are asked; nil, as at first, is that
// all is well.
func (c *Containers) OnProbe(f func(ctx context.Context, c health.Container) (string, bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probe = f
}

// Probe answers what OnProbe says.
func (c *Containers) Probe(ctx context.Context, of health.Container) (seen string, ok bool) {
	c.mu.Lock()
	f, err := c.probe, c.err
	ended := slices.ContainsFunc(c.list, func(is health.Container) bool {
		return is.Namespace == of.Namespace && is.ID == of.ID && is.Status != health.Running
	})
	c.mu.Unlock()
	switch {
	case err != nil:
		return err.Error(), false
	case ended:
		return "it has just ended", false
	}
	if f == nil {
		return "answers", true
	}
	return f(ctx, of)
}

// Network is a fake of device.Network.
type Network struct {
	fake
	facts health.Network
}

// Set replaces the facts.
func (n *Network) Set(facts health.Network) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.facts = facts
}

// Facts returns what was set.
func (n *Network) Facts(ctx context.Context) (health.Network, error) {
	if err := n.answer(ctx); err != nil {
		return health.Network{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.facts, nil
}
