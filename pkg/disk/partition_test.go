package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeSys builds a sysfs tree with disks vda (8:0) and sdb (9:0), whose
// partitions have the given names.
func fakeSys(t *testing.T, names map[string][]string) string {
	t.Helper()
	sys := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	add := func(dir, name string, major, minor int, more string) {
		number := fmt.Sprintf("%d:%d", major, minor)
		write(filepath.Join(dir, "dev"), number+"\n")
		write(filepath.Join(dir, "uevent"), fmt.Sprintf("MAJOR=%d\nMINOR=%d\nDEVNAME=%s\n%s", major, minor, name, more))
		link(dir, filepath.Join(sys, "class/block", name))
		link(dir, filepath.Join(sys, "dev/block", number))
	}
	for disk, major := range map[string]int{"vda": 8, "sdb": 9} {
		dir := filepath.Join(sys, "devices/pci/block", disk)
		add(dir, disk, major, 0, "DEVTYPE=disk\n")
		for i, label := range names[disk] {
			name := fmt.Sprintf("%s%d", disk, i+1)
			part := filepath.Join(dir, name)
			write(filepath.Join(part, "partition"), fmt.Sprintf("%d\n", i+1))
			add(part, name, major, i+1, fmt.Sprintf("DEVTYPE=partition\nPARTN=%d\nPARTNAME=%s\n", i+1, label))
		}
	}
	return sys
}

func TestFindPartition(t *testing.T) {
	sys := fakeSys(t, map[string][]string{
		"vda": {"boot", "rootfsA", "rootfsB", "twice", "twice"},
		"sdb": {"boot", "rootfsA", "data"},
	})
	onVda := deviceNumber(unix.Mkdev(8, 2))
	none := deviceNumber(unix.Mkdev(0, 42))
	for _, test := range []struct {
		label string
		root  deviceNumber
		want  string
	}{
		{"rootfsA", onVda, "/dev/vda2"},
		{"rootfsA", deviceNumber(unix.Mkdev(9, 0)), "/dev/sdb2"},
		{"data", onVda, "/dev/sdb3"},
		{"rootfsB", none, "/dev/vda3"},
	} {
		got, err := partitions{sys: sys, root: test.root}.find(test.label)
		if got != test.want || err != nil {
			t.Errorf("find(%q) with root %s = %q, %v; want %q", test.label, test.root, got, err, test.want)
		}
	}
	for _, test := range []struct {
		label string
		root  deviceNumber
		want  []string
	}{
		{"rootfsA", none, []string{"/dev/sdb2", "/dev/vda2"}},
		{"twice", onVda, []string{"/dev/vda4", "/dev/vda5"}},
	} {
		_, err := partitions{sys: sys, root: test.root}.find(test.label)
		ambiguous, ok := errors.AsType[*AmbiguousError](err)
		if !ok || !cmp.Equal(ambiguous.Candidates, test.want) {
			t.Errorf("find(%q) with root %s = %v, want an AmbiguousError of %v", test.label, test.root, err, test.want)
		}
	}
	for _, label := range []string{"", "rescue", "rootfs"} {
		if _, err := (partitions{sys: sys, root: onVda}).find(label); !errors.Is(err, ErrNoPartition) {
			t.Errorf("find(%q) = %v, want ErrNoPartition", label, err)
		}
	}
}

func TestSameAsRoot(t *testing.T) {
	path, _ := newFile(t, t.TempDir(), 512)
	if same, err := SameAsRoot(path); same || err != nil {
		t.Errorf("SameAsRoot of a plain file = %v, %v", same, err)
	}
	root, err := RootDevice()
	if err != nil {
		t.Logf("not checked further: %v", err)
		return
	}
	if same, err := SameAsRoot(root); !same || err != nil {
		t.Errorf("SameAsRoot(%s) = %v, %v; want true", root, same, err)
	}
}

func TestBlockUsers(t *testing.T) {
	sys := fakeSys(t, map[string][]string{"vda": {"boot", "data"}})
	proc := t.TempDir()
	if err := os.MkdirAll(filepath.Join(proc, "self"), 0o755); err != nil {
		t.Fatal(err)
	}
	mounts := "22 1 8:2 / /mnt/my\\040data rw,relatime - ext4 /dev/vda2 rw\n23 1 9:0 / /other rw - ext4 /dev/sdb rw\n"
	if err := os.WriteFile(filepath.Join(proc, "self/mountinfo"), []byte(mounts), 0o644); err != nil {
		t.Fatal(err)
	}
	swaps := "Filename Type Size Used Priority\n/dev/vda1 partition 1 0 -2\n"
	if err := os.WriteFile(filepath.Join(proc, "swaps"), []byte(swaps), 0o644); err != nil {
		t.Fatal(err)
	}
	f := facts{sys: sys, proc: proc}
	want := []string{"/dev/vda1 is swap", "/dev/vda2 is mounted on /mnt/my data"}
	if diff := cmp.Diff(want, f.usersOfNumber(unix.Mkdev(8, 0))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[1:], f.usersOfNumber(unix.Mkdev(8, 2))); diff != "" {
		t.Error(diff)
	}
	if got := f.usersOfNumber(unix.Mkdev(99, 2)); got != nil {
		t.Errorf("users of a device that is not there: %v", got)
	}
	// A service keeps a mount that ended here; its other process adds nothing.
	for pid, namespace := range map[string]string{"self": "mnt:[1]", "7": "mnt:[1]", "41": "mnt:[2]", "42": "mnt:[2]"} {
		process := filepath.Join(proc, pid)
		if err := errors.Join(os.MkdirAll(filepath.Join(process, "ns"), 0o755), os.Symlink(namespace, filepath.Join(process, "ns/mnt")),
			os.WriteFile(filepath.Join(process, "mountinfo"), []byte("22 1 8:2 / /data rw - ext4 /dev/vda2 rw\n"), 0o644),
			os.WriteFile(filepath.Join(process, "comm"), []byte("sleeper\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(proc, "self/mountinfo"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want = []string{"/dev/vda2 is mounted on /data for process 41 (sleeper) only"}
	if diff := cmp.Diff(want, f.usersOfNumber(unix.Mkdev(8, 2))); diff != "" {
		t.Error(diff)
	}
}
