// Package disk opens block devices and plain files for exclusive use, proves
// what is on the medium, finds partitions by their GPT name, and creates the
// disk of a new machine.
//
// It knows bytes and partitions. It does not know what a slot, an image or a
// boot state is, and never decides whether something should be written.
//
// It refuses to open what somebody else uses (a mounted partition, the disk
// of one, a file that a loop device, QEMU or another osctl holds), to read or
// write outside the opened range, and to guess between two partitions of the
// same name.
//
// It promises that [Device.ReadAt], [Device.WriteAt] and [Device.ReadBackAt]
// move all bytes or return an error, that [Device.Sync] returns after the
// medium has confirmed its cache flush, and that [Device.ReadBackAt] does not
// answer from this machine's page cache where the file system allows it.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrRange is returned for a read or write outside a device.
	ErrRange = errors.New("outside the device")
	// ErrReadOnly is returned for a write to a device of [OpenReadOnly].
	ErrReadOnly = errors.New("opened for reading only")
	// ErrNotDisk is returned for a path that is neither a block device nor a
	// plain file.
	ErrNotDisk = errors.New("neither a block device nor a plain file")
)

// Device is a block device or plain file of a fixed size, or a section of
// one. It is safe for concurrent use. The zero value is not usable.
type Device struct {
	medium *medium
	name   string
	off    int64 // of the section in the medium, in bytes
	size   int64 // in bytes
	owner  bool  // false for a section: Close is then a no-op
}

// medium is what a device and its sections share: one open file.
type medium struct {
	file     *os.File
	block    bool // block device, not plain file
	writable bool

	direct direct
}

// Open opens the block device or plain file at path for reading and writing,
// and keeps everybody else out: O_EXCL on a block device, locks on a file.
//
// It returns an error that matches [ErrBusy] and is a [*BusyError] if
// somebody else has it, [ErrNotDisk] if it is something else, and
// fs.ErrNotExist or fs.ErrPermission as open does. The size of a file is
// fixed at this moment; create it with the wanted size first.
func Open(path string) (*Device, error) {
	return open(path, true)
}

// OpenReadOnly opens the block device or plain file at path for reading. It
// takes no lock and succeeds on mounted devices, so it is right for the
// running slot and nothing else.
func OpenReadOnly(path string) (*Device, error) {
	return open(path, false)
}

func open(path string, writable bool) (*Device, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening device: %w", err)
	}
	block, err := isBlock(path, info)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
		if block {
			flags |= unix.O_EXCL
		}
	}
	file, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, &BusyError{Path: path, By: hostFacts().blockUsers(info)}
	}
	if err != nil {
		return nil, fmt.Errorf("opening device: %w", err)
	}
	if writable && block {
		// O_EXCL keeps out those who ask for the same; others may hold it open.
		if by := hostFacts().openers(info); len(by) > 0 {
			return nil, errors.Join(&BusyError{Path: path, By: by}, file.Close())
		}
	}
	d, err := newDevice(file, path, block, writable)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return d, nil
}

func newDevice(file *os.File, path string, block, writable bool) (*Device, error) {
	if writable && !block {
		if err := lockFile(file, path); err != nil {
			return nil, err
		}
	}
	// Seeking to the end gives the size of a file and of a block device alike.
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("reading size of %s: %w", path, err)
	}
	m := &medium{file: file, block: block, writable: writable}
	return &Device{medium: m, name: path, size: size, owner: true}, nil
}

func isBlock(path string, info fs.FileInfo) (bool, error) {
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return false, nil
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		return true, nil
	default:
		return false, fmt.Errorf("opening device: %s: %w", path, ErrNotDisk)
	}
}

// Section returns the size bytes from off as a device of its own, which
// shares the open file (and so the lock) of d. Its Close does nothing; it is
// of no use after d was closed. It returns [ErrRange] if d has no such bytes.
func (d *Device) Section(off, size int64) (*Device, error) {
	if off < 0 || size < 0 || off > d.size || size > d.size-off {
		return nil, fmt.Errorf("taking %d bytes at %d of %s (%d bytes): %w", size, off, d.name, d.size, ErrRange)
	}
	name := fmt.Sprintf("%s[%d+%d]", d.name, off, size)
	return &Device{medium: d.medium, name: name, off: d.off + off, size: size}, nil
}

// Name returns the path that was opened, with the range for a section. It is
// for messages.
func (d *Device) Name() string { return d.name }

// Path returns the path that was opened, and the offset of a section in it,
// in bytes: for programs that work on the same place.
func (d *Device) Path() (path string, offset int64) { return d.medium.file.Name(), d.off }

// Size returns the size in bytes.
func (d *Device) Size() int64 { return d.size }

// IsBlock reports whether this is a block device or a section of one.
func (d *Device) IsBlock() bool { return d.medium.block }

// ReadAt reads len(p) bytes at off, through the page cache. Unlike
// io.ReaderAt in general it returns [ErrRange] and reads nothing if the range
// is not entirely in the device; a read that starts at the end is io.EOF, and
// one that crosses it gives the bytes before it and io.EOF.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	want, err := d.clip(len(p), off)
	if err != nil {
		return 0, err
	}
	n, err := d.medium.file.ReadAt(p[:want], d.off+off)
	if err == io.EOF {
		// The file was truncated behind our back.
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return n, fmt.Errorf("reading %d bytes at %d of %s: %w", want, off, d.name, err)
	}
	if want < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// clip returns how many of n bytes at off are in the device: io.EOF if none.
func (d *Device) clip(n int, off int64) (int, error) {
	switch {
	case off < 0 || off > d.size:
		return 0, fmt.Errorf("reading %d bytes at %d of %s (%d bytes): %w", n, off, d.name, d.size, ErrRange)
	case n == 0:
		return 0, nil
	case off == d.size:
		return 0, io.EOF
	}
	return int(min(int64(n), d.size-off)), nil
}

// WriteAt writes p at off. It returns [ErrRange] and writes nothing if the
// range is not entirely in the device: a device does not grow. The bytes are
// durable only after [Device.Sync]. Large writes that are aligned in memory and
// on the device go past the page cache.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	if !d.medium.writable {
		return 0, fmt.Errorf("writing %s: %w", d.name, ErrReadOnly)
	}
	if off < 0 || off > d.size || int64(len(p)) > d.size-off {
		return 0, fmt.Errorf("writing %d bytes at %d of %s (%d bytes): %w", len(p), off, d.name, d.size, ErrRange)
	}
	n, err := d.medium.write(p, d.off+off)
	if err != nil {
		return n, fmt.Errorf("writing %d bytes at %d of %s: %w", len(p), off, d.name, err)
	}
	return n, nil
}

// Sync makes all earlier writes durable: it returns after the medium has
// confirmed a flush of its own cache. (fsync(2) of a block device is a write
// of its dirty pages followed by a flush request.) For a section it syncs the
// whole device.
func (d *Device) Sync() error {
	if err := d.medium.file.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", d.name, err)
	}
	return nil
}

// Close releases the device and its lock; it does not sync. For a section it
// does nothing.
func (d *Device) Close() error {
	if !d.owner {
		return nil
	}
	err := errors.Join(d.medium.direct.close(), d.medium.file.Close())
	if err != nil {
		return fmt.Errorf("closing %s: %w", d.name, err)
	}
	return nil
}

// direct is the lazily opened second descriptor, with O_DIRECT: for reads from
// the medium, with an aligned buffer for those that are not aligned themselves,
// and for large writes.
type direct struct {
	mu       sync.Mutex
	file     *os.File
	buffer   []byte
	cached   bool // the file system has no O_DIRECT: drop the cache instead
	buffered bool // it refuses direct writes: all go through the cache
}

// directLeast is the size from which a write goes past the page cache, in bytes.
// Smaller ones are collected there: one by one they would each wait for the
// medium.
const directLeast = 64 << 10

// write writes p at off. Large writes with O_DIRECT spare a copy, and above all
// the memory: an image that passed through the page cache would drive out what
// the machine's applications have there. The kernel keeps both ways coherent.
func (m *medium) write(p []byte, off int64) (int, error) {
	done := 0
	if len(p) >= directLeast && aligned(p, off) {
		n, err := m.writeDirect(p, off)
		if err != nil {
			return n, err
		}
		done = n
	}
	n, err := m.file.WriteAt(p[done:], off+int64(done))
	return done + n, err
}

// writeDirect writes as much of p as the file system takes past the page cache:
// all, or nothing on one that has no O_DIRECT.
func (m *medium) writeDirect(p []byte, off int64) (int, error) {
	m.direct.mu.Lock()
	defer m.direct.mu.Unlock()
	if err := m.openDirect(); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) && aligned(p[done:], off+int64(done)) && !m.direct.cached && !m.direct.buffered {
		n, err := unix.Pwrite(int(m.direct.file.Fd()), p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL) && !m.block:
			// Some file systems accept the flag and refuse the write.
			m.direct.buffered = true
		case err != nil:
			return done, err
		case n == 0:
			return done, nil
		default:
			done += n
		}
	}
	return done, nil
}
