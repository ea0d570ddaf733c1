// Package install makes the disk of a new machine: partition table, ESP with
// the boot loader, the first image in slot A, and a seeded data partition. The
// target is a whole block device or a plain file, which QEMU and dd take alike.
//
// It refuses a disk that is in use, too small, a partition, of the wrong
// sector size or (unless told to overwrite) not blank, and finds all that out
// before it changes a byte. It does not know where the image comes from, what
// the ledger says or what an env block means: those come as a function and as
// bytes.
//
// The order of the writes is what makes a cut at any moment harmless:
//
//  1. The first and the last MiB are zeroed and synced: from here on no
//     firmware and no kernel finds anything on this disk.
//  2. The data partition is formatted with its first tree.
//  3. Slot A is written, synced and read back (by the caller's WriteSlot).
//  4. The rescue system is written, if there is one, as slot A was. The first
//     MiB of slot B, and of a rescue partition that stays empty, is zeroed, so
//     that no file system of an earlier life can be booted from there.
//  5. The ESP is written with the boot loader of the image in slot A and the
//     two env copies, synced and read back, its boot sector last.
//  6. The partition table is written, synced and read back: the backup first,
//     the primary header last.
//
// A disk with a partition table is therefore a complete one, and a disk that
// was cut before is blank: the same command again converges without being
// told to overwrite.
package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/progress"
)

// envSize is the size of GRUB's environment block, in bytes (GRUB manual,
// "The GRUB environment block").
const envSize = 1024

// Options says what to install where.
type Options struct {
	// Target is the path of a whole disk or of a plain file.
	Target string
	// Size is the size in bytes of the file to be created at Target. 0 means
	// that Target is there already.
	Size int64
	// Layout has the sizes of the partitions.
	Layout disk.Layout
	// Force allows to overwrite a disk that is not blank.
	Force bool
	// ImageSize is the size in bytes of the image that WriteSlot writes.
	ImageSize int64
	// WriteSlot writes the image to the slot, syncs it and proves it from the
	// medium.
	WriteSlot func(ctx context.Context, slot *disk.Device) error
	// RescueSize is the size in bytes of the image that WriteRescue writes to the
	// rescue partition, as WriteSlot does. Without WriteRescue that stays empty.
	RescueSize  int64
	WriteRescue func(ctx context.Context, partition *disk.Device) error
	// EnvA and EnvB are the first content of the two env copies, 1024 bytes
	// each. EnvA is also that of the file in which GRUB counts when both are lost.
	EnvA, EnvB []byte
	// Ledger is the first content of osctl/ledger.json on the data partition.
	Ledger []byte
	// Records are further files of the folder osctl on the data partition, by
	// their slash-separated names in it.
	Records map[string][]byte
	// Etc is a folder with the files that this machine's /etc has beyond
	// those of the image, or "". Owners become root, modes stay.
	Etc string
	// Progress may be nil.
	Progress progress.Sink
}

// NotBlankError says that a disk holds something and overwriting it was not
// allowed.
type NotBlankError struct {
	Target   string
	Contents string // such as "a squashfs file system"
}

func (e *NotBlankError) Error() string {
	return fmt.Sprintf("%s is not blank: it holds %s, and all of it would be lost", e.Target, e.Contents)
}

// ImageTooLargeError says that the image does not fit into a slot, or the rescue
// image into its partition.
type ImageTooLargeError struct {
	Image, Slot int64 // bytes
	Rescue      bool
}

func (e *ImageTooLargeError) Error() string {
	if e.Rescue {
		return fmt.Sprintf("the rescue image has %d MiB and its partition has %d MiB",
			(e.Image+disk.MiB-1)/disk.MiB, e.Slot/disk.MiB)
	}
	return fmt.Sprintf("the image has %d MiB and the slots have %d MiB; make the slots larger",
		(e.Image+disk.MiB-1)/disk.MiB, e.Slot/disk.MiB)
}

// Install installs and returns the partitions. Its errors, beyond those of
// reading and writing: [*NotBlankError], [*ImageTooLargeError],
// [*BadImageError], [*disk.BusyError], [*disk.TooSmallError], disk.ErrUnfit,
// and fs.ErrNotExist for a missing target. A file that it has created is
// removed again if it fails.
func Install(ctx context.Context, opts Options) ([]disk.Partition, error) {
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("installing to %s: %w", opts.Target, err)
	}
	seed, err := newSeed(opts)
	if err != nil {
		return nil, fmt.Errorf("preparing the data partition: %w", err)
	}
	defer func() { _ = os.RemoveAll(seed) }() // a temporary folder

	target, created, err := open(opts)
	if err != nil {
		return nil, fmt.Errorf("installing: %w", err)
	}
	partitions, err := install(ctx, target, seed, opts)
	err = errors.Join(err, target.Close())
	if err != nil && created {
		err = errors.Join(err, os.Remove(opts.Target))
	}
	if err != nil {
		return nil, fmt.Errorf("installing to %s: %w", opts.Target, err)
	}
	return partitions, nil
}

// check finds what can be found without the disk.
func (o Options) check() error {
	switch {
	case o.WriteSlot == nil || o.ImageSize <= 0:
		return errors.New("no image")
	case len(o.EnvA) != envSize || len(o.EnvB) != envSize:
		return fmt.Errorf("the env copies have %d and %d bytes, and must have %d", len(o.EnvA), len(o.EnvB), envSize)
	case len(o.Ledger) == 0:
		return errors.New("no ledger")
	case o.Size < 0:
		return fmt.Errorf("the size is %d bytes", o.Size)
	case o.ImageSize > o.Layout.Slot:
		return &ImageTooLargeError{Image: o.ImageSize, Slot: o.Layout.Slot}
	case o.WriteRescue != nil && o.RescueSize > o.Layout.Rescue:
		return &ImageTooLargeError{Image: o.RescueSize, Slot: o.Layout.Rescue, Rescue: true}
	}
	for _, program := range []string{"mkfs.ext4", "debugfs"} {
		if _, err := disk.FindProgram(program, "e2fsprogs"); err != nil {
			return err
		}
	}
	return nil
}

// open opens the target, and creates it if it is a new file.
func open(opts Options) (target *disk.Device, created bool, err error) {
	info, err := os.Stat(opts.Target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if opts.Size == 0 {
			return nil, false, fmt.Errorf("there is no %s; a new file needs a size: %w", opts.Target, fs.ErrNotExist)
		}
		if isDevicePath(opts.Target) {
			return nil, false, fmt.Errorf("there is no device %s: %w", opts.Target, fs.ErrNotExist)
		}
		if _, err := opts.Layout.Place(opts.Size); err != nil {
			return nil, false, err
		}
		target, err := disk.CreateFile(opts.Target, opts.Size)
		return target, true, err
	case err != nil:
		return nil, false, err
	case opts.Size != 0 && info.Mode().IsRegular() && info.Size() != opts.Size:
		return nil, false, fmt.Errorf("%s has %d bytes and a disk of %d was asked for; remove the file, or do not give a size",
			opts.Target, info.Size(), opts.Size)
	case opts.Size != 0 && !info.Mode().IsRegular():
		return nil, false, fmt.Errorf("%s is not a plain file, so it has the size it has; do not give one", opts.Target)
	}
	target, err = disk.Open(opts.Target)
	return target, false, err
}

// isDevicePath reports whether a missing file there would be a mistyped
// device rather than a wanted disk file.
func isDevicePath(path string) bool {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return true
	}
	return strings.HasPrefix(absolute, "/dev/") && !strings.HasPrefix(absolute, "/dev/shm/")
}

// install does all that is done with the opened target.
func install(ctx context.Context, target *disk.Device, seed string, opts Options) ([]disk.Partition, error) {
	if err := disk.CheckWholeDisk(target); err != nil {
		return nil, err
	}
	partitions, err := opts.Layout.Place(target.Size())
	if err != nil {
		return nil, err
	}
	if !opts.Force {
		contents, err := disk.Contents(target)
		if err != nil {
			return nil, err
		}
		if contents != "" {
			return nil, &NotBlankError{Target: opts.Target, Contents: contents}
		}
	}
	sections := make(map[string]*disk.Device, len(partitions))
	for _, p := range partitions {
		if sections[p.Label], err = target.Section(p.Offset, p.Size); err != nil {
			return nil, err
		}
	}
	if err := disk.Erase(target); err != nil {
		return nil, fmt.Errorf("erasing: %w", err)
	}
	if err := fill(ctx, sections, seed, opts); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := disk.WriteTable(target, partitions); err != nil {
		return nil, err
	}
	return partitions, nil
}

// fill writes everything but the partition table.
func fill(ctx context.Context, sections map[string]*disk.Device, seed string, opts Options) error {
	opts.Progress.Say(progress.Write, "formatting the data partition")
	if err := disk.WriteExt4(ctx, sections[disk.LabelData], disk.LabelData, seed); err != nil {
		return err
	}
	slot := sections[disk.LabelSlotA]
	if err := opts.WriteSlot(ctx, slot); err != nil {
		return fmt.Errorf("writing slot A: %w", err)
	}
	empty := []string{disk.LabelSlotB}
	if opts.WriteRescue == nil {
		empty = append(empty, disk.LabelRescue)
	} else if err := opts.WriteRescue(ctx, sections[disk.LabelRescue]); err != nil {
		return fmt.Errorf("writing the rescue partition: %w", err)
	}
	for _, label := range empty {
		if _, err := sections[label].WriteAt(make([]byte, disk.MiB), 0); err != nil {
			return fmt.Errorf("clearing %s: %w", label, err)
		}
	}
	files, err := bootFiles(ctx, slot)
	if err != nil {
		return err
	}
	opts.Progress.Say(progress.Write, "writing the boot partition")
	files = append(files,
		disk.File{Path: "osctl/a/grubenv", Content: opts.EnvA},
		disk.File{Path: "osctl/b/grubenv", Content: opts.EnvB},
		disk.File{Path: "osctl/lost/grubenv", Content: opts.EnvA},
	)
	// Its first sync makes the cleared partitions durable too.
	return disk.WriteESP(sections[disk.LabelBoot], files)
}
