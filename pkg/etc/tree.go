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

	"golang.org/x/sys/unix"
)

// errGone says that what was to be copied does not exist, or no longer.
var errGone = errors.New("there is nothing to copy")

// originXattr ties a file to the one below it that it was copied up from, by file
// system and inode; the kernel then reports that inode as the file's own. Images
// are built with a fixed file-system UUID, so in the next image the same numbers
// mean another file, and the two would pass for one: cp and cmp look no further.
// Without the tie the file has an inode number of its own.
const originXattr = "trusted.overlay.origin"

// inode identifies a file, to find its other names.
type inode struct{ dev, ino uint64 }

// copier copies one tree.
type copier struct {
	links map[inode]string // the first copy of each file with several names
}

// copyTree copies the directory from to the path to, which must not exist.
func copyTree(from, to string) error {
	var st unix.Stat_t
	err := unix.Lstat(from, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return errGone
	}
	if err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is no directory", from)
	}
	c := copier{links: map[inode]string{}}
	return c.copyDir(from, to, &st)
}

// copyDir copies a directory. Its attributes come last, as making its entries
// changes its times.
func (c *copier) copyDir(from, to string, st *unix.Stat_t) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		err := c.copyEntry(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name()))
		if err != nil {
			return err
		}
	}
	return copyAttributes(from, to, st)
}

// copyEntry copies a file of any type. One that was removed since its directory
// was read is left out: the system that owns it is running.
func (c *copier) copyEntry(from, to string) error {
	var st unix.Stat_t
	err := unix.Lstat(from, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.copyDir(from, to, &st)
	}
	id := inode{st.Dev, st.Ino}
	if first, ok := c.links[id]; ok {
		return os.Link(first, to)
	}
	if err := copyNode(from, to, &st); errors.Is(err, errGone) {
		return nil
	} else if err != nil {
		return err
	}
	if st.Nlink > 1 {
		c.links[id] = to
	}
	return copyAttributes(from, to, &st)
}

// copyNode makes a file with the content of another one, without its attributes.
func copyNode(from, to string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return copyContent(from, to)
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if errors.Is(err, fs.ErrNotExist) {
			return errGone
		}
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	default: // whiteouts of the overlay are character devices 0:0
		if err := unix.Mknod(to, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
			return &fs.PathError{Op: "mknod", Path: to, Err: err}
		}
		return nil
	}
}

func copyContent(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errGone
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyData(in, out), out.Close())
}

// copyData copies what a file holds and leaves its holes out: a sparse file may
// claim more than the data partition has. A file system that knows no holes
// reports one run of data.
func copyData(in, out *os.File) error {
	end := int64(0)
	for {
		start, err := in.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole is left
			break
		}
		if err != nil {
			return err
		}
		if end, err = in.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := out.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := in.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, end-start); errors.Is(err, io.EOF) {
			return nil // it became shorter meanwhile
		} else if err != nil {
			return err
		}
	}
	size, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return out.Truncate(size)
}

// copyAttributes gives a copy the attributes of its source. The order matters:
// a change of the owner clears mode bits and capabilities, and a write the times.
func copyAttributes(from, to string, st *unix.Stat_t) error {
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}

func copyXattrs(from, to string) error {
	names, err := xattrNames(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == originXattr {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(from, name, buf) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err == nil {
			err = unix.Lsetxattr(to, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("copying attribute %s of %s: %w", name, from, err)
		}
	}
	return nil
}

func xattrNames(path string) ([]string, error) {
	list, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing attributes of %s: %w", path, err)
	}
	var names []string
	for name := range bytes.SplitSeq(list, []byte{0}) {
		if len(name) > 0 {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

// grow calls a system call that fills a buffer until the buffer is large enough.
// Linux bounds attributes and their lists to 64 KiB.
func grow(call func(buf []byte) (int, error)) ([]byte, error) {
	for size := 1 << 10; ; size *= 4 {
		buf := make([]byte, size)
		n, err := call(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<17 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
