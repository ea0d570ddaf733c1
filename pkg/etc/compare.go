package etc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind says how a path of /etc differs from the image's.
type Kind string

// The kinds.
const (
	Added   Kind = "added"
	Changed Kind = "changed"
	Removed Kind = "removed"
	// Same: the slot has a copy of its own that does not differ. It hides what
	// another image brings all the same.
	Same Kind = "same"
)

// Change is one path that a slot has of its own.
type Change struct {
	// Path is relative to /etc.
	Path string `json:"path"`
	Kind Kind   `json:"change"`
	// Shadows is what the other image did to the same path, compared with the
	// slot's own image; empty if nothing, or if there is nothing to compare with.
	Shadows Kind `json:"shadows,omitempty"`
}

// Compare lists what the upper directory of a slot makes of its image's /etc,
// lower, sorted by path. other is the /etc of another image, or "". Directories
// are listed where they are empty or differ themselves. It reads only, also while
// the overlay is mounted; files that change meanwhile may be seen in either state.
func Compare(upper, lower, other string) ([]Change, error) {
	c := comparison{upper: upper, lower: lower, other: other, changes: []Change{}}
	err := c.dir(".", true)
	if errors.Is(err, fs.ErrNotExist) {
		return c.changes, nil // nothing of its own
	}
	if err != nil {
		return nil, fmt.Errorf("comparing /etc with the image: %w", err)
	}
	slices.SortFunc(c.changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return c.changes, nil
}

// comparison walks an upper directory.
type comparison struct {
	upper, lower, other string
	changes             []Change
}

// dir compares a directory of the upper. below says whether the image's directory
// of that name is visible under it or hidden as a whole.
func (c *comparison) dir(path string, below bool) error {
	names, err := sortedNames(filepath.Join(c.upper, path))
	if err != nil {
		return err
	}
	opaque, err := isOpaque(filepath.Join(c.upper, path))
	if err != nil {
		return err
	}
	if opaque && below {
		if err := c.hidden(path, names); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := c.entry(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	if path == "." {
		return nil
	}
	kind, err := compareNodes(filepath.Join(c.lower, path), filepath.Join(c.upper, path))
	if err == nil && (kind == Changed || kind == Added && len(names) == 0) {
		err = c.add(path, kind)
	}
	return err
}

// hidden lists what an opaque directory hides.
func (c *comparison) hidden(path string, present []string) error {
	var names []string
	for _, image := range []string{c.lower, c.other} {
		if image == "" {
			continue
		}
		more, err := sortedNames(filepath.Join(image, path))
		if err != nil && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if !slices.Contains(present, name) {
			if err := c.add(filepath.Join(path, name), Removed); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry compares one entry of the upper.
func (c *comparison) entry(path string) error {
	upper := filepath.Join(c.upper, path)
	var st unix.Stat_t
	err := unix.Lstat(upper, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return &fs.PathError{Op: "lstat", Path: upper, Err: err}
	}
	lower := filepath.Join(c.lower, path)
	switch {
	case isWhiteout(&st):
		_, err := os.Lstat(lower)
		if err == nil || c.news(path) == Added {
			return c.add(path, Removed)
		}
		return nil
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		info, err := os.Lstat(lower)
		return c.dir(path, err == nil && info.IsDir())
	}
	kind, err := compareNodes(lower, upper)
	if err != nil {
		return err
	}
	return c.add(path, kind)
}

// add lists a change, with what it hides of the other image.
func (c *comparison) add(path string, kind Kind) error {
	change := Change{Path: path, Kind: kind}
	news := c.news(path)
	if news != Same && (news != Removed || kind != Removed) {
		change.Shadows = news
	}
	c.changes = append(c.changes, change)
	return nil
}

// news is what the other image did to a path of the slot's image: Same if
// nothing that can be told.
func (c *comparison) news(path string) Kind {
	if c.other == "" {
		return Same
	}
	kind, err := compareTrees(filepath.Join(c.lower, path), filepath.Join(c.other, path))
	if err != nil {
		return Same
	}
	return kind
}

// compareTrees tells how the second file or tree differs from the first.
func compareTrees(a, b string) (Kind, error) {
	kind, err := compareNodes(a, b)
	if err != nil || kind != Same {
		return kind, err
	}
	inA, errA := sortedNames(a)
	inB, errB := sortedNames(b)
	if errA != nil || errB != nil {
		return Same, nil // no directories
	}
	if !slices.Equal(inA, inB) {
		return Changed, nil
	}
	for _, name := range inA {
		kind, err := compareTrees(filepath.Join(a, name), filepath.Join(b, name))
		if err != nil || kind != Same {
			return Changed, err
		}
	}
	return Same, nil
}

// compareNodes tells how one file differs from another, in type, owner, mode,
// attributes and content; of directories it does not ask what is in them. Times do
// not count.
func compareNodes(a, b string) (Kind, error) {
	var x, y unix.Stat_t
	errA, errB := unix.Lstat(a, &x), unix.Lstat(b, &y)
	noA := errors.Is(errA, fs.ErrNotExist) || errors.Is(errA, unix.ENOTDIR)
	noB := errors.Is(errB, fs.ErrNotExist) || errors.Is(errB, unix.ENOTDIR)
	switch {
	case noA && noB:
		return Same, nil
	case noA:
		return Added, nil
	case noB:
		return Removed, nil
	case errA != nil || errB != nil:
		return "", errors.Join(errA, errB)
	case x.Mode != y.Mode || x.Uid != y.Uid || x.Gid != y.Gid || x.Rdev != y.Rdev:
		return Changed, nil
	}
	same, err := sameAttributes(a, b)
	if err == nil && same {
		same, err = sameContent(a, b, x, y)
	}
	if err != nil {
		return "", err
	}
	if !same {
		return Changed, nil
	}
	return Same, nil
}

// sameAttributes leaves those out by which overlayfs keeps its books.
func sameAttributes(a, b string) (bool, error) {
	var lists [2][]string
	for i, path := range []string{a, b} {
		names, err := xattrNames(path)
		if err != nil {
			return false, err
		}
		for _, name := range names {
			if strings.HasPrefix(name, "trusted.overlay.") {
				continue
			}
			value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
			if err != nil {
				return false, fmt.Errorf("reading attribute %s of %s: %w", name, path, err)
			}
			lists[i] = append(lists[i], name+"="+string(value))
		}
	}
	return slices.Equal(lists[0], lists[1]), nil
}

func sameContent(a, b string, x, y unix.Stat_t) (bool, error) {
	switch x.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		one, errA := os.Readlink(a)
		two, errB := os.Readlink(b)
		return one == two, errors.Join(errA, errB)
	case unix.S_IFREG:
		if x.Size != y.Size {
			return false, nil
		}
		return sameBytes(a, b)
	}
	return true, nil
}

func sameBytes(a, b string) (same bool, err error) {
	var files [2]*os.File
	for i, path := range []string{a, b} {
		if files[i], err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err != nil {
			return false, err
		}
		defer files[i].Close() //nolint:errcheck // read only
	}
	var bufs [2][]byte
	for i := range bufs {
		bufs[i] = make([]byte, 64<<10)
	}
	for {
		n, errA := io.ReadFull(files[0], bufs[0])
		m, errB := io.ReadFull(files[1], bufs[1])
		if !bytes.Equal(bufs[0][:n], bufs[1][:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			if ended(errA) && ended(errB) {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// ErrNoImage is returned for a device that holds no file system of an image.
var ErrNoImage = errors.New("it holds no file system that can be read")

// Image is the file system of an image, mounted read-only and without a place in
// the tree of mounts: nobody else sees it, and it goes away with the process.
type Image struct{ fd int }

// OpenRunning opens the file system that is mounted on root ("/" on a machine)
// without what is mounted upon it: so its /etc is the image's.
func OpenRunning(root string) (*Image, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("looking below the mounts: %w", &fs.PathError{Op: "open_tree", Path: root, Err: err})
	}
	return &Image{fd}, nil
}

// OpenSlot mounts the file system on a block device. Nothing is written to it, no
// journal is replayed; but while it is open nobody can open the device
// exclusively, so the caller holds the machine's lock. It fails with ErrNoImage
// for a device with anything else, such as a slot that is half written.
func OpenSlot(device string) (*Image, error) {
	var failed error
	for _, kind := range []struct{ name, flag string }{{"ext4", "noload"}, {"squashfs", ""}} {
		fd, err := mountDetached(device, kind.name, kind.flag)
		switch {
		case err == nil:
			return &Image{fd}, nil
		case errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EBUSY) || errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("reading %s: %w", device, err)
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", kind.name, err))
	}
	return nil, fmt.Errorf("reading %s: %w: %w", device, ErrNoImage, failed)
}

func mountDetached(device, fstype, flag string) (fd int, err error) {
	context, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, unix.Close(context)) }()
	if err := unix.FsconfigSetString(context, "source", device); err != nil {
		return -1, err
	}
	for _, name := range []string{"ro", flag} {
		if name == "" {
			continue
		}
		if err := unix.FsconfigSetFlag(context, name); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, err
	}
	const quiet = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	return unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, quiet)
}

// Path is where this process, and no other, finds a path of the image.
func (i *Image) Path(name string) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(i.fd), name)
}

// Close unmounts it.
func (i *Image) Close() error { return unix.Close(i.fd) }
