package install

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

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"

	"github.com/kapernikov/osctl/pkg/disk"
)

// bootFolder is where an image carries its boot loader, and maxBootFile the
// most that one file there may have, in bytes: all must fit on the ESP.
const (
	bootFolder  = "usr/lib/osctl/boot"
	maxBootFile = 16 << 20
)

// BadImageError says that the image in the slot is not one that boots a
// machine.
type BadImageError struct {
	File string // absolute path in the image, or "" for the whole
	Err  error
}

func (e *BadImageError) Error() string {
	what := "the image"
	if e.File != "" {
		what += "'s " + e.File
	}
	return fmt.Sprintf("%s cannot boot a machine: %v; it must be an ext4 or squashfs image with "+
		"BOOTX64.EFI and grub.cfg in /%s", what, e.Err, bootFolder)
}

func (e *BadImageError) Unwrap() error { return e.Err }

// bootFiles reads the boot loader out of the image in the slot, and gives it
// the places where firmware and boot loader look on an ESP.
func bootFiles(ctx context.Context, slot *disk.Device) ([]disk.File, error) {
	read, err := fileReader(slot)
	if err != nil {
		return nil, err
	}
	var files []disk.File
	for _, f := range []struct {
		name   string
		prefix string // what such a file starts with
	}{
		{"grub.cfg", ""},
		{"BOOTX64.EFI", "MZ"}, // a PE image, as UEFI requires
	} {
		path := bootFolder + "/" + f.name
		content, err := read(ctx, path)
		switch {
		case err != nil:
		case len(content) == 0:
			err = errors.New("it is empty")
		case len(content) > maxBootFile:
			err = fmt.Errorf("it has more than %d bytes", maxBootFile)
		case !bytes.HasPrefix(content, []byte(f.prefix)):
			err = errors.New("it is not an EFI program")
		}
		if err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, &BadImageError{File: "/" + path, Err: err}
		}
		files = append(files, disk.File{Path: "EFI/BOOT/" + f.name, Content: content})
	}
	return files, nil
}

// fileReader finds out what file system the slot holds.
func fileReader(slot *disk.Device) (func(context.Context, string) ([]byte, error), error) {
	head := make([]byte, 4096)
	if _, err := slot.ReadAt(head, 0); err != nil {
		return nil, err
	}
	const magicOffset, magic = 1024 + 56, 0xEF53 // ext4's superblock, s_magic
	switch {
	case bytes.HasPrefix(head, []byte("hsqs")):
		return squashfsReader(slot)
	case binary.LittleEndian.Uint16(head[magicOffset:]) == magic:
		return ext4Reader(slot), nil
	}
	return nil, &BadImageError{Err: errors.New("it is neither ext4 nor squashfs")}
}

func squashfsReader(slot *disk.Device) (func(context.Context, string) ([]byte, error), error) {
	section := sectionFile{io.NewSectionReader(slot, 0, slot.Size())}
	system, err := squashfs.Read(file.New(section, true), slot.Size(), 0, 0)
	if err != nil {
		return nil, &BadImageError{Err: err}
	}
	return func(_ context.Context, path string) ([]byte, error) {
		opened, err := system.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = opened.Close() }() // read only
		return io.ReadAll(io.LimitReader(opened, maxBootFile+1))
	}, nil
}

// sectionFile is a reader in the shape of a file, for go-diskfs.
type sectionFile struct{ *io.SectionReader }

func (sectionFile) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (sectionFile) Close() error               { return nil }

// ext4Reader reads with debugfs of e2fsprogs, whose mkfs.ext4 an install needs
// anyway. The reader of go-diskfs 1.9.4 gives wrong bytes for files with
// holes, which mkfs.ext4 -d makes of every block of zeroes, and loops for ever
// on some.
func ext4Reader(slot *disk.Device) func(context.Context, string) ([]byte, error) {
	return func(ctx context.Context, path string) ([]byte, error) {
		program, err := disk.FindProgram("debugfs", "e2fsprogs")
		if err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp("", "osctl-debugfs-")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(dir) }() // a temporary folder
		target, offset := slot.Path()
		if target, err = filepath.Abs(target); err != nil {
			return nil, err
		}
		// Names of ours, since debugfs has its own ideas of ? and blanks.
		if err := os.Symlink(target, filepath.Join(dir, "disk")); err != nil {
			return nil, err
		}
		command := exec.CommandContext(ctx, program, "-R", "dump /"+path+" content", fmt.Sprintf("disk?offset=%d", offset))
		command.Dir = dir
		command.Env = append(os.Environ(), "LC_ALL=C", "DEBUGFS_PAGER=cat")
		output, err := command.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("debugfs: %w: %s", err, output)
		}
		// It exits with 0 whatever happens, and says its version first.
		if _, complaint, _ := strings.Cut(string(output), "\n"); complaint != "" {
			if strings.Contains(complaint, "File not found") {
				return nil, fs.ErrNotExist
			}
			return nil, errors.New("debugfs: " + strings.TrimSpace(complaint))
		}
		content, err := os.Open(filepath.Join(dir, "content"))
		if err != nil {
			return nil, err
		}
		defer func() { _ = content.Close() }() // read only
		return io.ReadAll(io.LimitReader(content, maxBootFile+1))
	}
}
