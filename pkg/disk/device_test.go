package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newFile returns the path of a file of size random bytes, and the bytes.
func newFile(t *testing.T, dir string, size int) (string, []byte) {
	t.Helper()
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(content); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func openForTest(t *testing.T, path string) *Device {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestReadBackAtAnyOffsetAndLength(t *testing.T) {
	dirs := map[string]string{"temporary folder": t.TempDir()}
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		dir, err := os.MkdirTemp("/dev/shm", "disk-test-")
		if err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			dirs["tmpfs"] = dir
		}
	}
	const size = 3*directChunk + 777
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			path, content := newFile(t, dir, size)
			d := openForTest(t, path)
			for _, r := range [][2]int{
				{0, size}, {0, 1}, {1, 1}, {511, 2}, {4095, 4098}, {directChunk - 1, directChunk + 2},
				{size - 1, 1}, {size - 777, 777}, {size - 5000, 5000}, {12345, 0},
			} {
				got := make([]byte, r[1])
				n, err := d.ReadBackAt(got, int64(r[0]))
				if err != nil || n != r[1] || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
					t.Errorf("ReadBackAt(%d bytes, %d) = %d, %v; or wrong bytes", r[1], r[0], n, err)
				}
			}
		})
	}
}

func TestReadBackAtWithoutDirectReads(t *testing.T) {
	path, content := newFile(t, t.TempDir(), 2*directChunk+5)
	d := openForTest(t, path)
	d.medium.direct.cached = true
	got := make([]byte, len(content)-3)
	if _, err := d.ReadBackAt(got, 3); err != nil || !bytes.Equal(got, content[3:]) {
		t.Errorf("ReadBackAt = %v, or wrong bytes", err)
	}
}

func TestReadBackAtSeesWhatWasWritten(t *testing.T) {
	path, _ := newFile(t, t.TempDir(), 1<<16)
	d := openForTest(t, path)
	want := bytes.Repeat([]byte("new"), 1000)
	if _, err := d.WriteAt(want, 4000); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := d.ReadBackAt(got, 4000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadBackAt = %v, or not the new bytes", err)
	}
}

// TestWritesOfAllSizesMeet mixes writes by the page cache and past it, aligned or
// not, over each other.
func TestWritesOfAllSizesMeet(t *testing.T) {
	const size = 3*directChunk + 777
	buffer := alignedBuffer(size + directAlign)
	random := rand.NewChaCha8([32]byte{2})
	for name, set := range map[string]func(*Device){
		"direct":       func(*Device) {},
		"refused":      func(d *Device) { d.medium.direct.buffered = true },
		"no direct IO": func(d *Device) { d.medium.direct.cached = true },
	} {
		path, want := newFile(t, t.TempDir(), size)
		d := openForTest(t, path)
		set(d)
		for _, w := range [][3]int{ // offset, length, offset in memory
			{100, 5000, 0}, {0, directChunk, 0}, {directAlign, directLeast, 0}, {4000, 200, 0}, {directChunk, directLeast, 8},
			{directChunk + 1, directLeast, 0}, {2 * directChunk, directChunk, directAlign}, {2*directChunk + 8192, directLeast + 1, 0},
			{directAlign, size - directAlign, 0}, {0, size - 777, 0},
		} {
			p := buffer[w[2] : w[2]+w[1]]
			random.Read(p)
			copy(want[w[0]:], p)
			if n, err := d.WriteAt(p, int64(w[0])); n != len(p) || err != nil {
				t.Fatalf("%s: WriteAt(%d bytes, %d) = %d, %v", name, len(p), w[0], n, err)
			}
			got := make([]byte, size)
			if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: ReadAt after WriteAt(%d bytes, %d): %v, or other bytes", name, len(p), w[0], err)
			}
			if _, err := d.ReadBackAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: ReadBackAt after WriteAt(%d bytes, %d): %v, or other bytes", name, len(p), w[0], err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the file differs (or %v)", name, err)
		}
	}
}

// TestLargeWritesGoPastThePageCache: an image must not drive out what is cached
// for the machine's applications.
func TestLargeWritesGoPastThePageCache(t *testing.T) {
	path, _ := newFile(t, t.TempDir(), directChunk)
	d := openForTest(t, path)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(d.medium.file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(alignedBuffer(directChunk), 0); err != nil {
		t.Fatal(err)
	}
	if d.medium.direct.cached || d.medium.direct.buffered {
		if os.Getenv("CI") != "" {
			t.Fatal("the file system of the temporary folder has no direct writes; set TMPDIR")
		}
		t.Skip("the file system of the temporary folder has no direct writes")
	}
	if pages := cachedPages(t, d.medium.file, directChunk); pages != 0 {
		t.Errorf("%d pages are cached", pages)
	}
}

// cachedPages counts the pages of a file that are in the page cache, by
// mincore(2).
func cachedPages(t *testing.T, file *os.File, size int) int {
	t.Helper()
	mapped, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	in := make([]byte, (size+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(size), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, page := range in {
		n += int(page & 1)
	}
	return n
}

// TestReadBackAtReportsTruncation shows that a medium that gives fewer bytes
// than it has promised is an error, not zeroes.
func TestReadBackAtReportsTruncation(t *testing.T) {
	for _, cached := range []bool{false, true} {
		path, _ := newFile(t, t.TempDir(), 1<<16)
		d := openForTest(t, path)
		d.medium.direct.cached = cached
		if err := os.Truncate(path, 5000); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 2000)
		if _, err := d.ReadBackAt(buffer, 4000); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("ReadBackAt of a truncated file (cached=%v) = %v, want unexpected EOF", cached, err)
		}
		if _, err := d.ReadAt(buffer, 4000); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("ReadAt of a truncated file = %v, want unexpected EOF", err)
		}
	}
}

func TestBounds(t *testing.T) {
	path, content := newFile(t, t.TempDir(), 10000)
	d := openForTest(t, path)
	section, err := d.Section(1000, 500)
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]func([]byte, int64) (int, error){
		"ReadAt": section.ReadAt, "ReadBackAt": section.ReadBackAt,
	} {
		buffer := make([]byte, 100)
		if n, err := at(buffer, 400); n != 100 || err != nil || !bytes.Equal(buffer, content[1400:1500]) {
			t.Errorf("%s of the last 100 bytes = %d, %v, or wrong bytes", name, n, err)
		}
		if n, err := at(buffer, 450); n != 50 || err != io.EOF || !bytes.Equal(buffer[:50], content[1450:1500]) {
			t.Errorf("%s across the end = %d, %v, want 50, EOF", name, n, err)
		}
		if n, err := at(buffer, 500); n != 0 || err != io.EOF {
			t.Errorf("%s at the end = %d, %v, want 0, EOF", name, n, err)
		}
		for _, off := range []int64{-1, 501} {
			if _, err := at(buffer, off); !errors.Is(err, ErrRange) {
				t.Errorf("%s at %d = %v, want ErrRange", name, off, err)
			}
		}
	}
	for _, off := range []int64{-1, 401, 500, 501, 1 << 62} {
		if _, err := section.WriteAt(make([]byte, 100), off); !errors.Is(err, ErrRange) {
			t.Errorf("WriteAt(100 bytes, %d) = %v, want ErrRange", off, err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a refused write changed the file (or %v)", err)
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {0, 501}, {500, 1}, {501, 0}, {1, 1 << 62}} {
		if _, err := section.Section(bad[0], bad[1]); !errors.Is(err, ErrRange) {
			t.Errorf("Section(%d, %d) = %v, want ErrRange", bad[0], bad[1], err)
		}
	}
}

func TestSectionSharesTheDevice(t *testing.T) {
	path, content := newFile(t, t.TempDir(), 10000)
	d := openForTest(t, path)
	outer, err := d.Section(1000, 5000)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := outer.Section(10, 20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inner.WriteAt([]byte("hello"), 15); err != nil {
		t.Fatal(err)
	}
	if err := inner.Close(); err != nil {
		t.Fatal(err)
	}
	copy(content[1025:], "hello")
	got := make([]byte, 10000)
	if _, err := d.ReadBackAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("after a write through a section of a section: %v, or bytes elsewhere changed", err)
	}
}

func TestOpenIsExclusive(t *testing.T) {
	path, _ := newFile(t, t.TempDir(), 4096)
	d := openForTest(t, path)
	_, err := Open(path)
	if busy, ok := errors.AsType[*BusyError](err); !ok || !errors.Is(err, ErrBusy) || busy.Path != path {
		t.Fatalf("second Open = %v, want a BusyError for %s", err, path)
	}
	reader, err := OpenReadOnly(path)
	if err != nil {
		t.Fatalf("OpenReadOnly beside Open = %v", err)
	}
	defer func() { _ = reader.Close() }()
	if _, err := reader.WriteAt([]byte("x"), 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("WriteAt after OpenReadOnly = %v, want ErrReadOnly", err)
	}
	if _, err := reader.ReadBackAt(make([]byte, 100), 100); err != nil {
		t.Errorf("ReadBackAt after OpenReadOnly = %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatalf("Open after Close = %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatIsNoDisk(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null"} {
		if _, err := Open(path); !errors.Is(err, ErrNotDisk) {
			t.Errorf("Open(%s) = %v, want ErrNotDisk", path, err)
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := Open(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("Open(%s) = %v, want not exist", missing, err)
	}
}
