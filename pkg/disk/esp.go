package disk

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrReadBack is matched when the medium gave other bytes than were written.
var ErrReadBack = errors.New("the medium does not hold what was written to it")

// File is a file to be put into a new file system.
type File struct {
	// Path is slash-separated and relative to the root, such as
	// "EFI/BOOT/grub.cfg". Every part is an 8.3 name in one case.
	Path    string
	Content []byte
}

// WriteESP makes d a FAT32 file system that holds the files; folders are
// created as needed. Every file is one contiguous run that starts on a block
// of 4096 bytes and shares no such block with anything else, so that boot
// loader and osctl can write a file in place.
//
// The file system is written, synced, and compared in full with what the
// medium gives back ([ErrReadBack]). Its first sector is zeroed before and
// written after everything else, so a cut leaves no file system rather than a
// half one. Parts that hold the wanted bytes already are not written.
func WriteESP(d *Device, files []File) error {
	content, err := newFAT(d.size, d.off, files)
	if err != nil {
		return fmt.Errorf("making ESP of %s: %w", d.name, err)
	}
	boot := make([]byte, SectorSize)
	if err := writeSynced(d, boot); err != nil {
		return err
	}
	if err := content.writeTo(d, SectorSize); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	content.fill(boot, 0)
	if err := writeSynced(d, boot); err != nil {
		return err
	}
	return content.compare(d)
}

// writeSynced writes the start of a device durably.
func writeSynced(d *Device, p []byte) error {
	if _, err := d.WriteAt(p, 0); err != nil {
		return err
	}
	return d.Sync()
}

// writeTo writes everything from off on to d, except what d holds already:
// zeroes on a sparse file stay holes.
func (m *image) writeTo(d *Device, off int64) error {
	want, have := make([]byte, MiB), make([]byte, MiB)
	for off < m.size {
		n := min(MiB-off%MiB, m.size-off)
		m.fill(want[:n], off)
		if _, err := d.ReadAt(have[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(want[:n], have[:n]) {
			if _, err := d.WriteAt(want[:n], off); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

// compare reads all of d back from the medium.
func (m *image) compare(d *Device) error {
	want, have := make([]byte, MiB), make([]byte, MiB)
	for off := int64(0); off < m.size; off += MiB {
		n := min(MiB, m.size-off)
		m.fill(want[:n], off)
		if _, err := d.ReadBackAt(have[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(want[:n], have[:n]) {
			return fmt.Errorf("comparing %s at %d: %w", d.name, off, ErrReadBack)
		}
	}
	return nil
}
