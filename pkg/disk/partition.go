package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoPartition is matched by the error of a label that no partition has.
var ErrNoPartition = errors.New("no partition has this name")

// AmbiguousError says that several disks carry a label and none of them is
// the one that the system runs from.
type AmbiguousError struct {
	Label      string
	Candidates []string // device paths, sorted
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("several partitions are named %q, and which one is meant is not clear: %s; "+
		"detach the disk that does not belong here, or name the device in the configuration",
		e.Label, strings.Join(e.Candidates, ", "))
}

// FindPartition returns the path below /dev of the partition with this GPT
// name. Where several disks carry the name (a disk of another machine is
// attached), the one on the disk of the root file system is meant.
//
// The names come from the kernel (PARTNAME in /sys/class/block/*/uevent), so
// they are there before udev has run. It returns [ErrNoPartition], or an
// [*AmbiguousError] naming all candidates.
func FindPartition(label string) (string, error) {
	number, err := rootNumber("/")
	if err != nil {
		return "", err
	}
	return partitions{sys: "/sys", root: number}.find(label)
}

// RootDevice returns the path below /dev of the block device that holds the
// root file system. It returns an error if "/" is on none, as in a container
// or on an overlay.
func RootDevice() (string, error) {
	number, err := rootNumber("/")
	if err != nil {
		return "", err
	}
	node := filepath.Join("/sys/dev/block", number.String())
	name := ueventValue(node, "DEVNAME")
	if name == "" {
		return "", fmt.Errorf("finding the root device: the root file system (device %s) is on no block device", number)
	}
	return "/dev/" + name, nil
}

// SameAsRoot reports whether path is the block device that holds the root
// file system: the running slot, which nobody may write. For a plain file it
// is false.
func SameAsRoot(path string) (bool, error) {
	number, err := rootNumber("/")
	if err != nil {
		return false, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return false, fmt.Errorf("comparing with the running slot: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	isBlock := stat.Mode&unix.S_IFMT == unix.S_IFBLK
	return isBlock && deviceNumber(stat.Rdev) == number, nil
}

// deviceNumber is a dev_t.
type deviceNumber uint64

func (n deviceNumber) String() string {
	return fmt.Sprintf("%d:%d", unix.Major(uint64(n)), unix.Minor(uint64(n)))
}

// rootNumber returns the device of the file system that holds path.
func rootNumber(path string) (deviceNumber, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("finding the root device: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("finding the root device: no device number")
	}
	return deviceNumber(stat.Dev), nil
}

// partitions finds partitions in a sysfs tree.
type partitions struct {
	sys  string
	root deviceNumber
}

func (p partitions) find(label string) (string, error) {
	if label == "" {
		return "", fmt.Errorf("finding partition %q: %w", label, ErrNoPartition)
	}
	dirs, err := filepath.Glob(filepath.Join(p.sys, "class/block/*"))
	if err != nil {
		return "", fmt.Errorf("finding partition %q: %w", label, err)
	}
	var all, onRoot []string
	rootDisk := p.rootDisk()
	for _, dir := range dirs {
		if ueventValue(dir, "PARTNAME") != label {
			continue
		}
		path := "/dev/" + ueventValue(dir, "DEVNAME")
		all = append(all, path)
		if rootDisk != "" && diskOf(dir) == rootDisk {
			onRoot = append(onRoot, path)
		}
	}
	slices.Sort(all)
	switch {
	case len(onRoot) == 1:
		return onRoot[0], nil
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return "", fmt.Errorf("finding partition %q in %s/class/block: %w", label, p.sys, ErrNoPartition)
	}
	return "", &AmbiguousError{Label: label, Candidates: all}
}

// rootDisk returns the sysfs folder of the disk that holds the root file
// system, or "" if it is on no block device.
func (p partitions) rootDisk() string {
	return diskOf(filepath.Join(p.sys, "dev/block", p.root.String()))
}

// diskOf returns the resolved sysfs folder of the disk that a block device is
// a partition of, or of the device itself if it is not a partition.
func diskOf(sysDir string) string {
	resolved, err := filepath.EvalSymlinks(sysDir)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(resolved, "partition")); err == nil {
		return filepath.Dir(resolved)
	}
	return resolved
}
