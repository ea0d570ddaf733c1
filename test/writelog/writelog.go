// Package writelog reads the log that QEMU's driver blklogwrites keeps of every
// write of a machine to its disk, those of the firmware and of GRUB included, so
// that a test can go back to any instant of the machine's life.
//
// The format is that of Linux' dm-log-writes: a sector that describes the log, then
// for each request a sector that describes it and the data
// (Documentation/admin-guide/device-mapper/log-writes.rst and block/blklogwrites.c
// of QEMU 7.2).
package writelog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// SectorSize is the unit of a log, in bytes, and the most that a disk writes at
// once.
const SectorSize = 512

const (
	magic   = 0x6a736677736872
	version = 1
)

// The flags of an entry.
const (
	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
)

// Entry is one request to the disk.
type Entry struct {
	// Offset is where on the disk, in bytes.
	Offset int64
	// Data is what was written there; nil for a flush. What was discarded is
	// reported as zeros were written.
	Data []byte
	// Flush: all writes before this entry are on the medium.
	Flush bool
}

// End is the offset after the entry's last byte.
func (e Entry) End() int64 { return e.Offset + int64(len(e.Data)) }

// ErrFormat says that a file is no log of writes, or a damaged one.
var ErrFormat = errors.New("not a log of writes")

// Read calls use with each entry, in the order in which the disk completed them.
// data of an entry is valid during the call only.
func Read(path string, use func(Entry) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	in := bufio.NewReaderSize(f, 1<<20)
	count, err := readHead(in)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var buf []byte
	for n := range count {
		e, grown, err := readEntry(in, buf)
		if err != nil {
			return fmt.Errorf("%s: %w: entry %d of %d: %w", path, ErrFormat, n, count, err)
		}
		buf = grown
		if err := use(e); err != nil {
			return err
		}
	}
	return nil
}

// readHead returns the number of entries. What came after the last flush is not
// counted by QEMU, and could have been lost by a machine as well.
func readHead(in io.Reader) (uint64, error) {
	head := make([]byte, SectorSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(head[i*8:]) }
	if size := binary.LittleEndian.Uint32(head[24:]); word(0) != magic || word(1) != version || size != SectorSize {
		return 0, fmt.Errorf("%w: magic %#x, version %d, sectors of %d bytes", ErrFormat, word(0), word(1), size)
	}
	return word(2), nil
}

// maxData bounds one request, in bytes; virtio's are far smaller.
const maxData = 1 << 30

func readEntry(in io.Reader, buf []byte) (Entry, []byte, error) {
	var head [SectorSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return Entry{}, buf, err
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(head[i*8:]) }
	sector, length, flags := word(0), word(1), word(2)
	if sector > 1<<40 || length > maxData/SectorSize || flags&^(flagFlush|flagFUA|flagDiscard) != 0 {
		return Entry{}, buf, fmt.Errorf("sector %d, %d sectors, flags %#x", sector, length, flags)
	}
	e := Entry{Offset: int64(sector) * SectorSize, Flush: flags&flagFlush != 0}
	size := int(length) * SectorSize
	if size == 0 {
		return e, buf, nil
	}
	if size > cap(buf) {
		buf = make([]byte, size)
	}
	e.Data = buf[:size]
	if flags&flagDiscard != 0 {
		clear(e.Data)
		return e, buf, nil
	}
	_, err := io.ReadFull(in, e.Data)
	return e, buf, err
}
