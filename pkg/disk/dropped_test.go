package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestReadBackAtAsksTheMedium: on a file system without direct reads, what is read
// back is what the medium has, and not the pages of what was written. The medium
// here is a loop device, whose own file is changed behind the file system's back.
func TestReadBackAtAsksTheMedium(t *testing.T) {
	device := loopDevice(t, 8<<20)
	runTool(t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", device)
	point := t.TempDir()
	runTool(t, "mount", device, point)
	t.Cleanup(func() { runTool(t, "umount", point) })
	path := filepath.Join(point, "slot")
	written, lost := bytes.Repeat([]byte("written\n"), 1<<13), bytes.Repeat([]byte("lost it\n"), 1<<13)
	if err := os.WriteFile(path, make([]byte, len(written)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := openForTest(t, path)
	d.medium.direct.cached = true
	if _, err := d.WriteAt(written, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(written))
	if _, err := d.ReadBackAt(got, 0); err != nil || !bytes.Equal(got, written) {
		t.Fatalf("ReadBackAt = %v, or not what was written", err)
	}
	forget(t, device, written, lost)
	if _, err := d.ReadBackAt(got, 0); err != nil || !bytes.Equal(got, lost) {
		t.Errorf("ReadBackAt = %v, %.8q…, want %.8q…: it answers from the page cache", err, got, lost)
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
