package artifact

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/osimage"
)

// ErrRootfs says that the input is no root file system that osctl can use.
var ErrRootfs = errors.New("not a usable root file system")

// rootfs is a raw image, ready to be packed, and what is known of it.
type rootfs struct {
	path       string
	filesystem string
	created    time.Time
	packages   []osimage.Package
	epoch      uint32
}

// prepare makes a raw image of whatever the user named.
func prepare(ctx context.Context, o Options, work string) (rootfs, error) {
	info, err := os.Stat(o.Rootfs)
	if err != nil {
		return rootfs{}, err
	}
	if info.IsDir() {
		return fromDirectory(ctx, o, o.Rootfs, work)
	}
	if !info.Mode().IsRegular() {
		return rootfs{}, fmt.Errorf("%w: neither a file nor a directory", ErrRootfs)
	}
	r, err := readyImage(o.Rootfs)
	if err == nil {
		if o.Size != 0 {
			return rootfs{}, &OptionError{fmt.Errorf("the image of %s keeps its size; a size is for a directory or a tar", r.filesystem)}
		}
		if info.Size()%512 != 0 {
			return rootfs{}, fmt.Errorf("%w: its size %d is not a multiple of 512 bytes: the file was cut off", ErrRootfs, info.Size())
		}
		if !o.Created.IsZero() {
			r.created = o.Created
		}
		r.epoch = o.Epoch // what a ready image says inside is not looked up
		return r, nil
	}
	if !errors.Is(err, ErrRootfs) {
		return rootfs{}, err
	}
	dir := filepath.Join(work, "tree")
	if err := untar(ctx, o.Rootfs, dir); err != nil {
		return rootfs{}, err
	}
	return fromDirectory(ctx, o, dir, work)
}

// readyImage recognises ext4 and squashfs by their superblocks and takes the
// time of the file system's making from there: s_mkfs_time of ext4 (offset 0x108
// of the superblock at 1024), modification_time of squashfs (offset 8).
func readyImage(path string) (rootfs, error) {
	file, err := os.Open(path)
	if err != nil {
		return rootfs{}, err
	}
	defer file.Close() //nolint:errcheck // read only
	head := make([]byte, 2048)
	if _, err := io.ReadFull(file, head); err != nil {
		return rootfs{}, fmt.Errorf("%w: shorter than a superblock", ErrRootfs)
	}
	le := binary.LittleEndian
	switch super := head[1024:]; {
	case string(head[:4]) == "hsqs":
		return rootfs{path: path, filesystem: "squashfs", created: time.Unix(int64(le.Uint32(head[8:])), 0)}, nil
	// 0x53 0xEF is the magic of ext2, 3 and 4; only ext4 has extents (0x40).
	case le.Uint16(super[0x38:]) == 0xEF53 && le.Uint32(super[0x60:])&0x40 != 0:
		return rootfs{path: path, filesystem: "ext4", created: time.Unix(int64(le.Uint32(super[0x108:])), 0)}, nil
	}
	return rootfs{}, fmt.Errorf("%w: neither ext4 nor squashfs", ErrRootfs)
}

// untar unpacks with tar(1), which knows every compression and keeps owners,
// modes, extended attributes, devices and hard links.
func untar(ctx context.Context, archive, dir string) error {
	if os.Geteuid() != 0 {
		if _, err := run(ctx, nil, "tar", "--list", "--file", archive); err != nil {
			return noTar(err)
		}
		return fmt.Errorf("unpacking a tar needs root, or all files would belong to you; run as root, or pass a directory or an image")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	_, err := run(ctx, nil, "tar", "--extract", "--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*", "--file", archive, "--directory", dir)
	if err != nil {
		return noTar(err)
	}
	return nil
}

// noTar is what a file that tar does not understand is not.
func noTar(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	// tar goes on after the first line to say what follows from it.
	reason, _, _ := strings.Cut(err.Error(), "\n")
	return fmt.Errorf("%w: neither ext4, nor squashfs, nor a directory, nor a tar: %s", ErrRootfs, reason)
}

// fromDirectory makes an ext4 of a tree.
func fromDirectory(ctx context.Context, o Options, dir, work string) (rootfs, error) {
	if err := needFile(dir, o.Kernel, "--kernel"); err != nil {
		return rootfs{}, err
	}
	if o.Initrd != "" {
		if err := needFile(dir, o.Initrd, "--initrd"); err != nil {
			return rootfs{}, err
		}
	}
	t, err := scan(dir)
	if err != nil {
		return rootfs{}, err
	}
	created := o.Created
	if created.IsZero() {
		created = t.newest
	}
	packages, err := dpkgPackages(filepath.Join(dir, "var/lib/dpkg/status"))
	if err != nil {
		return rootfs{}, err
	}
	epoch, err := sameEpoch(o.Epoch, dir)
	if err != nil {
		return rootfs{}, err
	}
	path := filepath.Join(work, "rootfs.ext4")
	if err := t.makeExt4(ctx, path, o.Size, created); err != nil {
		return rootfs{}, err
	}
	return rootfs{path: path, filesystem: "ext4", created: created, packages: packages, epoch: epoch}, nil
}

// needFile checks that the tree has a file that GRUB will load. Links are
// followed inside the tree, as they will be on the machine.
func needFile(dir, name, flag string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	info, err := root.Stat(strings.TrimPrefix(name, "/"))
	if err != nil {
		return fmt.Errorf("%w: it has no %s (see %s): %w", ErrRootfs, name, flag, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a file (see %s)", ErrRootfs, name, flag)
	}
	return nil
}

// sameEpoch is the epoch of the release: the one that was asked for, or else what
// the tree's os-release says as OSCTL_EPOCH. The two may not differ: a machine that
// lost its state takes the one in the tree for its floor.
func sameEpoch(asked uint32, dir string) (uint32, error) {
	r, err := device.ReadRelease(filepath.Join(dir, "usr/lib/os-release"))
	if errors.Is(err, fs.ErrNotExist) {
		return asked, nil
	}
	if err != nil {
		return 0, err
	}
	if asked != 0 && r.Epoch != 0 && asked != r.Epoch {
		return 0, fmt.Errorf("%w: its usr/lib/os-release says OSCTL_EPOCH=%d, and --epoch is %d", ErrRootfs, r.Epoch, asked)
	}
	return max(asked, r.Epoch), nil
}

// dpkgPackages lists what is installed according to dpkg's status file; a tree
// without one has no list.
func dpkgPackages(path string) ([]osimage.Package, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []osimage.Package
	for paragraph := range strings.SplitSeq(string(data), "\n\n") {
		fields := map[string]string{}
		for line := range strings.SplitSeq(paragraph, "\n") {
			if name, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
				fields[name] = value
			}
		}
		if strings.HasSuffix(fields["Status"], " installed") {
			list = append(list, osimage.Package{Name: fields["Package"], Version: fields["Version"]})
		}
	}
	return list, nil
}

// run executes a tool and returns what it said on standard error; a failure
// carries the end of that.
func run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	// A fixed locale, for a fixed sorting order of directories.
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	text := strings.TrimSpace(stderr.String())
	if err == nil {
		return text, nil
	}
	if len(text) > 500 {
		text = "…" + text[len(text)-500:]
	}
	return "", fmt.Errorf("%s: %w: %s", name, err, text)
}
