package etc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/device"
)

// must ends the test on the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// describe lists a tree with everything that Clone keeps, one line a file. Inode
// numbers differ between a tree and its clone, so files with several names are
// told by the first of them.
func describe(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	names := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		line := fmt.Sprintf("%s mode=%o owner=%d:%d mtime=%d.%09d rdev=%d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		if !d.IsDir() && st.Nlink > 1 {
			if names[st.Ino] == "" {
				names[st.Ino] = name
			}
			line += " same=" + names[st.Ino]
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" content=%q", data)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " target=" + target
		}
		attrs, err := xattrNames(path)
		if err != nil {
			return err
		}
		for _, attr := range attrs {
			value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(path, attr, buf) })
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%q", attr, value)
		}
		lines = append(lines, line)
		return nil
	})
	must(t, err)
	return lines
}

// plainTree fills the upper directory of slot A with what needs no root.
func plainTree(t *testing.T) (dir, upper string) {
	t.Helper()
	dir = t.TempDir()
	upper = filepath.Join(dir, "A", "upper")
	must(t, os.MkdirAll(filepath.Join(upper, "ssh", "deep"), 0o755),
		os.Mkdir(filepath.Join(dir, "A", "work"), 0o700))
	at := func(name string) string { return filepath.Join(upper, name) }
	must(t,
		os.WriteFile(at("hostname"), []byte("gateway\n"), 0o644),
		os.WriteFile(at("ssh/key"), []byte("secret"), 0o600),
		os.WriteFile(at("ssh/deep/large"), []byte(strings.Repeat("0123456789", 20000)), 0o640),
		os.WriteFile(at("empty"), nil, 0o444),
		os.Link(at("ssh/key"), at("ssh/key2")),
		os.Link(at("ssh/key"), at("key3")),
		os.Symlink("../run/resolv.conf", at("resolv.conf")),
		os.Symlink("nowhere", at("dangling")),
		unix.Mkfifo(at("fifo"), 0o620),
		os.Chmod(at("fifo"), 0o620),
		os.Chmod(at("ssh/deep"), 0o711|os.ModeSticky|os.ModeSetgid),
		os.Chmod(at("empty"), 0o444|os.ModeSetuid),
		unix.Setxattr(at("hostname"), "user.note", []byte{0, 1, 255}, 0),
		unix.Setxattr(upper, "user.top", nil, 0),
	)
	when := time.Unix(1000000000, 123456789)
	for _, name := range []string{"hostname", "ssh/deep", "ssh", ""} {
		must(t, os.Chtimes(at(name), when, when))
	}
	return dir, upper
}

func TestClone(t *testing.T) {
	dir, upper := plainTree(t)
	before := describe(t, filepath.Join(dir, "A"))
	for round := range 2 { // into nothing, then over an earlier clone
		must(t, Clone(dir, "A", "B"))
		if diff := cmp.Diff(describe(t, upper), describe(t, filepath.Join(dir, "B", "upper"))); diff != "" {
			t.Errorf("round %d: the clone (-original +clone):\n%s", round, diff)
		}
		if entries, err := os.ReadDir(filepath.Join(dir, "B", "work")); err != nil || len(entries) != 0 {
			t.Errorf("round %d: the work directory: %v, %v", round, entries, err)
		}
		must(t, os.WriteFile(filepath.Join(dir, "B", "work", "old"), nil, 0o600),
			os.WriteFile(filepath.Join(dir, "B", "upper", "old"), nil, 0o600))
	}
	if diff := cmp.Diff(before, describe(t, filepath.Join(dir, "A"))); diff != "" {
		t.Errorf("the running slot's directory changed (-before +after):\n%s", diff)
	}
	wantEntries(t, dir, "A", "B")
}

// wantEntries fails if something else is left in dir.
func wantEntries(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries of the directory (-want +got):\n%s", diff)
	}
}

// TestCloneOfNothing: the running slot has no upper directory, so it runs the
// image's own /etc.
func TestCloneOfNothing(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "B", "upper", "old"), 0o755))
	must(t, Clone(dir, "A", "B"))
	entries, err := os.ReadDir(filepath.Join(dir, "B", "upper"))
	if err != nil || len(entries) != 0 {
		t.Errorf("the clone of nothing: %v, %v", entries, err)
	}
	info, err := os.Stat(filepath.Join(dir, "B", "upper"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the mode of its /etc: %v, %v; want 0755", info, err)
	}
}

func TestCloneRefuses(t *testing.T) {
	dir, _ := plainTree(t)
	before := describe(t, dir)
	for _, c := range []struct {
		dir  string
		a, b string
		want string
	}{
		{dir, "A", "A", "want the two different slots"},
		{dir, "", "A", "want the two different slots"},
		{dir, "A", "", "want the two different slots"},
		{dir, "../A", "B", "want the two different slots"},
		{filepath.Join(dir, "none"), "A", "B", "no such file"},
	} {
		if err := Clone(c.dir, device.Slot(c.a), device.Slot(c.b)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Clone %q to %q: %v, want %q", c.a, c.b, err, c.want)
		}
	}
	if diff := cmp.Diff(before, describe(t, dir)); diff != "" {
		t.Errorf("a refusal changed (-before +after):\n%s", diff)
	}
}

// TestCloneFails: what cannot be copied leaves the old clone and no rest.
func TestCloneFails(t *testing.T) {
	dir, upper := plainTree(t)
	must(t, os.MkdirAll(filepath.Join(dir, "B", "upper"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "B", "upper", "old"), nil, 0o600))
	must(t, os.RemoveAll(upper), os.WriteFile(upper, nil, 0o600))
	if err := Clone(dir, "A", "B"); err == nil || !strings.Contains(err.Error(), "is no directory") {
		t.Errorf("Clone of a file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "B", "upper", "old")); err != nil {
		t.Errorf("the old clone: %v", err)
	}
	wantEntries(t, dir, "A", "B")
}

// TestCloneAfterACut: the rest of an interrupted Clone is removed, whether the
// cut came before the exchange or after it.
func TestCloneAfterACut(t *testing.T) {
	dir, upper := plainTree(t)
	rest := filepath.Join(dir, ".B.new")
	must(t, os.MkdirAll(filepath.Join(rest, "upper", "half"), 0o755))
	must(t, Clone(dir, "A", "B"))
	if diff := cmp.Diff(describe(t, upper), describe(t, filepath.Join(dir, "B", "upper"))); diff != "" {
		t.Errorf("the clone (-original +clone):\n%s", diff)
	}
	wantEntries(t, dir, "A", "B")
}

// TestVanished: a file that is removed while its directory is copied is left out.
func TestVanished(t *testing.T) {
	dir := t.TempDir()
	c := copier{links: map[inode]string{}}
	must(t, c.copyEntry(filepath.Join(dir, "gone"), filepath.Join(dir, "copy")))
	for _, kind := range []uint32{unix.S_IFREG, unix.S_IFLNK} {
		err := copyNode(filepath.Join(dir, "gone"), filepath.Join(dir, "copy"), &unix.Stat_t{Mode: kind})
		if !errors.Is(err, errGone) {
			t.Errorf("type %o: %v, want errGone", kind, err)
		}
	}
	wantEntries(t, dir)
}

func TestXattrNamesAreSorted(t *testing.T) {
	_, upper := plainTree(t)
	must(t, unix.Setxattr(upper, "user.aaa", []byte("1"), 0))
	names, err := xattrNames(upper)
	if err != nil || !slices.IsSorted(names) || !slices.Contains(names, "user.aaa") || !slices.Contains(names, "user.top") {
		t.Errorf("names: %q, %v", names, err)
	}
}
