package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// directAlign is the alignment of offset, length and memory that O_DIRECT
	// gets: the largest logical block size in use (open(2) asks for that of
	// the device, which is 512 or 4096).
	directAlign = 4096
	// directChunk is the size of one read and of the buffer, in bytes. It
	// bounds the memory of ReadBackAt and is a multiple of directAlign.
	directChunk = 1 << 20
)

// ReadBackAt reads len(p) bytes at off from the medium, past this machine's
// page cache: by a second descriptor with O_DIRECT, or, on a file system that
// has none (tmpfs), after fsync and POSIX_FADV_DONTNEED. Any offset and
// length will do; memory is one buffer of 1 MiB. Bounds are as in
// [Device.ReadAt]. Call [Device.Sync] first: the kernel writes dirty pages of
// the range before such a read, but only Sync makes the medium flush.
func (d *Device) ReadBackAt(p []byte, off int64) (int, error) {
	want, err := d.clip(len(p), off)
	if err != nil {
		return 0, err
	}
	n, err := d.medium.readBack(p[:want], d.off+off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return n, fmt.Errorf("reading back %d bytes at %d of %s: %w", want, off, d.name, err)
	}
	if want < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *medium) readBack(p []byte, off int64) (int, error) {
	r := &m.direct
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := m.openDirect(); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		if r.cached {
			n, err := m.readDropped(p[done:], off+int64(done))
			return done + n, err
		}
		n, err := r.readAligned(p[done:], off+int64(done))
		if errors.Is(err, unix.EINVAL) && !m.block {
			// Some file systems accept the flag and refuse the read. No
			// block device does, so there it is an error.
			r.cached = true
			continue
		}
		if err != nil {
			return done + n, err
		}
		done += n
	}
	return done, nil
}

// openDirect opens the second descriptor on the very object that the first
// one has, whatever the path names by now.
func (m *medium) openDirect() error {
	r := &m.direct
	if r.file != nil || r.cached {
		return nil
	}
	self := fmt.Sprintf("/proc/self/fd/%d", m.file.Fd())
	flags := os.O_RDONLY
	if m.writable {
		flags = os.O_RDWR
	}
	file, err := os.OpenFile(self, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		r.cached = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening %s for direct access: %w", m.file.Name(), err)
	}
	r.file = file
	return nil
}

// readAligned reads one aligned block range that covers the start of p, and
// returns how many bytes of p it filled: at least one, or an error. It reads into
// p itself where the alignment permits, which spares the copy.
func (r *direct) readAligned(p []byte, off int64) (int, error) {
	if aligned(p, off) {
		n, err := pread(r.file, p[:min(len(p), directChunk)], off)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		return n, err
	}
	if r.buffer == nil {
		r.buffer = alignedBuffer(directChunk)
	}
	skip := int(off % directAlign)
	length := min(skip+len(p), directChunk)
	length = (length + directAlign - 1) / directAlign * directAlign
	n, err := pread(r.file, r.buffer[:length], off-int64(skip))
	if err != nil {
		return 0, err
	}
	if n <= skip {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, r.buffer[skip:n]), nil
}

// readDropped reads through the cache after asking the kernel to drop it.
// Dirty pages cannot be dropped, therefore the fsync.
func (m *medium) readDropped(p []byte, off int64) (int, error) {
	if m.writable {
		if err := m.file.Sync(); err != nil {
			return 0, err
		}
	}
	if err := unix.Fadvise(int(m.file.Fd()), off, int64(len(p)), unix.FADV_DONTNEED); err != nil {
		return 0, fmt.Errorf("dropping cached pages: %w", err)
	}
	return m.file.ReadAt(p, off)
}

func (r *direct) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file, r.buffer = nil, nil
	return err
}

func pread(file *os.File, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(file.Fd()), p, off)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// aligned reports whether the kernel can move p to or from off as it is.
func aligned(p []byte, off int64) bool {
	return len(p) > 0 && len(p)%directAlign == 0 && off%directAlign == 0 &&
		uintptr(unsafe.Pointer(&p[0]))%directAlign == 0
}

// alignedBuffer returns size bytes that start at a multiple of directAlign.
// The garbage collector does not move heap memory, so they stay there.
func alignedBuffer(size int) []byte {
	buffer := make([]byte, size+directAlign)
	skip := directAlign - int(uintptr(unsafe.Pointer(&buffer[0]))%directAlign)
	return buffer[skip : skip+size : skip+size]
}
