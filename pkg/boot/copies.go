package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// What may be wrong with a copy, besides fs.ErrNotExist, grubenv.ErrSignature
// and errors of reading. Found with errors.Is in the Problems of a Load.
var (
	// ErrSize: the file is not 1024 bytes long. GRUB reads it nevertheless, and so
	// does Load.
	ErrSize = errors.New("not 1024 bytes long")
	// ErrValue: a variable is missing or has a value that has no meaning.
	ErrValue = errors.New("unknown value")
	// ErrTorn: the numbers at the two ends of the variables differ.
	ErrTorn = errors.New("only a part of the last write arrived")
	// ErrReadBack: the medium took a write without an error and lost it.
	ErrReadBack = errors.New("the medium does not hold what was written")
	// ErrFormat: the copy has the format of an earlier release, or of the system
	// before osctl, which GRUB and Load read as what it meant.
	ErrFormat = errors.New("written in an older format")
	// ErrOlder: the copy is whole, but it is not the one that counts.
	ErrOlder = errors.New("older than the other copy")
)

// Problem is what is wrong with one copy.
type Problem struct {
	// Path is the file of the copy.
	Path string
	// Err is one of the errors above.
	Err error
}

// String names the file and what is wrong with it.
func (p Problem) String() string { return fmt.Sprintf("%s: %v", p.Path, p.Err) }

// maxFile bounds what is read of a copy, in bytes. A file this long is damaged,
// but GRUB would still use what it finds in it.
const maxFile = 1 << 20

// medium is a copy that is opened for writing: *envFile, or one that fails in a
// test.
type medium interface {
	io.WriterAt
	io.Closer
	// ReadBack returns the whole file after everything written reached the
	// medium, and as the medium has it.
	ReadBack() ([]byte, error)
}

// envFile is a copy on a file system.
type envFile struct{ *os.File }

// openFile opens a copy for writing in place: with O_TRUNC, or by a rename, a cut
// would leave GRUB an empty file or none.
func openFile(path string) (medium, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DSYNC, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > grubenv.Size {
		// What follows the block is no padding of ours, and GRUB would read it.
		err = f.Truncate(grubenv.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &envFile{f}, nil
}

// ReadBack drops the pages that were just written, so that the read asks the
// medium; a file system without a medium has nothing to drop.
func (f *envFile) ReadBack() ([]byte, error) {
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, fmt.Errorf("dropping cached pages of %s: %w", f.Name(), err)
	}
	return io.ReadAll(io.NewSectionReader(f, 0, maxFile))
}

// reading is what a copy was found to hold.
type reading struct {
	record record
	err    error // no valid record
	flaw   error // ErrSize or ErrFormat beside a valid record
}

func read(path string) reading {
	f, err := os.Open(path)
	if err != nil {
		return reading{err: err}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return reading{err: err}
	}
	block, err := grubenv.Parse(data)
	if err != nil {
		return reading{err: err}
	}
	rec, err := decode(block)
	if err != nil {
		return reading{err: err}
	}
	if len(data) != grubenv.Size {
		return reading{record: rec, flaw: fmt.Errorf("%w but %d", ErrSize, len(data))}
	}
	if outdated(block) {
		return reading{record: rec, flaw: ErrFormat}
	}
	return reading{record: rec}
}

// overwrite writes the block at once and proves that the medium has it. The second
// sector never changes and is left alone where it is right: what is not written, a
// cut cannot destroy, and GRUB saves nothing to a copy without its padding.
func overwrite(m medium, block []byte) error {
	changed := block
	if old, err := m.ReadBack(); err == nil && len(old) == len(block) && bytes.Equal(old[grubenv.Sector:], block[grubenv.Sector:]) {
		changed = block[:grubenv.Sector]
	}
	if _, err := m.WriteAt(changed, 0); err != nil {
		return err
	}
	got, err := m.ReadBack()
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if !bytes.Equal(got, block) {
		return ErrReadBack
	}
	return nil
}

// InitialBlock is the 1024 bytes of a copy on a newly installed machine: slot A,
// committed, with all its tries, sequence number 1; slot B is empty.
func InitialBlock() ([]byte, error) {
	return record{1, whole(device.SlotA, false)}.encode()
}

// Create makes one copy with the content of InitialBlock, and its directory. It
// fails if the file exists. For the installation.
func Create(path string) error {
	block, err := InitialBlock()
	if err != nil {
		return err
	}
	return create(path, block)
}

func create(path string, block []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("creating boot state: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_DSYNC, 0o600)
	if err != nil {
		return fmt.Errorf("creating boot state: %w", err)
	}
	_, err = f.Write(block)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close(), syncDir(dir), syncDir(filepath.Dir(dir))); err != nil {
		return fmt.Errorf("creating boot state: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
