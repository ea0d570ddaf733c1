package etc

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// images makes the /etc of two images: what each path tells is in its name.
func images(t *testing.T, base string) (lower, other string) {
	t.Helper()
	lower, other = filepath.Join(base, "lower"), filepath.Join(base, "other")
	write(t, lower, map[string]string{
		"both": "1", "new-changes": "1", "new-drops": "1", "mode": "1", "dir/both": "1", "dir/new-changes": "1",
		"made/old": "1", "made/kept": "1", "gone/a": "1", "gone/b": "1", "type": "1",
	})
	write(t, other, map[string]string{
		"both": "1", "new-changes": "2", "new-adds": "2", "mode": "1", "dir/both": "1", "dir/new-changes": "2",
		"made/old": "1", "made/kept": "1", "made/new": "2", "gone/a": "1", "gone/b": "2", "type": "1",
	})
	must(t, os.Chmod(filepath.Join(other, "mode"), 0o644))
	return lower, other
}

func compareAll(t *testing.T, upper, lower, other string) string {
	t.Helper()
	changes, err := Compare(upper, lower, other)
	must(t, err)
	var lines []string
	for _, c := range changes {
		line := string(c.Kind) + " " + c.Path
		if c.Shadows != "" {
			line += " shadows " + string(c.Shadows)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestCompare(t *testing.T) {
	base := t.TempDir()
	lower, other := images(t, base)
	upper := filepath.Join(base, "upper")
	write(t, upper, map[string]string{
		"both": "u", "new-changes": "u", "new-drops": "u", "new-adds": "u", "mode": "1", "own": "u", "dir/new-changes": "1", "own-dir/x": "u", "type/x": "u",
	})
	must(t, os.Mkdir(filepath.Join(upper, "empty"), 0o755), os.Symlink("x", filepath.Join(upper, "link")))
	want := `changed both
same dir/new-changes shadows changed
added empty
added link
same mode shadows changed
added new-adds shadows added
changed new-changes shadows changed
changed new-drops shadows removed
added own
added own-dir/x
changed type
added type/x`
	if diff := cmp.Diff(want, compareAll(t, upper, lower, other)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := compareAll(t, upper, lower, ""); strings.Contains(got, "shadows") || strings.Count(got, "\n") != strings.Count(want, "\n") {
		t.Errorf("without another image:\n%s", got)
	}
	if got := compareAll(t, filepath.Join(base, "none"), lower, other); got != "" {
		t.Errorf("a slot without an upper directory: %s", got)
	}
}

// TestCompareNotices: each attribute alone makes a difference; times do not.
func TestCompareNotices(t *testing.T) {
	for name, c := range map[string]struct {
		change func(path string) error
		want   Kind
	}{
		"nothing":            {func(string) error { return nil }, Same},
		"mode":               {func(p string) error { return os.Chmod(p, 0o640) }, Changed},
		"time":               {func(p string) error { return unix.Utimes(p, make([]unix.Timeval, 2)) }, Same},
		"attribute":          {func(p string) error { return unix.Setxattr(p, "user.x", []byte("1"), 0) }, Changed},
		"content, same size": {func(p string) error { return os.WriteFile(p, []byte("imagf"), 0o600) }, Changed},
		"longer":             {func(p string) error { return os.WriteFile(p, []byte("image "), 0o600) }, Changed},
		"a link":             {func(p string) error { return errors.Join(os.Remove(p), os.Symlink("image", p)) }, Changed},
	} {
		upper, lower := t.TempDir(), t.TempDir()
		write(t, upper, map[string]string{"file": "image"})
		write(t, lower, map[string]string{"file": "image"})
		must(t, c.change(filepath.Join(upper, "file")))
		if got := compareAll(t, upper, lower, ""); got != string(c.want)+" file" {
			t.Errorf("%s: %q, want %s", name, got, c.want)
		}
	}
}

// TestCompareOnAnOverlay: removals and directories made anew, as the kernel
// writes them, and what is hidden of an image through them.
func TestCompareOnAnOverlay(t *testing.T) {
	needRoot(t)
	base := filepath.Join(t.TempDir(), "data")
	mount(t, "tmpfs", base, "tmpfs", "", 0)
	lower, other := images(t, base)
	dir := filepath.Join(base, "etc")
	must(t, os.Mkdir(dir, 0o755))
	etc := overlay(t, lower, dir, "A")
	at := func(name string) string { return filepath.Join(etc, name) }
	must(t, os.Remove(at("both")), os.RemoveAll(at("gone")), os.RemoveAll(at("made")), os.Remove(at("new-drops")), os.Remove(at("dir/new-changes")))
	write(t, etc, map[string]string{"made/kept": "1", "new-adds": "u"})
	must(t, os.Remove(at("new-adds"))) // leaves nothing
	want := `removed both
removed dir/new-changes shadows changed
removed gone shadows changed
same made/kept
removed made/new shadows added
removed made/old
removed new-drops`
	if diff := cmp.Diff(want, compareAll(t, filepath.Join(dir, "A/upper"), lower, other)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOpenRunning: the image's /etc is found below the overlay, and below it only.
func TestOpenRunning(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), "root")
	mount(t, "tmpfs", root, "tmpfs", "", 0)
	write(t, root, map[string]string{"etc/file": "image"})
	mount(t, "tmpfs", filepath.Join(root, "etc"), "tmpfs", "", 0)
	write(t, root, map[string]string{"etc/file": "changed"})
	image, err := OpenRunning(root)
	must(t, err)
	wantContents(t, image.Path("etc"), map[string]string{"file": "image"})
	must(t, image.Close())
	if _, err := os.Stat(image.Path("etc")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

// TestOpenSlot: an image is read without changing a byte of it, and what is none
// is ErrNoImage.
func TestOpenSlot(t *testing.T) {
	for name, format := range map[string][]string{
		"ext4":     {"mkfs.ext4", "-q", "-d", "TREE", "FILE", "8m"},
		"squashfs": {"mksquashfs", "TREE", "FILE", "-quiet", "-noappend"},
		"nothing":  {"dd", "if=/dev/zero", "of=FILE", "bs=1M", "count=8"},
	} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			dir := t.TempDir()
			tree, file := filepath.Join(dir, "tree"), filepath.Join(dir, "img")
			write(t, tree, map[string]string{"etc/file": "image"})
			for i := range format {
				format[i] = strings.NewReplacer("TREE", tree, "FILE", file).Replace(format[i])
			}
			needTool(t, format[0])
			run(t, format[0], format[1:]...)
			before, err := os.ReadFile(file)
			must(t, err)
			loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", file)) // not read-only: the kernel must not write
			defer run(t, "losetup", "-d", loop)
			image, err := OpenSlot(loop)
			if name == "nothing" {
				if !errors.Is(err, ErrNoImage) {
					t.Errorf("OpenSlot: %v, want ErrNoImage", err)
				}
				return
			}
			must(t, err)
			wantContents(t, image.Path("etc"), map[string]string{"file": "image"})
			if err := os.WriteFile(image.Path("etc/file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing to the image: %v, want EROFS", err)
			}
			must(t, image.Close())
			after, err := os.ReadFile(file)
			if err != nil || string(before) != string(after) {
				t.Errorf("the slot was changed (%v)", err)
			}
			if _, err := OpenSlot(loop + "x"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no such device: %v", err)
			}
		})
	}
}
