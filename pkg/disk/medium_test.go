package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadBackAtAsksTheMedium: what is read back is what the medium has, and not the
// pages of what was written, also on a file system without direct reads. The medium
// here is a loop device, whose own file is changed behind the file system's back.
func TestReadBackAtAsksTheMedium(t *testing.T) {
	device := loopDevice(t, 8<<20)
	runTool(t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", device)
	point := t.TempDir()
	runTool(t, "mount", device, point)
	t.Cleanup(func() { runTool(t, "umount", point) })
	for name, cached := range map[string]bool{"direct": false, "no direct reads": true} {
		written := bytes.Repeat([]byte(name[:2]+" done\n"), 1<<13)
		lost := bytes.Repeat([]byte(name[:2]+" lost\n"), 1<<13)
		path := filepath.Join(point, name)
		if err := os.WriteFile(path, make([]byte, len(written)), 0o600); err != nil {
			t.Fatal(err)
		}
		d := openForTest(t, path)
		d.medium.direct.cached = cached
		if _, err := d.WriteAt(written[:1], 0); err != nil { // by the page cache
			t.Fatal(err)
		}
		if _, err := d.WriteAt(written[1:], 1); err != nil {
			t.Fatal(err)
		}
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(written))
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, written) {
			t.Fatalf("%s: ReadAt = %v, or not what was written", name, err)
		}
		forget(t, device, written, lost)
		if _, err := d.ReadBackAt(got, 0); err != nil || !bytes.Equal(got, lost) {
			t.Errorf("%s: ReadBackAt = %v, %.8q…, want %.8q…: it answers from the page cache", name, err, got, lost)
		}
	}
}

// forget replaces what a device holds, wherever that is on it.
func forget(t *testing.T, device string, old, new []byte) {
	t.Helper()
	file := runTool(t, "losetup", "--noheadings", "--output", "BACK-FILE", device)
	path := string(bytes.TrimSpace([]byte(file)))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, old)
	if at < 0 {
		t.Fatalf("%s does not hold what was written in one piece", path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(new, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// TestShortWritesAreErrors: a file system that takes a part of a write and no more,
// because it is full, is noticed at that write.
func TestShortWritesAreErrors(t *testing.T) {
	needRoot(t)
	point := t.TempDir()
	runTool(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", point)
	t.Cleanup(func() { runTool(t, "umount", point) })
	const size = 4 << 20 // more than there is
	path := filepath.Join(point, "slot")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	d := openForTest(t, path)
	n, err := d.WriteAt(bytes.Repeat([]byte{0x5a}, size), 0)
	if !errors.Is(err, unix.ENOSPC) || n <= 0 || n >= size {
		t.Errorf("WriteAt = %d, %v; want a part, and ENOSPC", n, err)
	}
}
