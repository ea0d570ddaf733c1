package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// The GPT names of the partitions of a machine, in the order on the disk.
const (
	LabelBoot   = "boot"
	LabelSlotA  = "rootfsA"
	LabelSlotB  = "rootfsB"
	LabelRescue = "rescue"
	LabelData   = "data"
)

const (
	// MiB is the alignment of every partition, in bytes: the common multiple
	// of what erase blocks and RAID stripes ask for, and of what parted,
	// sfdisk and Windows use.
	MiB = 1 << 20
	// SectorSize is the only logical sector size that is supported, in bytes.
	// The boot state relies on it: an env block of 1024 bytes is two sectors,
	// of which only the first one changes.
	SectorSize = 512
	// minESP leaves more than the 65525 clusters of 512 bytes from which on a
	// FAT is FAT32 (Microsoft, FAT32 File System Specification 1.03), plus
	// its two tables.
	minESP = 36 * MiB
	// minData is the smallest data partition that is worth formatting.
	minData = 64 * MiB
)

// ErrTable is matched when the partition table that came back from the medium
// is not the one that was written.
var ErrTable = errors.New("the partition table on the medium is not the one that was written")

// Layout has the sizes of the partitions that do not grow, in bytes, each a
// multiple of [MiB]. The data partition takes the rest of the disk.
type Layout struct {
	ESP    int64
	Slot   int64 // each of the two
	Rescue int64
}

// DefaultLayout is the layout of a machine of which nothing else is known: an
// ESP of 64 MiB, slots of 2 GiB, a rescue partition of 256 MiB.
func DefaultLayout() Layout {
	return Layout{ESP: 64 * MiB, Slot: 2048 * MiB, Rescue: 256 * MiB}
}

// MinDiskSize is the size in bytes of the smallest disk that holds the layout.
func (l Layout) MinDiskSize() int64 {
	// One MiB each for the GPT at the start and its backup at the end.
	return MiB + l.ESP + 2*l.Slot + l.Rescue + minData + MiB
}

// TooSmallError says that a disk cannot hold a layout.
type TooSmallError struct {
	Have, Want int64 // bytes
	Layout     Layout
}

func (e *TooSmallError) Error() string {
	l := e.Layout
	return fmt.Sprintf("the disk has %d MiB and at least %d MiB are needed "+
		"(boot %d, two slots of %d, rescue %d, data at least %d)",
		e.Have/MiB, (e.Want+MiB-1)/MiB, l.ESP/MiB, l.Slot/MiB, l.Rescue/MiB, int64(minData/MiB))
}

// Partition is the place of a partition on a disk, in bytes.
type Partition struct {
	Label  string
	Offset int64
	Size   int64
}

// Place computes where the partitions go on a disk of size bytes, in the
// order boot, rootfsA, rootfsB, rescue, data. It returns a [*TooSmallError]
// for a disk below [Layout.MinDiskSize], and an error for sizes that are no
// multiple of [MiB] or an ESP that is too small for FAT32.
func (l Layout) Place(size int64) ([]Partition, error) {
	partitions := []Partition{
		{Label: LabelBoot, Size: l.ESP},
		{Label: LabelSlotA, Size: l.Slot},
		{Label: LabelSlotB, Size: l.Slot},
		{Label: LabelRescue, Size: l.Rescue},
	}
	for _, p := range partitions {
		if p.Size <= 0 || p.Size%MiB != 0 {
			return nil, fmt.Errorf("placing partitions: the size of %s is %d bytes, and must be a multiple of 1 MiB", p.Label, p.Size)
		}
	}
	if l.ESP < minESP {
		return nil, fmt.Errorf("placing partitions: the size of %s is %d MiB, and FAT32 needs at least %d MiB",
			LabelBoot, l.ESP/MiB, int64(minESP/MiB))
	}
	if want := l.MinDiskSize(); size < want {
		return nil, &TooSmallError{Have: size, Want: want, Layout: l}
	}
	offset := int64(MiB)
	for i := range partitions {
		partitions[i].Offset = offset
		offset += partitions[i].Size
	}
	rest := (size - MiB - offset) / MiB * MiB
	return append(partitions, Partition{Label: LabelData, Offset: offset, Size: rest}), nil
}

// WriteTable writes a GPT with these partitions and random GUIDs to d, which
// must be a whole disk: the protective MBR and the backup first, the primary
// header last, each synced before the next. Then it reads the table back from
// the medium and compares; [ErrTable] if it differs. [LabelBoot] gets the type
// of an EFI system partition, the others that of Linux data: no tool mounts
// those by itself.
func WriteTable(d *Device, partitions []Partition) error {
	table := &gpt.Table{LogicalSectorSize: SectorSize, PhysicalSectorSize: SectorSize, ProtectiveMBR: true}
	for i, p := range partitions {
		kind := gpt.LinuxFilesystem
		if p.Label == LabelBoot {
			kind = gpt.EFISystemPartition
		}
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: i + 1, Type: kind, Name: p.Label,
			Start: uint64(p.Offset / SectorSize), Size: uint64(p.Size),
		})
	}
	if err := table.Write(&stream{device: d}, d.Size()); err != nil {
		return fmt.Errorf("writing partition table of %s: %w", d.Name(), err)
	}
	if err := d.Sync(); err != nil {
		return err
	}
	back, err := ReadTable(d)
	if err != nil {
		return err
	}
	if !slices.Equal(back, partitions) {
		return fmt.Errorf("reading back %s: %w", d.Name(), ErrTable)
	}
	return d.rescan()
}

// ReadTable reads the partitions of the GPT on d from the medium, the backup
// if the primary is damaged.
func ReadTable(d *Device) ([]Partition, error) {
	table, err := gpt.Read(file.New(&stream{device: d, medium: true}, true), SectorSize, SectorSize)
	if err != nil {
		return nil, fmt.Errorf("reading partition table of %s: %w", d.Name(), err)
	}
	var partitions []Partition
	for _, p := range table.Partitions {
		if p.Type == gpt.Unused {
			continue
		}
		partitions = append(partitions, Partition{
			Label: p.Name, Offset: int64(p.Start) * SectorSize, Size: int64(p.End-p.Start+1) * SectorSize,
		})
	}
	return partitions, nil
}

// stream gives a device the position that go-diskfs asks its files to have.
type stream struct {
	device *Device
	medium bool // read from the medium, not through the page cache
	pos    int64
}

func (s *stream) Stat() (fs.FileInfo, error) { return s.device.medium.file.Stat() }
func (s *stream) Close() error               { return nil }
func (s *stream) Sync() error                { return s.device.Sync() }

func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	if s.medium {
		return s.device.ReadBackAt(p, off)
	}
	return s.device.ReadAt(p, off)
}

func (s *stream) WriteAt(p []byte, off int64) (int, error) { return s.device.WriteAt(p, off) }

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.ReadAt(p, s.pos)
	s.pos += int64(n)
	return n, err
}

func (s *stream) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.device.Size()
	}
	if offset < 0 {
		return 0, fmt.Errorf("seeking to %d in %s: %w", offset, s.device.Name(), ErrRange)
	}
	s.pos = offset
	return offset, nil
}
