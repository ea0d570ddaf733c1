package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrBusy is returned by Lock while another process holds the lock.
var ErrBusy = errors.New("another osctl is changing this machine")

// Held is a lock that is held: it keeps every other change of this machine's slots
// and boot state out.
type Held struct{ file *os.File }

// Lock takes the lock file at path, which it creates with its directory if
// need be; it does not wait. It fails with ErrBusy, and then names the holder if
// that is known. The kernel drops the lock when its holder dies, however it dies,
// so the file that stays behind means nothing.
func Lock(path string) (*Held, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = busy(f)
	}
	if err == nil {
		err = name(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return &Held{f}, nil
}

// Release lets go of the lock. The file stays: to remove it would let two
// processes lock two files of one name.
func (h *Held) Release() error { return h.file.Close() }

// name leaves the process id of the holder for the message of the next one.
func name(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// busy adds the holder to ErrBusy. The holder may not have named itself yet.
func busy(f *os.File) error {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return ErrBusy
	}
	return fmt.Errorf("%w: process %d", ErrBusy, pid)
}
