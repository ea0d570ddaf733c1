package bench

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// treeSize is how much of real files an image holds, in bytes.
const treeSize = 600 << 20

// errFull ends the walk when a tree has its size.
var errFull = errors.New("full")

// fillTree copies real files of this machine into dir until they are treeSize:
// equal shares of Go's sources, libraries, programs and documents, which is about
// the mixture of a small Linux, and then whatever is left of these.
func fillTree(b *testing.B, dir string) {
	b.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	check(b, err)
	f := &filler{dir: dir}
	sources := []string{strings.TrimSpace(string(goroot)), "/usr/lib", "/usr/bin", "/usr/share"}
	for i, source := range sources {
		f.limit = treeSize * int64(i+1) / int64(len(sources))
		check(b, f.copyTree(source))
	}
	f.limit = treeSize
	for _, source := range sources {
		check(b, f.copyTree(source))
	}
	if f.size < treeSize {
		b.Fatalf("this machine has only %s of files below %v, %s are needed", size(f.size), sources, size(treeSize))
	}
	// The builder wants to see what the boot loader will load.
	check(b, os.MkdirAll(filepath.Join(dir, "boot"), 0o755))
	for _, name := range []string{"boot/vmlinuz", "boot/initrd.img"} {
		check(b, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
}

type filler struct {
	dir         string
	size, limit int64
}

// copyTree copies regular files and links that are not there yet.
func (f *filler) copyTree(source string) error {
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if f.size >= f.limit {
			return errFull
		}
		if err != nil || strings.ContainsAny(path, "\"\n") {
			return nil // unreadable, or a name that the builder refuses: others will do
		}
		to := filepath.Join(f.dir, path)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		if _, err := os.Lstat(to); err == nil {
			return nil
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return nil
			}
			return os.Symlink(target, to)
		case d.Type().IsRegular():
			n, err := copyFile(path, to)
			f.size += n
			return err
		}
		return nil
	})
	if errors.Is(err, errFull) {
		return nil
	}
	return err
}

func copyFile(from, to string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, nil // it has gone, or is not for us
	}
	defer in.Close()
	info, err := in.Stat()
	// One giant would not be like a system.
	if err != nil || info.Size() > 64<<20 {
		return 0, err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, out.Close(), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// changeTree makes the next release of a tree: every 400th file grows by a line.
// It returns the number of files changed.
func changeTree(b *testing.B, dir string) int {
	b.Helper()
	seen, changed := 0, 0
	check(b, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if seen++; seen%400 != 0 {
			return nil
		}
		changed++
		info, err := d.Info()
		if err != nil {
			return err
		}
		file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(file, "the next release")
		return errors.Join(err, file.Close(), os.Chtimes(path, info.ModTime(), info.ModTime()))
	}))
	return changed
}
