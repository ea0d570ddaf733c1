package model

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"maps"
	"slices"
)

// FS is a kind of file system, for what it permits.
type FS int

// The kinds.
const (
	Ext4 FS = iota
	FAT
)

// Node is a file, a directory, or a block device, whatever its name is. Its content
// is in a State. Two nodes are the same if their pointers are.
type Node struct {
	ID   int // in the order in which the nodes came to be
	FS   FS
	Kind Kind
	// Target is where a symbolic link leads, or the number of a device node.
	Target string
}

// Kind is what a node is.
type Kind int

// The kinds of nodes.
const (
	File Kind = iota
	Dir
	Link
	Device
	Block // a volume of fixed size: a slot, a disk
)

// State is what the media hold. It is a value: the methods that change something
// return another one, which shares what did not change.
type State struct {
	files   map[*Node][]byte
	dirs    map[*Node]map[string]*Node
	attrs   map[*Node]map[string]string
	volumes map[*Node]Volume
}

// NewState holds nothing.
func NewState() State {
	return State{map[*Node][]byte{}, map[*Node]map[string]*Node{}, map[*Node]map[string]string{}, map[*Node]Volume{}}
}

// Clone returns a copy that can be changed by itself.
func (s State) Clone() State {
	return State{maps.Clone(s.files), maps.Clone(s.dirs), maps.Clone(s.attrs), maps.Clone(s.volumes)}
}

// Content returns the bytes of a file.
func (s State) Content(n *Node) []byte { return s.files[n] }

// Entries returns the names in a directory.
func (s State) Entries(n *Node) map[string]*Node { return s.dirs[n] }

// Attributes returns what is known of a node's mode, owner and extended attributes.
func (s State) Attributes(n *Node) map[string]string { return s.attrs[n] }

// Volume returns the content of a block device.
func (s State) Volume(n *Node) Volume { return s.volumes[n] }

// Look follows a path of names from a directory; nil if there is nothing.
func (s State) Look(n *Node, names ...string) *Node {
	for _, name := range names {
		if n = s.dirs[n][name]; n == nil {
			return nil
		}
	}
	return n
}

// SetContent, SetEntry, SetAttribute and SetVolume change this state in place.
func (s State) SetContent(n *Node, data []byte) { s.files[n] = data }

// SetEntry gives a name in a directory a node, or none.
func (s State) SetEntry(dir *Node, name string, n *Node) {
	entries := maps.Clone(s.dirs[dir])
	if entries == nil {
		entries = map[string]*Node{}
	}
	if entries[name] = n; n == nil {
		delete(entries, name)
	}
	s.dirs[dir] = entries
}

// SetAttribute changes one attribute of a node.
func (s State) SetAttribute(n *Node, name, value string) {
	a := maps.Clone(s.attrs[n])
	if a == nil {
		a = map[string]string{}
	}
	a[name] = value
	s.attrs[n] = a
}

// SetVolume changes a block device.
func (s State) SetVolume(n *Node, v Volume) { s.volumes[n] = v }

// Hash identifies what can be seen from the nodes given: names, kinds, contents,
// attributes, and which names are of one file.
func (s State) Hash(roots ...*Node) [sha256.Size]byte {
	h := hasher{s, sha256.New(), map[*Node]int{}}
	for _, n := range roots {
		h.node(n)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

type hasher struct {
	State
	hash.Hash
	seen map[*Node]int
}

func (h hasher) number(n int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:]) //nolint:errcheck // a hash takes everything
}

func (h hasher) text(s string) {
	h.number(len(s))
	io.WriteString(h, s) //nolint:errcheck // a hash takes everything
}

func (h hasher) node(n *Node) {
	if n == nil {
		h.number(-1)
		return
	}
	if at, ok := h.seen[n]; ok {
		h.number(at)
		return
	}
	h.seen[n] = len(h.seen)
	h.number(int(n.Kind))
	h.text(n.Target)
	for _, name := range slices.Sorted(maps.Keys(h.attrs[n])) {
		h.text(name)
		h.text(h.attrs[n][name])
	}
	switch n.Kind {
	case File:
		h.text(string(h.files[n]))
	case Block:
		sum := h.volumes[n].Hash()
		h.text(string(sum[:]))
	case Dir:
		h.number(len(h.dirs[n]))
		for _, name := range slices.Sorted(maps.Keys(h.dirs[n])) {
			h.text(name)
			h.node(h.dirs[n][name])
		}
	}
}

// Volumes returns the block devices of the state.
func (s State) Volumes() map[*Node]Volume { return maps.Clone(s.volumes) }
