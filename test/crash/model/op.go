package model

import (
	"bytes"
	"fmt"
)

// Op is one change that a program made, or a sync of earlier ones.
type Op struct {
	// Begin and End order the system calls: a sync covers what ended before it
	// began.
	Begin, End int
	// Do is one of Write, Truncate, Entries, Attribute, Sync.
	Do Change
	// Durable says that the call returned only after its change was on the medium
	// (O_SYNC, O_DSYNC).
	Durable bool
	// Text is the system call, for people.
	Text string
}

// Change is what an op does to a state.
type Change interface {
	// nodes are the nodes whose fsync covers the change.
	nodes() []*Node
	apply(s State)
}

// Write puts bytes into a file or a block device.
type Write struct {
	Node *Node
	Off  int64
	Data []byte
	// ids are the sectors of Data in a pool, once they were looked up: a write is
	// applied many times.
	ids []uint32
}

// Truncate sets the length of a file.
type Truncate struct {
	Node *Node
	Size int64
}

// Entry is a name in a directory that gets a node, or none.
type Entry struct {
	Dir  *Node
	Name string
	Node *Node
}

// Entries are names that change at once.
type Entries []Entry

// Attribute is a mode, an owner or an extended attribute that changes, or is removed.
type Attribute struct {
	Node        *Node
	Name, Value string
	Removed     bool
}

// Sync makes earlier changes durable: those of one node, or all.
type Sync struct {
	Node *Node // nil means everything on the file system
	FS   FS
}

func (w Write) nodes() []*Node     { return []*Node{w.Node} }
func (t Truncate) nodes() []*Node  { return []*Node{t.Node} }
func (a Attribute) nodes() []*Node { return []*Node{a.Node} }
func (s Sync) nodes() []*Node      { return nil }
func (e Entries) nodes() []*Node {
	var dirs []*Node
	for _, x := range e {
		dirs = append(dirs, x.Dir)
	}
	return dirs
}

func (s Sync) apply(State) {}

func (a Attribute) apply(s State) {
	s.SetAttribute(a.Node, a.Name, a.Value)
	if a.Removed {
		delete(s.attrs[a.Node], a.Name) // a copy that is this state's own
	}
}

func (e Entries) apply(s State) {
	for _, x := range e {
		s.SetEntry(x.Dir, x.Name, x.Node)
	}
}

func (t Truncate) apply(s State) {
	if t.Node.Kind == Block {
		return
	}
	data := make([]byte, t.Size)
	copy(data, s.files[t.Node])
	s.files[t.Node] = data
}

func (w Write) apply(s State) {
	if w.Node.Kind == Block {
		v := s.volumes[w.Node]
		if w.ids == nil {
			w.ids = v.pool.numbers(w.Data)
		}
		s.volumes[w.Node] = v.write(w.Off/Sector, w.ids)
		return
	}
	old := s.files[w.Node]
	data := make([]byte, max(int64(len(old)), w.Off+int64(len(w.Data))))
	copy(data, old)
	copy(data[w.Off:], w.Data)
	s.files[w.Node] = data
}

// Apply makes the change in a state.
func (o Op) Apply(s State) { o.Do.apply(s) }

// covers reports whether a sync makes an op durable.
func (s Sync) covers(o Op) bool {
	for _, n := range o.Do.nodes() {
		if s.Node == nil && n.FS == s.FS && n.Kind != Block || n == s.Node {
			return true
		}
	}
	return false
}

// Split turns an op into the changes that the file system makes independently of
// each other: a rename on FAT is a new name and the loss of an old one.
func Split(ops []Op) []Op {
	var out []Op
	for _, o := range ops {
		e, ok := o.Do.(Entries)
		if !ok || len(e) < 2 || e[0].Dir.FS != FAT {
			out = append(out, o)
			continue
		}
		for _, x := range e {
			one := o
			one.Do = Entries{x}
			out = append(out, one)
		}
	}
	return out
}

// sectors is the number of sectors that a write touches.
func (w Write) sectors() int {
	if len(w.Data) == 0 {
		return 0
	}
	return int((w.Off+int64(len(w.Data))-1)/Sector - w.Off/Sector + 1)
}

// part is the write as far as it touches the sectors from..to of its own.
func (w Write) part(from, to int) (Write, bool) {
	base := w.Off / Sector * Sector
	begin := max(w.Off, base+int64(from)*Sector)
	end := min(w.Off+int64(len(w.Data)), base+int64(to)*Sector)
	if begin >= end {
		return Write{}, false
	}
	p := Write{Node: w.Node, Off: begin, Data: w.Data[begin-w.Off : end-w.Off]}
	if w.ids != nil {
		p.ids = w.ids[(begin-w.Off)/Sector : (end-w.Off)/Sector]
	}
	return p, true
}

// Tear is what arrived of a write.
type Tear struct {
	name  string
	parts []Change
}

// destroyed is what a sector holds when the cut came in the middle of it.

func destroyed(n int) []byte { return bytes.Repeat([]byte{0xff}, n) }

// few is the number of sectors of a write up to which every combination of them is
// taken.
const few = 4

// tears lists what may have arrived of a write, other than all of it and nothing. At
// most limit places of a tear are taken, spread over the write; 0 means all.
func (w Write) tears(limit int) []Tear {
	n := w.sectors()
	grow := []Change(nil)
	if w.Node.Kind != Block {
		grow = []Change{extend{w.Node, w.Off + int64(len(w.Data))}}
	}
	var list []Tear
	add := func(name string, parts ...Change) { list = append(list, Tear{name, parts}) }
	if grow != nil {
		add("only the length", grow...)
	}
	if n <= few {
		for mask := 1; mask < 1<<n-1; mask++ {
			parts := []Change(nil)
			for i := range n {
				if p, ok := w.part(i, i+1); ok && mask>>i&1 == 1 {
					parts = append(parts, p)
				}
			}
			add(fmt.Sprintf("sectors %0*b", n, mask), append(grow[:len(grow):len(grow)], parts...)...)
		}
	}
	step := 1
	if limit > 0 {
		step = max(1, n/limit)
	}
	for k := 0; k < n; k += step {
		head, some := w.part(0, k)
		tail, _ := w.part(k, n)
		if some && n > few {
			add(fmt.Sprintf("the first %d sectors", k), head)
			add(fmt.Sprintf("all but the first %d sectors", k), append(grow[:len(grow):len(grow)], tail)...)
		}
		if w.Node.Kind == Block && n > few {
			continue
		}
		var parts []Change
		if some {
			parts = append(parts, head)
		}
		if ruin, ok := w.part(k, k+1); ok {
			ruin.Data, ruin.ids = destroyed(len(ruin.Data)), nil
			add(fmt.Sprintf("sector %d destroyed", k), append(append(grow[:len(grow):len(grow)], parts...), ruin)...)
		}
	}
	return list
}

// extend is a file that grew without its data.
type extend struct {
	node *Node
	size int64
}

func (e extend) nodes() []*Node { return []*Node{e.node} }

func (e extend) apply(s State) {
	if size := int64(len(s.files[e.node])); size < e.size {
		Truncate{e.node, e.size}.apply(s)
	}
}
