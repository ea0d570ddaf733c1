// Package atomicfile replaces one small file durably: after Write returns, a
// power cut leaves the new content; before it returns, the old or the new, never
// a mixture and never an empty file.
//
// It is not for FAT, where rename is not atomic across a power cut; the GRUB
// environment copies are written in place by package boot for that reason.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Write replaces the file name with data and mode: temporary file beside it,
// write, sync, close, rename, sync of the directory. The directory must exist.
// On an error the old file is untouched and no temporary file is left behind.
func Write(name string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(name)
	temp, err := os.CreateTemp(dir, prefix(name)+"*")
	if err != nil {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			// The file is gone when the rename was reached; that is no second error.
			err = errors.Join(fmt.Errorf("replacing %s: %w", name, err), ignoreMissing(os.Remove(temp.Name())))
		}
	}()
	if err := fill(temp, data, mode); err != nil {
		return errors.Join(err, temp.Close())
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), name); err != nil {
		return err
	}
	return SyncDir(dir)
}

// prefix begins the names of the temporary files of name.
func prefix(name string) string { return "." + filepath.Base(name) + ".tmp-" }

// Sweep removes the temporary files that a cut in the middle of Write left beside
// name. The caller must be the only writer of name at that moment.
func Sweep(name string) error {
	dir := filepath.Dir(name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clearing up beside %s: %w", name, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix(name)) {
			continue
		}
		if err := ignoreMissing(os.Remove(filepath.Join(dir, e.Name()))); err != nil {
			return fmt.Errorf("clearing up beside %s: %w", name, err)
		}
	}
	return nil
}

func fill(f *os.File, data []byte, mode fs.FileMode) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir makes the entries of a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
