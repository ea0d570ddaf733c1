package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnfit is matched for a device that cannot become the disk of a machine,
// whatever is on it.
var ErrUnfit = errors.New("cannot be the disk of a machine")

// CreateFile creates the plain file path with size bytes, all zero and
// sparse, and opens it like [Open]. It returns fs.ErrExist if there is
// something at path.
func CreateFile(path string, size int64) (*Device, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("creating disk file: %w", err)
	}
	err = file.Truncate(size)
	if err != nil {
		err = fmt.Errorf("creating disk file of %d bytes: %w", size, err)
	}
	var d *Device
	if err == nil {
		d, err = newDevice(file, path, false, true)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(path))
	}
	return d, nil
}

// CheckWholeDisk returns [ErrUnfit] if d is a partition, or a disk whose
// sectors are not of [SectorSize] bytes. A plain file is always fit.
func CheckWholeDisk(d *Device) error {
	if !d.medium.block {
		return nil
	}
	info, err := d.medium.file.Stat()
	if err != nil {
		return fmt.Errorf("examining %s: %w", d.name, err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		node := filepath.Join("/sys/dev/block", deviceNumber(stat.Rdev).String())
		if number := readLine(filepath.Join(node, "partition")); number != "" {
			disk := filepath.Base(diskOf(node))
			return fmt.Errorf("%s %w: it is partition %s of /dev/%s; name the whole disk", d.name, ErrUnfit, number, disk)
		}
	}
	size, err := unix.IoctlGetInt(int(d.medium.file.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("reading sector size of %s: %w", d.name, err)
	}
	if size != SectorSize {
		return fmt.Errorf("%s %w: its sectors have %d bytes and must have %d; "+
			"many NVMe disks can be switched with nvme format --lbaf", d.name, ErrUnfit, size, SectorSize)
	}
	return nil
}

// Contents says in a few words what is on the disk d, or "" if its first and
// last MiB are zero, as on a new disk and after [Erase].
func Contents(d *Device) (string, error) {
	if d.Size() < 2*MiB {
		return "", nil // too small for anything, as the caller finds out
	}
	first, last := make([]byte, MiB), make([]byte, MiB)
	if _, err := d.ReadAt(first, 0); err != nil {
		return "", err
	}
	if _, err := d.ReadAt(last, d.Size()-MiB); err != nil {
		return "", err
	}
	backup := bytes.HasPrefix(last[MiB-SectorSize:], []byte("EFI PART"))
	switch {
	case bytes.HasPrefix(first[SectorSize:], []byte("EFI PART")), backup:
		return describeTable(d), nil
	case bytes.HasPrefix(first, []byte("hsqs")):
		return "a squashfs file system", nil
	case binary.LittleEndian.Uint16(first[1024+56:]) == 0xEF53:
		return "an ext2, ext3 or ext4 file system", nil
	case first[510] == 0x55 && first[511] == 0xAA:
		return "an MBR partition table or a boot sector", nil
	case len(bytes.Trim(first, "\x00")) > 0, len(bytes.Trim(last, "\x00")) > 0:
		return "data of an unknown kind", nil
	}
	return "", nil
}

func describeTable(d *Device) string {
	partitions, err := ReadTable(d)
	if err != nil {
		return "a damaged GPT partition table"
	}
	var names []string
	for _, p := range partitions {
		name := p.Label
		if name == "" {
			name = "(no name)"
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "an empty GPT partition table"
	}
	return "a GPT partition table with " + strings.Join(names, ", ")
}

// Erase makes the disk d blank to firmware and kernel: it zeroes the first
// and last MiB, where partition tables are, and syncs.
func Erase(d *Device) error {
	zero := make([]byte, min(MiB, d.Size()))
	for _, off := range []int64{0, d.Size() - int64(len(zero))} {
		if _, err := d.WriteAt(zero, off); err != nil {
			return err
		}
	}
	return d.Sync()
}

// rescan makes the kernel read the partition table of a block device again.
// EBUSY is not an error: the table is on the disk, and counts from the next
// boot on.
func (d *Device) rescan() error {
	if !d.medium.block {
		return nil
	}
	err := unix.IoctlSetInt(int(d.medium.file.Fd()), unix.BLKRRPART, 0)
	// EINVAL: a device that has no partitions, such as a loop device without
	// partition scanning.
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("making the kernel read the partition table of %s: %w", d.name, err)
	}
	return nil
}

// WriteExt4 makes the section d an ext4 file system named label that holds
// the tree below the folder seed, with everything in it owned by root. It
// runs mkfs.ext4 of e2fsprogs, which syncs what it wrote.
//
// mkfs.ext4 wants the device for itself, so the hold on a block device is
// given up and taken again; the lock on a file stays. d and its relatives
// must not be used meanwhile. It returns exec.ErrNotFound if there is no
// mkfs.ext4.
func WriteExt4(ctx context.Context, d *Device, label, seed string) error {
	program, err := FindProgram("mkfs.ext4", "e2fsprogs")
	if err != nil {
		return fmt.Errorf("formatting %s: %w", d.name, err)
	}
	const blockSize = 4096
	args := []string{
		"-q", "-F", "-b", strconv.Itoa(blockSize), "-m", "1", "-L", label, "-d", seed,
		"-E", fmt.Sprintf("offset=%d,root_owner=0:0", d.off),
		d.medium.file.Name(), strconv.FormatInt(d.size/blockSize, 10),
	}
	return d.medium.lend(func() error {
		command := exec.CommandContext(ctx, program, args...)
		command.Env = append(os.Environ(), "LC_ALL=C")
		// A killed osctl takes mkfs.ext4 along. The kernel watches the thread
		// that started it, not the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
			// In a user namespace the files of an ordinary user are root's.
			command.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
			command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
		}
		output, err := command.CombinedOutput()
		if err != nil {
			return fmt.Errorf("formatting %s: mkfs.ext4: %w: %s", d.name, err, bytes.TrimSpace(output))
		}
		return nil
	})
}

// FindProgram looks for a program in the search path, and where Debian hides
// administrators' programs from ordinary users. The error says in which Debian
// package it is, and is exec.ErrNotFound.
func FindProgram(name, debianPackage string) (string, error) {
	found, err := exec.LookPath(name)
	if err == nil {
		return found, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%w; install the package %s", err, debianPackage)
}

// lend gives up the exclusive hold on a block device while use runs.
func (m *medium) lend(use func() error) error {
	if !m.block {
		return use()
	}
	path := m.file.Name()
	before, err := m.file.Stat()
	if err != nil {
		return fmt.Errorf("lending %s: %w", path, err)
	}
	if err := errors.Join(m.direct.close(), m.file.Close()); err != nil {
		return fmt.Errorf("lending %s: %w", path, err)
	}
	useErr := use()
	again, err := Open(path)
	if err != nil {
		return errors.Join(useErr, fmt.Errorf("taking %s back: %w", path, err))
	}
	m.file = again.medium.file
	after, err := m.file.Stat()
	if err != nil {
		return errors.Join(useErr, fmt.Errorf("taking %s back: %w", path, err))
	}
	if !sameDevice(before, after) {
		return errors.Join(useErr, fmt.Errorf("taking %s back: it is another device now", path))
	}
	return useErr
}

func sameDevice(a, b fs.FileInfo) bool {
	x, ok := a.Sys().(*syscall.Stat_t)
	y, also := b.Sys().(*syscall.Stat_t)
	return ok && also && x.Rdev == y.Rdev
}
