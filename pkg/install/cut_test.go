package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/progress"
)

const complete = "a GPT partition table with boot, rootfsA, rootfsB, rescue, data"

// TestFailureLeavesABlankDisk shows that a failure at a late moment leaves
// nothing that boots, also where something did before, that a file made for it
// is removed, and that the same command then converges without Force.
func TestFailureLeavesABlankDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("runs mkfs.ext4 and debugfs")
	}
	needPrograms(t, "mkfs.ext4", "debugfs")
	opts := goodOptions(t, ext4Image(t, goodFiles()))
	write := opts.WriteSlot
	broken := errors.New("the network went away")
	fail := func(context.Context, *disk.Device) error {
		if what := contents(t, opts.Target); what != "" {
			t.Errorf("while the slot is written the disk holds %s", what)
		}
		return broken
	}

	opts.WriteSlot = fail
	if _, err := Install(t.Context(), opts); !errors.Is(err, broken) {
		t.Fatalf("Install = %v", err)
	}
	if _, err := os.Stat(opts.Target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the new file is still there: %v", err)
	}

	opts.WriteSlot = write
	if _, err := Install(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(complete, contents(t, opts.Target)); diff != "" {
		t.Error(diff)
	}
	opts.Size = 0
	if _, err := Install(t.Context(), opts); err == nil || !strings.Contains(err.Error(), complete) {
		t.Fatalf("a second install = %v, want a refusal that says what is there", err)
	}

	opts.Force, opts.WriteSlot = true, fail
	if _, err := Install(t.Context(), opts); !errors.Is(err, broken) {
		t.Fatalf("Install = %v", err)
	}
	if what := contents(t, opts.Target); what != "" {
		t.Errorf("after the failure the disk holds %s", what)
	}
	opts.Force, opts.WriteSlot = false, write
	if _, err := Install(t.Context(), opts); err != nil {
		t.Fatal(err)
	}

	opts.Force = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opts.Progress = func(e progress.Event) {
		if strings.Contains(e.Text, "boot partition") {
			cancel()
		}
	}
	if _, err := Install(ctx, opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("Install = %v, want canceled", err)
	}
	if what := contents(t, opts.Target); what != "" {
		t.Errorf("after a cancellation the disk holds %s", what)
	}
}

// The variables that tell TestVictim what to do.
const (
	targetVariable = "OSCTL_TEST_INSTALL_TARGET"
	imageVariable  = "OSCTL_TEST_INSTALL_IMAGE"
)

// TestVictim is the process that TestKilledAtAnyWrite kills; by itself it does
// nothing.
func TestVictim(t *testing.T) {
	target := os.Getenv(targetVariable)
	if target == "" {
		return
	}
	image, err := os.ReadFile(os.Getenv(imageVariable))
	if err != nil {
		t.Fatal(err)
	}
	// strace counts the system calls of each thread by itself.
	runtime.LockOSThread()
	opts := goodOptions(t, image)
	opts.Target, opts.Size, opts.Force = target, 0, true
	opts.EnvA = bytes.Repeat([]byte("N"), envSize)
	if _, err := Install(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
}

// TestKilledAtAnyWrite installs over a complete disk and kills the process at
// its first write, at its second one, and so on until it survives. What is
// left must be the old disk, a blank one, or the new one.
func TestKilledAtAnyWrite(t *testing.T) {
	if testing.Short() {
		t.Skip("runs strace on some twenty installs")
	}
	needPrograms(t, "mkfs.ext4", "debugfs", "strace")
	image := ext4Image(t, goodFiles())
	imagePath := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(imagePath, image, 0o600); err != nil {
		t.Fatal(err)
	}
	old := goodOptions(t, image)
	partitions, err := Install(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(old.Target)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for n, survived := 1, false; !survived; n++ {
		if err := os.WriteFile(old.Target, before, 0o600); err != nil {
			t.Fatal(err)
		}
		command := exec.Command("strace", "-f", "--detach-on=execve", "-qq", "-o", os.DevNull, "-e", "trace=pwrite64",
			"-e", fmt.Sprintf("inject=pwrite64:signal=KILL:when=%d", n), self, "-test.run=^TestVictim$")
		command.Env = append(os.Environ(), targetVariable+"="+old.Target, imageVariable+"="+imagePath, "TMPDIR="+t.TempDir())
		output, err := command.CombinedOutput()
		survived = err == nil
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if n > 500 {
			t.Fatalf("the install never survives: %v\n%s", err, output)
		}
		state := stateOf(t, old.Target, partitions)
		if survived && state != "new" {
			t.Errorf("after a whole install the disk is %s", state)
		}
		seen[state]++
	}
	// The first write of Erase, those of the middle, those of the table after
	// its backup.
	if seen["old"] < 1 || seen["blank"] < 5 || seen["new"] < 3 {
		t.Errorf("the cuts did not reach every stage: %v", seen)
	}
	t.Logf("the disk after each cut: %v", seen)
}

// stateOf says whether the disk is old, blank or new, and complains about
// everything else.
func stateOf(t *testing.T, path string, partitions []disk.Partition) string {
	t.Helper()
	d, err := disk.OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	found, err := disk.ReadTable(d)
	if err != nil {
		return "blank"
	}
	if diff := cmp.Diff(partitions, found); diff != "" {
		t.Fatal(diff)
	}
	slot, err := d.Section(found[1].Offset, found[1].Size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bootFiles(t.Context(), slot); err != nil {
		t.Errorf("a disk with a partition table has no image: %v", err)
	}
	esp := make([]byte, found[0].Size)
	if _, err := d.ReadAt(esp, found[0].Offset); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(esp, loader()) {
		t.Error("a disk with a partition table has no boot loader")
	}
	oldEnv, newEnv := bytes.Repeat([]byte("A"), envSize), bytes.Repeat([]byte("N"), envSize)
	switch hasOld, hasNew := bytes.Contains(esp, oldEnv), bytes.Contains(esp, newEnv); {
	case hasOld && !hasNew:
		return "old"
	case hasNew && !hasOld:
		return "new"
	}
	t.Error("a disk with a partition table has a mixture of env copies")
	return "mixed"
}

// TestInstallOnABlockDevice is TestInstall on a real block device.
func TestInstallOnABlockDevice(t *testing.T) {
	if testing.Short() {
		t.Skip("uses a loop device")
	}
	needPrograms(t, "mkfs.ext4", "debugfs", "e2fsck", "fsck.vfat", "mtype", "sgdisk", "losetup", "blockdev")
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("loop devices need root")
		}
		t.Skip("loop devices need root")
	}
	image := ext4Image(t, goodFiles())
	opts := goodOptions(t, image)
	blankFile(t, opts.Target, smallSize)
	device := strings.TrimSpace(run(t, "losetup", "--find", "--show", opts.Target))
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	opts.Target = device
	if _, err := Install(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "is not a plain file") {
		t.Errorf("Install with a size = %v", err)
	}
	opts.Size = 0
	partitions, err := Install(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, opts, partitions, image)

	// The same as a read-only and as a mounted disk.
	opts.Force = true
	run(t, "blockdev", "--setro", device)
	_, err = Install(t.Context(), opts)
	run(t, "blockdev", "--setrw", device)
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EROFS) {
		t.Errorf("Install on a read-only device = %v", err)
	}
	large := strings.TrimSpace(run(t, "losetup", "--find", "--show", "--sector-size", "4096", backing(t)))
	t.Cleanup(func() { run(t, "losetup", "--detach", large) })
	opts.Target = large
	if _, err := Install(t.Context(), opts); !errors.Is(err, disk.ErrUnfit) || !strings.Contains(err.Error(), "4096 bytes") {
		t.Errorf("Install on sectors of 4096 bytes = %v", err)
	}
}

func backing(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backing.img")
	blankFile(t, path, smallSize)
	return path
}
