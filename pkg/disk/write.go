package disk

import (
	"errors"

	"golang.org/x/sys/unix"
)

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
