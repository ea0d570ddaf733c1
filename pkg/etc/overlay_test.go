package etc

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// needRoot skips, or fails in CI, where the test may not mount.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root")
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
}

// mount mounts until the test ends.
func mount(t *testing.T, source, target, fstype, options string, flags uintptr) {
	t.Helper()
	must(t, os.MkdirAll(target, 0o755))
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		t.Fatalf("mounting %s on %s (%s): %v", fstype, target, options, err)
	}
	t.Cleanup(func() { unmount(t, target) })
}

func unmount(t *testing.T, target string) {
	if err := unix.Unmount(target, 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: done already
		t.Errorf("unmounting %s: %v", target, err)
	}
}

// overlay mounts a slot's upper directory as Preinit does, but on another place
// than the lower directory, which is used again.
func overlay(t *testing.T, lower, dir, slot string) (merged string) {
	t.Helper()
	merged = filepath.Join(t.TempDir(), "etc")
	must(t, os.Mkdir(merged, 0o755))
	s := starter{mount: func(source, _, fstype string, flags uintptr, data string) error {
		return unix.Mount(source, merged, fstype, flags, data)
	}}
	must(t, s.mountUpper(lower, filepath.Join(dir, slot), nil))
	t.Cleanup(func() { unmount(t, merged) })
	return merged
}

// TestCloneOfAnOverlay: what the kernel leaves in an upper directory survives:
// the clone over the same image shows the same /etc.
func TestCloneOfAnOverlay(t *testing.T) {
	needRoot(t)
	base := filepath.Join(t.TempDir(), "data")
	mount(t, "tmpfs", base, "tmpfs", "", 0) // overlayfs takes no overlay as its upper
	lower, dir := filepath.Join(base, "lower"), filepath.Join(base, "etc")
	at := func(dir, name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at(lower, "replaced"), 0o755), os.MkdirAll(at(lower, "kept"), 0o755), os.Mkdir(dir, 0o755))
	for _, name := range []string{"deleted", "changed", "replaced/below", "kept/deleted", "kept/stays"} {
		must(t, os.WriteFile(at(lower, name), []byte("image"), 0o644))
	}
	etc := overlay(t, lower, dir, "A")
	must(t,
		os.Remove(at(etc, "deleted")), os.Remove(at(etc, "kept/deleted")),
		os.WriteFile(at(etc, "changed"), []byte("changed"), 0o644),
		os.Chown(at(etc, "changed"), 1000, 2000),
		os.RemoveAll(at(etc, "replaced")), os.Mkdir(at(etc, "replaced"), 0o700),
		os.WriteFile(at(etc, "replaced/new"), []byte("new"), 0o600),
		unix.Setxattr(at(etc, "changed"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
	)
	want := describe(t, etc)
	must(t, Clone(dir, "A", "B"))

	raw := strings.Join(describe(t, at(dir, "B/upper")), "\n")
	for _, part := range []string{"deleted mode=20", `trusted.overlay.opaque="y"`, "owner=1000:2000", "security.capability"} {
		if !strings.Contains(raw, part) {
			t.Errorf("the test made no %q: it proves less than it says\n%s", part, raw)
		}
	}
	if strings.Contains(raw, originXattr) {
		t.Errorf("the clone is tied to inodes of the old image:\n%s", raw)
	}
	if diff := cmp.Diff(want, describe(t, overlay(t, lower, dir, "B"))); diff != "" {
		t.Errorf("/etc of the clone (-original +clone):\n%s", diff)
	}
	if diff := cmp.Diff(want, describe(t, etc)); diff != "" {
		t.Errorf("/etc of the running slot changed (-before +after):\n%s", diff)
	}
}

// TestCloneOverAnotherImage: in a new image with the same file-system UUID, as
// reproducible builds make them, the inode of a file is another file's.
func TestCloneOverAnotherImage(t *testing.T) {
	needRoot(t)
	needTool(t, "mkfs.ext4")
	needTool(t, "losetup")
	base := filepath.Join(t.TempDir(), "data")
	mount(t, "tmpfs", base, "tmpfs", "", 0)
	dir := filepath.Join(base, "etc")
	must(t, os.Mkdir(dir, 0o755))

	old := newImage(t, base, "old", "file")
	etc := overlay(t, old, dir, "A")
	must(t, os.WriteFile(filepath.Join(etc, "file"), []byte("changed"), 0o644))
	must(t, Clone(dir, "A", "B"))
	unmount(t, etc)
	oldInode := stat(t, filepath.Join(old, "file")).Sys().(*syscall.Stat_t).Ino
	unmount(t, old)

	renewed := newImage(t, base, "new", "stranger")
	if ino := stat(t, filepath.Join(renewed, "stranger")).Sys().(*syscall.Stat_t).Ino; ino != oldInode {
		t.Fatalf("inode %d, want %d: the test proves nothing", ino, oldInode)
	}
	etc = overlay(t, renewed, dir, "B")
	if data, err := os.ReadFile(filepath.Join(etc, "file")); err != nil || string(data) != "changed" {
		t.Errorf("the changed file over the new image: %q, %v", data, err)
	}
	if os.SameFile(stat(t, filepath.Join(etc, "file")), stat(t, filepath.Join(etc, "stranger"))) {
		t.Error("two files pass for one")
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info
}

// newImage mounts an ext4 image with a fixed UUID and one file.
func newImage(t *testing.T, base, name, file string) string {
	t.Helper()
	tree, image := filepath.Join(base, name+".tree"), filepath.Join(base, name+".img")
	must(t, os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, file), []byte("image"), 0o644))
	run(t, "mkfs.ext4", "-q", "-U", "11111111-2222-4333-8444-555555555555", "-E", "hash_seed=11111111-2222-4333-8444-555555555555",
		"-O", "^has_journal", "-d", tree, image, "1024")
	loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", "-r", image))
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	target := filepath.Join(base, name)
	mount(t, loop, target, "ext4", "", unix.MS_RDONLY)
	return target
}

func run(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", command, args, err, out)
	}
	return string(out)
}

// TestCloneOrder: the clone is durable before it takes its place, and has its
// place durably before the old one is removed. The test runs itself in strace.
func TestCloneOrder(t *testing.T) {
	if dir := os.Getenv("OSCTL_TEST_CLONE"); dir != "" {
		must(t, Clone(dir, "A", "B"))
		return
	}
	if testing.Short() {
		t.Skip("needs strace")
	}
	needTool(t, "strace")
	dir, _ := plainTree(t)
	must(t, os.MkdirAll(filepath.Join(dir, "B", "upper", "old"), 0o755))
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("strace", "-f", "-y", "-o", log, "-e", "trace=utimensat,syncfs,renameat2,fsync,unlinkat",
		os.Args[0], "-test.run=^TestCloneOrder$")
	cmd.Env = append(os.Environ(), "OSCTL_TEST_CLONE="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	trace, err := os.ReadFile(log)
	must(t, err)
	rest := string(trace)
	for _, step := range []string{
		`utimensat\(.*/\.B\.new/upper",`,
		`syncfs\(\d+<.*/\.B\.new>`,
		`renameat2\(.*\.B\.new.*RENAME_EXCHANGE`,
		`fsync\(\d+<` + regexp.QuoteMeta(dir) + `>`,
		`unlinkat\(.*old`,
	} {
		at := regexp.MustCompile(step).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no %s in its place:\n%s", step, trace)
		}
		rest = rest[at[1]:]
	}
}

func needTool(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}
