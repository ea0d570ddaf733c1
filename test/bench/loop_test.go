package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// loop is a loop device: a partition whose writes the kernel counts. It works
// with direct I/O, so that the file behind it is not cached a second time.
type loop struct {
	device string
	file   string
}

// newLoop attaches a file of the given size, all of it zero bytes that were
// written: on a file with holes or unwritten extents reads would cost nothing.
func newLoop(b *testing.B, file string, size int64) *loop {
	b.Helper()
	must(b, "dd", "if=/dev/zero", "of="+file, "bs=1M", fmt.Sprintf("count=%d", size>>20), "conv=fsync", "status=none")
	return attach(b, file)
}

func attach(b *testing.B, file string) *loop {
	b.Helper()
	l := &loop{file: file, device: strings.TrimSpace(must(b, "losetup", "--find", "--show", "--direct-io=on", file))}
	b.Cleanup(func() { l.detach(b) })
	return l
}

// detach does nothing the second time.
func (l *loop) detach(b *testing.B) {
	if l.device != "" {
		must(b, "losetup", "--detach", l.device)
		l.device = ""
	}
}

// remove detaches and deletes.
func (l *loop) remove(b *testing.B) {
	l.detach(b)
	check(b, os.Remove(l.file))
}

// written is the number of bytes that were written to the device so far: field 7
// of its stat file, in sectors of 512 bytes (Documentation/block/stat.rst).
func (l *loop) written(b *testing.B) int64 { return l.stat(b, 6) }

// read is the number of bytes that were read from the device so far.
func (l *loop) read(b *testing.B) int64 { return l.stat(b, 2) }

func (l *loop) stat(b *testing.B, field int) int64 {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(l.device), "stat"))
	check(b, err)
	n, err := strconv.ParseInt(strings.Fields(string(text))[field], 10, 64)
	check(b, err)
	return n << 9
}

// dropCache forgets what the page cache has of the device.
func (l *loop) dropCache(b *testing.B) {
	b.Helper()
	file, err := os.Open(l.device)
	check(b, err)
	defer file.Close()
	check(b, unix.IoctlSetInt(int(file.Fd()), unix.BLKFLSBUF, 0))
}

// mountNew makes an ext4 on the device and mounts it.
func (l *loop) mountNew(b *testing.B, dir string) {
	b.Helper()
	check(b, os.Mkdir(dir, 0o755))
	// Nothing may be left to a background thread, whose writes would be counted.
	must(b, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", l.device)
	must(b, "mount", l.device, dir)
	b.Cleanup(func() { must(b, "umount", dir) })
}

// must runs a tool and returns what it printed.
func must(b *testing.B, name string, args ...string) string {
	b.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
