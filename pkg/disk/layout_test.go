package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var testLayout = Layout{ESP: 36 * MiB, Slot: 4 * MiB, Rescue: 2 * MiB}

func TestPlace(t *testing.T) {
	got, err := DefaultLayout().Place(8<<30 + 12345)
	if err != nil {
		t.Fatal(err)
	}
	want := []Partition{
		{"boot", 1 * MiB, 64 * MiB},
		{"rootfsA", 65 * MiB, 2048 * MiB},
		{"rootfsB", 2113 * MiB, 2048 * MiB},
		{"rescue", 4161 * MiB, 256 * MiB},
		{"data", 4417 * MiB, (8192 - 4417 - 1) * MiB},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPlaceRefusals(t *testing.T) {
	least := testLayout.MinDiskSize()
	if _, err := testLayout.Place(least); err != nil {
		t.Errorf("Place on the smallest disk: %v", err)
	}
	_, err := testLayout.Place(least - 1)
	if small, ok := errors.AsType[*TooSmallError](err); !ok || small.Have != least-1 || small.Want != least {
		t.Errorf("Place on a smaller disk = %v, want a TooSmallError", err)
	}
	for name, layout := range map[string]Layout{
		"rootfsA": {ESP: 64 * MiB, Slot: MiB + 512, Rescue: MiB},
		"rescue":  {ESP: 64 * MiB, Slot: MiB},
		"boot":    {ESP: minESP - MiB, Slot: MiB, Rescue: MiB},
	} {
		if _, err := layout.Place(1 << 40); err == nil || !strings.Contains(err.Error(), "the size of "+name) {
			t.Errorf("Place(%+v) = %v, want an error about %s", layout, err, name)
		}
	}
}

// TestWriteTableProvesWhatIsOnTheMedium shows that a name which GPT cannot hold
// in full is an error and not a partition that nobody finds.
func TestWriteTableProvesWhatIsOnTheMedium(t *testing.T) {
	d := newDisk(t, testLayout.MinDiskSize())
	partitions, err := testLayout.Place(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteTable(d, partitions); err != nil {
		t.Fatal(err)
	}
	// GPT has room for 36 UTF-16 code units (UEFI specification, 5.3.3).
	partitions[3].Label = strings.Repeat("x", 36) + "y"
	if err := WriteTable(d, partitions); err == nil {
		t.Error("WriteTable with a name of 37 letters succeeded")
	}
}

func TestReadTableFallsBackToTheBackup(t *testing.T) {
	d := newDisk(t, testLayout.MinDiskSize())
	want, err := testLayout.Place(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteTable(d, want); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, SectorSize), SectorSize); err != nil {
		t.Fatal(err)
	}
	got, err := ReadTable(d)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if what, err := Contents(d); err != nil || !strings.Contains(what, "rootfsA") {
		t.Errorf("Contents with a damaged primary header = %q, %v", what, err)
	}
}

func TestContentsAndErase(t *testing.T) {
	for name, test := range map[string]struct {
		off  int64
		data []byte
		want string
	}{
		"blank":            {0, nil, ""},
		"MBR":              {510, []byte{0x55, 0xAA}, "an MBR partition table or a boot sector"},
		"squashfs":         {0, []byte("hsqs"), "a squashfs file system"},
		"ext4":             {1080, []byte{0x53, 0xEF}, "an ext2, ext3 or ext4 file system"},
		"damaged GPT":      {512, []byte("EFI PART"), "a damaged GPT partition table"},
		"damaged backup":   {8*MiB - 512, []byte("EFI PART"), "a damaged GPT partition table"},
		"unknown":          {4711, []byte("x"), "data of an unknown kind"},
		"unknown, at end":  {8*MiB - 1, []byte("x"), "data of an unknown kind"},
		"in the last MiB":  {7 * MiB, []byte("x"), "data of an unknown kind"},
		"only in the body": {7*MiB - 1, []byte("x"), ""},
	} {
		d := newDisk(t, 8*MiB)
		if _, err := d.WriteAt(test.data, test.off); err != nil {
			t.Fatal(err)
		}
		if got, err := Contents(d); got != test.want || err != nil {
			t.Errorf("%s: Contents = %q, %v; want %q", name, got, err, test.want)
		}
		if err := Erase(d); err != nil {
			t.Fatal(err)
		}
		if got, err := Contents(d); got != "" || err != nil {
			t.Errorf("%s: Contents after Erase = %q, %v", name, got, err)
		}
	}
}

func TestCreateFileRefusesAnExistingOne(t *testing.T) {
	path, _ := newFile(t, t.TempDir(), 10)
	if _, err := CreateFile(path, 20); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateFile = %v, want exists", err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 10 {
		t.Errorf("the existing file was touched: %v, %v", info, err)
	}
	if _, err := CreateFile(filepath.Join(t.TempDir(), "x"), -1); err == nil {
		t.Error("CreateFile with a negative size succeeded")
	}
}

// TestWriteExt4StaysInItsSection checks that a program which is given an
// offset and a length keeps to them.
func TestWriteExt4StaysInItsSection(t *testing.T) {
	if testing.Short() {
		t.Skip("runs mkfs.ext4")
	}
	needPrograms(t, "mkfs.ext4", "e2fsck", "debugfs")
	d := newDisk(t, 100*MiB)
	old := bytes.Repeat([]byte{0xAA}, 100*MiB)
	if _, err := d.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	section, err := d.Section(10*MiB, 70*MiB)
	if err != nil {
		t.Fatal(err)
	}
	seed := t.TempDir()
	if err := os.WriteFile(filepath.Join(seed, "file"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := WriteExt4(t.Context(), section, "data", seed); err != nil {
		t.Fatal(err)
	}
	path, offset := section.Path()
	if out := runTool(t, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", path, offset)); !strings.Contains(out, "data: ") {
		t.Errorf("the file system is not named data: %s", out)
	}
	if out := runTool(t, "debugfs", "-R", "cat /file", fmt.Sprintf("%s?offset=%d", path, offset)); !strings.HasSuffix(out, "content") {
		t.Errorf("the seed is not in the file system: %s", out)
	}
	got := make([]byte, 100*MiB)
	if _, err := d.ReadBackAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:10*MiB], old[:10*MiB]) || !bytes.Equal(got[80*MiB:], old[80*MiB:]) {
		t.Error("mkfs.ext4 wrote outside its section")
	}
	if _, err := Open(path); !errors.Is(err, ErrBusy) {
		t.Errorf("after WriteExt4 the lock is gone: %v", err)
	}
}

func TestWriteExt4SaysWhy(t *testing.T) {
	d := newDisk(t, 8*MiB)
	t.Setenv("PATH", t.TempDir())
	if _, err := FindProgram("osctl-no-such-program", "the-package"); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "the-package") {
		t.Errorf("FindProgram = %v", err)
	}
	if testing.Short() {
		return
	}
	needPrograms(t, "mkfs.ext4")
	missing := filepath.Join(t.TempDir(), "missing")
	if err := WriteExt4(t.Context(), d, "data", missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("WriteExt4 of a missing folder = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WriteExt4(ctx, d, "data", t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("WriteExt4 after cancel = %v", err)
	}
}

// needRoot skips what uses loop devices and mounts, where that cannot be.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("uses loop devices and mounts")
	}
	needPrograms(t, "mount")
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("loop devices and mounts need root")
		}
		t.Skip("loop devices and mounts need root")
	}
}

// loopDevice attaches a new file of size bytes to a loop device.
func loopDevice(t *testing.T, size int64, options ...string) string {
	t.Helper()
	needRoot(t)
	needPrograms(t, "losetup", "partx", "mkfs.ext4")
	path := filepath.Join(t.TempDir(), "backing.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(runTool(t, "losetup", append(options, "--find", "--show", path)...))
	t.Cleanup(func() { runTool(t, "losetup", "--detach", device) })
	return device
}

// TestBlockDevice creates a whole disk on a real block device, and looks at it
// with the eyes of the kernel.
func TestBlockDevice(t *testing.T) {
	device := loopDevice(t, testLayout.MinDiskSize(), "--partscan")
	d := openForTest(t, device)
	if !d.IsBlock() || d.Size() != testLayout.MinDiskSize() {
		t.Fatalf("size of %s is %d", device, d.Size())
	}
	if err := CheckWholeDisk(d); err != nil {
		t.Error(err)
	}
	_, err := Open(device)
	if !errors.Is(err, ErrBusy) {
		t.Errorf("second Open = %v, want ErrBusy", err)
	}
	partitions, err := testLayout.Place(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	data, err := d.Section(partitions[4].Offset, partitions[4].Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteExt4(t.Context(), data, "data", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(device); !errors.Is(err, ErrBusy) {
		t.Errorf("Open after WriteExt4 = %v, want ErrBusy: the device was not taken back", err)
	}
	if err := WriteTable(d, partitions); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadBackAt(make([]byte, 5000), 777); err != nil || d.medium.direct.cached {
		t.Errorf("ReadBackAt on a block device = %v, through the page cache: %v", err, d.medium.direct.cached)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	checkPartition(t, device)
}

// checkPartition works on the last partition of the disk that
// TestBlockDevice made.
func checkPartition(t *testing.T, device string) {
	t.Helper()
	want := device + "p5"
	if _, err := os.Stat(filepath.Join("/sys/class/block", filepath.Base(want))); err == nil {
		found, err := partitions{sys: "/sys", root: rdev(t, device)}.find(LabelData)
		if err != nil || found != want {
			t.Fatalf("find(data) = %q, %v; want %q", found, err, want)
		}
	} else {
		// A kernel without CONFIG_EFI_PARTITION: partx reads the table, and
		// the kernel knows the partitions but not their names.
		runTool(t, "partx", "--add", device)
	}
	part := openForTest(t, want)
	if err := CheckWholeDisk(part); !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), "partition 5 of "+device) {
		t.Errorf("CheckWholeDisk(%s) = %v", want, err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	point := t.TempDir()
	runTool(t, "mount", want, point)
	t.Cleanup(func() { runTool(t, "umount", point) })
	for _, path := range []string{want, device} {
		_, err := Open(path)
		busy, ok := errors.AsType[*BusyError](err)
		if !ok || len(busy.By) != 1 || busy.By[0] != want+" is mounted on "+point {
			t.Errorf("Open(%s) while %s is mounted = %v", path, want, err)
		}
	}
	reader, err := OpenReadOnly(want)
	if err != nil {
		t.Fatalf("OpenReadOnly of a mounted device = %v", err)
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
}

func rdev(t *testing.T, path string) deviceNumber {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return deviceNumber(stat.Rdev)
}

func TestOpenRefusesTheBackingOfALoopDevice(t *testing.T) {
	device := loopDevice(t, MiB)
	backing := readLine(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	_, err := Open(backing)
	if busy, ok := errors.AsType[*BusyError](err); !ok || !strings.Contains(busy.Error(), "attached to "+device) {
		t.Errorf("Open(%s) = %v, want a BusyError that names %s", backing, err, device)
	}
}
