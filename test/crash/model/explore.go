package model

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Bounds says how far Explore goes where the number of states explodes.
type Bounds struct {
	// Exhaustive is the number of pending changes up to which every subset is
	// taken; beyond it, every prefix, every single one, all but each single one, and
	// Samples random subsets.
	Exhaustive, Samples int
	// Tears is the number of places at which the last write of a prefix is torn,
	// spread over it; 0 means at every sector. Other writes are torn at a few places.
	Tears int
	Seed  uint64
}

// Cut says how a state came about.
type Cut struct {
	Before string   // the sync that had not returned, or "the end"
	Chosen []string // the pending changes that are there
	Torn   string
}

// String is the cut in words.
func (c Cut) String() string {
	s := "before " + c.Before + ", of the pending changes there are: "
	if len(c.Chosen) == 0 {
		s += "none"
	}
	s += strings.Join(c.Chosen, "; ")
	if c.Torn != "" {
		s += "; torn is " + c.Torn
	}
	return s
}

// Counts is how much Explore looked at.
type Counts struct {
	// Made is the number of states that were made, the same ones included.
	Made int
	// Windows is the number of times between two syncs, Bounded that of those in
	// which not every subset was taken.
	Windows, Bounded int
	// Most is the largest number of changes that were pending at once.
	Most int
}

// Explore calls visit with every state that the medium may hold after a cut at any
// moment while ops were made on base. The same state may come more than once.
func Explore(base State, ops []Op, b Bounds, visit func(State, Cut) error) (Counts, error) {
	e := explorer{Bounds: b, visit: visit, base: base.Clone(), random: rand.New(rand.NewPCG(b.Seed, 1))}
	ops = numbered(Split(ops), base)
	for i, o := range ops {
		if s, ok := o.Do.(Sync); ok {
			if err := e.window(inFlight(ops, i), o.Text); err != nil {
				return e.counts, err
			}
			e.settle(func(p Op) bool { return p.End < o.Begin && s.covers(p) })
			continue
		}
		e.pending = append(e.pending, o)
		if o.Durable {
			if err := e.window(inFlight(ops, i), o.Text); err != nil {
				return e.counts, err
			}
			w, _ := o.Do.(Write)
			e.settle(func(p Op) bool { return Sync{Node: w.Node}.covers(p) })
		}
	}
	err := e.window(nil, "the end")
	return e.counts, err
}

// numbered looks the sectors of all writes up, once.
func numbered(ops []Op, base State) []Op {
	out := append([]Op(nil), ops...)
	for i, o := range out {
		if w, ok := o.Do.(Write); ok && w.Node.Kind == Block {
			w.ids = base.volumes[w.Node].pool.numbers(w.Data)
			out[i].Do = w
		}
	}
	return out
}

// inFlight are the changes that had begun when op i ended, and ended later.
func inFlight(ops []Op, i int) []Op {
	var out []Op
	for _, o := range ops[i+1:] {
		if _, sync := o.Do.(Sync); !sync && o.Begin < ops[i].End {
			out = append(out, o)
		}
	}
	return out
}

type explorer struct {
	Bounds
	visit   func(State, Cut) error
	base    State // what is durable
	pending []Op
	counts  Counts
	random  *rand.Rand
}

// settle makes some pending changes durable.
func (e *explorer) settle(covered func(Op) bool) {
	rest := e.pending[:0:0]
	base := e.base.Clone()
	for _, p := range e.pending {
		if covered(p) {
			p.Apply(base)
		} else {
			rest = append(rest, p)
		}
	}
	e.base, e.pending = base, rest
}

// window takes the states of one moment.
func (e *explorer) window(more []Op, before string) error {
	ops := append(e.pending[:len(e.pending):len(e.pending)], more...)
	n := len(ops)
	e.counts.Windows++
	e.counts.Most = max(e.counts.Most, n)
	if err := e.take(ops, nil, before); err != nil {
		return err
	}
	// The program's own order, torn at its last change.
	for k := 1; k <= n; k++ {
		if err := e.torn(ops, first(k), before, e.Tears); err != nil {
			return err
		}
	}
	if n <= e.Exhaustive {
		for mask := 1; mask < 1<<n; mask++ {
			if err := e.torn(ops, members(mask, n), before, e.few()); err != nil {
				return err
			}
		}
		return nil
	}
	e.counts.Bounded++
	for i := range n {
		all := first(n)
		if err := e.torn(ops, []int{i}, before, e.few()); err != nil {
			return err
		}
		if err := e.take(ops, append(all[:i:i], all[i+1:]...), before); err != nil {
			return err
		}
	}
	for range e.Samples {
		if err := e.torn(ops, e.some(n), before, 1); err != nil {
			return err
		}
	}
	return nil
}

// few is how often a change is torn that is not the last of the program's order.
func (e *explorer) few() int {
	if e.Tears == 0 {
		return 16
	}
	return min(e.Tears, 4)
}

// torn takes a choice of changes whole, and with each write in it torn: the last
// one at so many places, the others at a few.
func (e *explorer) torn(ops []Op, chosen []int, before string, places int) error {
	if err := e.take(ops, chosen, before); err != nil {
		return err
	}
	for i, c := range chosen {
		w, ok := ops[c].Do.(Write)
		if !ok {
			continue
		}
		at := places
		if i < len(chosen)-1 {
			at = e.few()
		}
		for _, t := range w.tears(at) {
			s := e.made(ops, chosen[:i])
			for _, p := range t.parts {
				p.apply(s)
			}
			for _, later := range chosen[i+1:] {
				ops[later].Apply(s)
			}
			cut := e.cut(ops, chosen, before)
			cut.Torn = ops[c].Text + ": " + t.name
			e.counts.Made++
			if err := e.visit(s, cut); err != nil {
				return fmt.Errorf("%v: %w", cut, err)
			}
		}
	}
	return nil
}

func (e *explorer) take(ops []Op, chosen []int, before string) error {
	e.counts.Made++
	cut := e.cut(ops, chosen, before)
	if err := e.visit(e.made(ops, chosen), cut); err != nil {
		return fmt.Errorf("%v: %w", cut, err)
	}
	return nil
}

func (e *explorer) made(ops []Op, chosen []int) State {
	s := e.base.Clone()
	for _, i := range chosen {
		ops[i].Apply(s)
	}
	return s
}

func (e *explorer) cut(ops []Op, chosen []int, before string) Cut {
	c := Cut{Before: before}
	for _, i := range chosen {
		c.Chosen = append(c.Chosen, ops[i].Text)
	}
	return c
}

func (e *explorer) some(n int) []int {
	var list []int
	for i := range n {
		if e.random.IntN(2) == 1 {
			list = append(list, i)
		}
	}
	return list
}

func first(k int) []int {
	list := make([]int, k)
	for i := range list {
		list[i] = i
	}
	return list
}

func members(mask, n int) []int {
	var list []int
	for i := range n {
		if mask>>i&1 == 1 {
			list = append(list, i)
		}
	}
	return list
}
