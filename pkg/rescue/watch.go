package rescue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/progress"
)

// Attempt looks at the machine and does the best that can be done for it now, in
// this order: restore the committed slot from where it came; restore the other one
// if it was committed once, or take it as it is if it is whole; install what the
// reference means today, if that is something new. It takes the lock.
//
// Whole means that there was nothing to do. An error says why nothing worked.
func Attempt(ctx context.Context, m Machine, sink progress.Sink) (_ Survey, r Result, err error) {
	release, err := m.Lock()
	if err != nil {
		return Survey{}, Result{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	s := Look(ctx, m, sink)
	if err := m.acknowledge(&s); err != nil {
		return s, Result{}, err
	}
	r, err = m.attempt(ctx, s, sink)
	return s, r, err
}

func (m Machine) attempt(ctx context.Context, s Survey, sink progress.Sink) (Result, error) {
	var failed error
	for i, name := range s.order() {
		found := s.slotOf(name)
		switch {
		case !found.Committed:
			continue
		case found.Whole && i == 0:
			// The slot is not what keeps the machine down.
			r, err := m.newer(ctx, s, sink)
			if r.Outcome == "" {
				r.Outcome = Whole
				m.note(err)
			}
			return r, nil
		case found.Whole:
			return m.reprove(ctx, found, sink)
		}
		r, err := m.again(ctx, s, found, sink)
		if err == nil {
			return r, nil
		}
		failed = errors.Join(failed, err)
	}
	r, err := m.newer(ctx, s, sink)
	if err == nil && r.Outcome == "" {
		err = errors.New("nothing is known that could be installed")
	}
	if err != nil {
		return Result{}, errors.Join(failed, err)
	}
	m.note(failed)
	return r, nil
}

func (m Machine) note(err error) {
	if err != nil {
		m.Log.Warn("rescue", "error", err)
	}
}

// order is the slots, the one that is to be booted first.
func (s *Survey) order() []device.Slot {
	first := s.Proven
	if first == "" {
		first = device.SlotA
		if b := s.slotOf(device.SlotB); b.Committed && !s.slotOf(first).Committed {
			first = device.SlotB
		}
	}
	return []device.Slot{first, first.Other()}
}

// again pulls what was committed in a slot once more, by its digest.
func (m Machine) again(ctx context.Context, s Survey, found *Slot, sink progress.Sink) (_ Result, err error) {
	references := []string{found.Reference, m.Reference}
	var failed error
	for _, reference := range references {
		if reference == "" || found.Digest == "" {
			continue
		}
		r, err := m.from(ctx, s, Order{Slot: found.Name, Reference: reference}, at(reference, found.Digest), sink)
		if err == nil {
			return r, nil
		}
		failed = errors.Join(failed, err)
	}
	if failed == nil {
		failed = wrap(found.Name, errors.New("nothing says where its image came from"))
	}
	return Result{}, failed
}

// newer installs what the slots' references mean today, unless that is what they
// hold. The zero Result says that there is nothing new.
func (m Machine) newer(ctx context.Context, s Survey, sink progress.Sink) (Result, error) {
	target := s.order()[1]
	var failed error
	tried := map[string]bool{"": true}
	for _, reference := range []string{s.slotOf(s.order()[0]).Reference, s.slotOf(target).Reference, m.Reference} {
		if tried[reference] {
			continue
		}
		tried[reference] = true
		r, err := m.from(ctx, s, Order{Slot: target, Reference: reference}, reference, sink)
		if err == nil && r.Outcome != "" {
			return r, nil
		}
		failed = errors.Join(failed, err)
	}
	return Result{}, failed
}

// from resolves a reference and restores from it. What a slot holds whole already
// is nothing new: the zero Result.
func (m Machine) from(ctx context.Context, s Survey, o Order, reference string, sink progress.Sink) (_ Result, err error) {
	sink.Say(progress.Resolve, "resolving "+reference)
	source, err := m.Resolve(ctx, reference)
	if err != nil {
		return Result{}, wrap(o.Slot, err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	for _, known := range s.Slots {
		if known.Whole && known.Digest == source.Digest().String() {
			return Result{}, nil
		}
	}
	o.Offer = source
	return m.restore(ctx, s, o, sink)
}

// Watching is how Watch goes about it.
type Watching struct {
	// Network brings the network up before each attempt; nil leaves it as it is.
	Network func(ctx context.Context) error
	// Wait waits between attempts; it ends early with the context's error.
	Wait func(ctx context.Context, d time.Duration) error
	// Tell is told what each attempt found and did; pause is zero when it was the
	// last one.
	Tell func(s Survey, r Result, err error, pause time.Duration)
}

// The pauses between attempts begin with the first and double up to the longest.
// A machine whose slots are whole gets another start after patience: what kept it
// down may be gone, such as a disk or a power supply that was cold.
const (
	firstPause   = 15 * time.Second
	longestPause = 15 * time.Minute
	patience     = 30 * time.Minute
)

// Watch attempts until something worked, and returns when the machine should start
// again. It ends with an error only when its context does.
func Watch(ctx context.Context, m Machine, w Watching, sink progress.Sink) (Result, error) {
	var waited time.Duration
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		if w.Network != nil {
			m.note(w.Network(ctx))
		}
		s, r, err := Attempt(ctx, m, sink)
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("watching: %w", ctx.Err())
		}
		enough := err == nil && r.Outcome == Whole && waited >= patience
		if enough {
			err = mild(m, m.Boot.Settle())
			enough = err == nil
		}
		if enough || err == nil && r.Outcome != Whole {
			w.Tell(s, r, nil, 0)
			return r, nil
		}
		w.Tell(s, r, err, pause)
		if err := w.Wait(ctx, pause); err != nil {
			return Result{}, fmt.Errorf("watching: %w", err)
		}
		waited += pause
	}
}

// Repair restores what was committed in a slot, from where it came; name "" is the
// slot that is to be booted. Unlike Attempt it takes no other way. It takes the
// lock.
func Repair(ctx context.Context, m Machine, name device.Slot, sink progress.Sink) (r Result, err error) {
	release, err := m.Lock()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	s := m.brief()
	if err := m.acknowledge(&s); err != nil {
		return Result{}, err
	}
	if name == "" {
		name = s.order()[0]
	}
	found := s.slotOf(name)
	if !found.Committed {
		return Result{}, wrap(name, errors.New("nothing says that an image was committed in it; name one"))
	}
	return m.again(ctx, s, found, sink)
}
