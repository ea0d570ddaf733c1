package etc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/device"
)

// Clone makes the upper directory of slot to a copy of that of slot from, within
// dir (UppersDir on a machine), and its work directory anew. What the other slot
// had there is lost. Ownership, modes, times, extended attributes, whiteouts,
// opaque directories, symbolic and hard links are kept.
//
// A cut at any moment leaves the old or the new directory of slot to, whole; what
// it leaves beside that, the next Clone removes. A slot from without an upper
// directory runs the image's own /etc, and so will the clone. An order to reset
// the /etc of slot from counts for the clone as well. Files that change while they
// are copied may be copied in either state. Clone fails if from and to
// are the same slot, or if dir does not exist.
func Clone(dir string, from, to device.Slot) error {
	return clone(dir, filepath.Join(dir, string(from)), from, to)
}

// ClonePristine is Clone on a boot with a pristine /etc (PristineBoot): it copies what
// runs, the upper directory within memory (MemoryDir on a machine), and so nothing
// that kept slot from from coming up. That stays in slot from. It fails with
// fs.ErrNotExist if there is no upper directory in memory.
func ClonePristine(dir, memory string, from, to device.Slot) error {
	if _, err := os.Stat(filepath.Join(memory, "upper")); err != nil {
		return fmt.Errorf("cloning the pristine /etc for slot %s: %w", to, err)
	}
	return clone(dir, memory, from, to)
}

// clone makes the directory of slot to a copy of source.
func clone(dir, source string, from, to device.Slot) error {
	if err := cloneFrom(dir, source, from, to); err != nil {
		return fmt.Errorf("cloning /etc of slot %s for slot %s: %w", from, to, err)
	}
	return nil
}

func cloneFrom(dir, source string, from, to device.Slot) error {
	if from.Other() == "" || to != from.Other() {
		return errors.New("want the two different slots")
	}
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	next := filepath.Join(dir, "."+string(to)+".new")
	if err := os.RemoveAll(next); err != nil { // left by a cut
		return err
	}
	err := build(source, next)
	if err == nil {
		err = replace(dir, next, filepath.Join(dir, string(to)))
	}
	return errors.Join(err, os.RemoveAll(next))
}

// Size is what a clone of the /etc of a slot takes, in bytes of content.
func Size(dir string, slot device.Slot) (int64, error) {
	if dir == "" {
		return 0, nil
	}
	var total int64
	err := filepath.WalkDir(filepath.Join(dir, string(slot), "upper"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil && info.Mode().IsRegular() {
				total += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measuring /etc of slot %s: %w", slot, err)
	}
	return total, nil
}

// build makes the directory of a slot at path, durably: a copy of the directory
// from.
func build(from, path string) error {
	for _, name := range []string{path, filepath.Join(path, "work")} {
		if err := os.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	target := filepath.Join(path, "upper")
	if err := copyTree(filepath.Join(from, "upper"), target); errors.Is(err, errGone) {
		if err := makeDir(target, 0o755); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	c := copier{links: map[inode]string{}}
	if err := c.copyEntry(filepath.Join(from, resetFile), filepath.Join(path, resetFile)); err != nil {
		return err
	}
	return syncFileSystem(path)
}

// replace puts next in the place of path, at once; next is then what was there.
func replace(dir, next, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(next, path)
	}
	if err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return atomicfile.SyncDir(dir)
}

// syncFileSystem makes everything on the file system of path durable: one call
// for a tree of small files.
func syncFileSystem(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(d.Fd()))
	if err != nil {
		err = &fs.PathError{Op: "syncfs", Path: path, Err: err}
	}
	return errors.Join(err, d.Close())
}
