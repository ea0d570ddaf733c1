package record

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/test/crash/model"
)

// Root is a folder or a file that is recorded: what lies below it is on a medium of
// its own.
type Root struct {
	Name string // its path below the folder of the world
	FS   model.FS
	// Block says that it is a plain file that stands for a block device.
	Block bool
}

// World is a set of roots, what they held when it was read, and the nodes that
// recorded programs made since.
type World struct {
	Dir string
	// As is where recorded programs see the folder; empty means Dir.
	As    string
	Roots []Root
	Nodes map[string]*model.Node // of the roots, by name
	Pool  *model.Pool
	next  int
}

// Read reads the roots below dir.
func Read(dir string, pool *model.Pool, roots ...Root) (*World, model.State, error) {
	w := &World{Dir: dir, Roots: roots, Nodes: map[string]*model.Node{}, Pool: pool}
	s := model.NewState()
	for _, r := range roots {
		n, err := w.read(s, r)
		if err != nil {
			return nil, s, fmt.Errorf("reading %s: %w", r.Name, err)
		}
		w.Nodes[r.Name] = n
	}
	return w, s, nil
}

// List returns the nodes of the roots, in order, for State.Hash.
func (w *World) List() []*model.Node {
	var list []*model.Node
	for _, r := range w.Roots {
		list = append(list, w.Nodes[r.Name])
	}
	return list
}

func (w *World) node(kind model.Kind, fs model.FS) *model.Node {
	w.next++
	return &model.Node{ID: w.next, Kind: kind, FS: fs}
}

func (w *World) read(s model.State, r Root) (*model.Node, error) {
	path := filepath.Join(w.Dir, r.Name)
	if !r.Block {
		return w.readTree(s, path, r.FS, map[[2]uint64]*model.Node{})
	}
	n := w.node(model.Block, r.FS)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	v, err := w.Pool.ReadVolume(f, info.Size())
	s.SetVolume(n, v)
	return n, err
}

func (w *World) readTree(s model.State, path string, kind model.FS, seen map[[2]uint64]*model.Node) (*model.Node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	id := [2]uint64{st.Dev, st.Ino}
	if n := seen[id]; n != nil {
		return n, nil
	}
	n := w.node(model.File, kind)
	seen[id] = n
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		s.SetAttribute(n, "mode", strconv.FormatUint(uint64(st.Mode&0o7777), 8))
	}
	s.SetAttribute(n, "owner", fmt.Sprintf("%d:%d", st.Uid, st.Gid))
	if err := readXattrs(s, n, path); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(path)
		s.SetContent(n, data)
		return n, err
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		n.Kind, n.Target = model.Link, target
		return n, err
	case unix.S_IFDIR:
		n.Kind = model.Dir
	default:
		n.Kind, n.Target = model.Device, fmt.Sprintf("%o:%d", st.Mode&unix.S_IFMT, st.Rdev)
		return n, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		child, err := w.readTree(s, filepath.Join(path, e.Name()), kind, seen)
		if err != nil {
			return nil, err
		}
		s.SetEntry(n, e.Name(), child)
	}
	return n, nil
}

// readXattrs reads the extended attributes of a file, of which tests have few.
func readXattrs(s model.State, n *model.Node, path string) error {
	names := make([]byte, 4096)
	size, err := unix.Llistxattr(path, names)
	if err != nil {
		return &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	for _, name := range strings.FieldsFunc(string(names[:size]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 4096)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return &fs.PathError{Op: "getxattr", Path: path, Err: err}
		}
		s.SetAttribute(n, "xattr:"+name, string(value[:size]))
	}
	return nil
}

// Put makes what a state holds in a folder, which must not have the roots yet.
func (w *World) Put(s model.State, dir string) error {
	for _, r := range w.Roots {
		path := filepath.Join(dir, r.Name)
		if r.Block {
			if err := putVolume(s.Volume(w.Nodes[r.Name]), path); err != nil {
				return err
			}
			continue
		}
		if err := putTree(s, w.Nodes[r.Name], path, map[*model.Node]string{}); err != nil {
			return fmt.Errorf("making %s: %w", r.Name, err)
		}
	}
	return nil
}

func putVolume(v model.Volume, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := f.Truncate(v.Size()); err != nil {
		return errors.Join(err, f.Close())
	}
	for i := range v.Chunks() {
		if v.ChunkHash(i) == ([32]byte{}) {
			continue
		}
		off := int64(i) * model.ChunkSize
		data := v.Chunk(i)
		data = data[:min(int64(len(data)), v.Size()-off)]
		if _, err := f.WriteAt(data, off); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

func putTree(s model.State, n *model.Node, path string, seen map[*model.Node]string) error {
	if first, ok := seen[n]; ok {
		return os.Link(first, path)
	}
	seen[n] = path
	var err error
	switch n.Kind {
	case model.File:
		err = os.WriteFile(path, s.Content(n), 0o600)
	case model.Link:
		err = os.Symlink(n.Target, path)
	case model.Dir:
		if err = os.Mkdir(path, 0o755); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(s.Entries(n))) {
			if err := putTree(s, s.Entries(n)[name], filepath.Join(path, name), seen); err != nil {
				return err
			}
		}
	default:
		var mode, rdev int
		if _, err := fmt.Sscanf(n.Target, "%o:%d", &mode, &rdev); err != nil {
			return err
		}
		err = unix.Mknod(path, uint32(mode|0o600), rdev)
	}
	if err != nil {
		return err
	}
	return putAttributes(s, n, path)
}

func putAttributes(s model.State, n *model.Node, path string) error {
	a := s.Attributes(n)
	if owner, ok := a["owner"]; ok {
		var uid, gid int
		if _, err := fmt.Sscanf(owner, "%d:%d", &uid, &gid); err != nil {
			return err
		}
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	for name, value := range a {
		if x, ok := strings.CutPrefix(name, "xattr:"); ok {
			if err := unix.Lsetxattr(path, x, []byte(value), 0); err != nil {
				return &fs.PathError{Op: "setxattr " + x, Path: path, Err: err}
			}
		}
	}
	if mode, ok := a["mode"]; ok && n.Kind != model.Link {
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err != nil {
			return err
		}
		return unix.Chmod(path, uint32(bits))
	}
	return nil
}
