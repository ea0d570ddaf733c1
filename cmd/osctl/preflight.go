package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/etc"
)

// reserve is what an upgrade needs of the data partition beside packs and the
// clone of /etc, in bytes: the ledger, the proof of the slot, containerd's books.
const reserve = 64 << 10

// ready holds an upgrade back before anything is begun, when the machine could
// not end it: without a data partition that can be written, or without a boot
// state that can be changed.
func (m *machine) ready() error {
	if err := m.dataReady(); err != nil {
		return storageError{fmt.Errorf("checking the data partition: %w", err)}
	}
	if err := m.bootReady(); err != nil {
		return storageError{fmt.Errorf("checking the boot partition: %w", err)}
	}
	return nil
}

func (m *machine) dataReady() error {
	if pre := m.preinitReport(); pre.Data == etc.Missing || pre.Data == etc.ReadOnly {
		for _, p := range pre.Problems {
			if p.Step == "mounting "+etc.DataDir {
				return fmt.Errorf("it is %s: %s", pre.Data, p.Error)
			}
		}
	}
	if m.config.BootedSlot == config.Auto && sameFileSystem("/", m.config.StateDir) {
		return fmt.Errorf("%s lies on the root file system: the data partition is not mounted", m.config.StateDir)
	}
	if err := m.ledger.Probe(); err != nil {
		return err
	}
	return m.room(0, nil)
}

// bootReady rewrites both copies of the boot state as they are: what cannot be
// written now could not be armed later.
func (m *machine) bootReady() error {
	if m.config.BootedSlot == config.Auto {
		for _, file := range m.config.Env {
			if err := onPartition(file, "boot"); err != nil {
				return err
			}
		}
	}
	return m.boot.Rewrite()
}

// onPartition refuses a file that lies elsewhere than on the named partition of
// this machine's disk: an ESP that is not mounted, or that of another disk.
func onPartition(file, label string) error {
	dev, err := disk.FindPartition(label)
	if err != nil {
		return err
	}
	var want unix.Stat_t
	if err := unix.Stat(dev, &want); err != nil {
		return &os.PathError{Op: "stat", Path: dev, Err: err}
	}
	have, err := statAbove(file)
	if err != nil {
		return err
	}
	if have.Dev != want.Rdev {
		return fmt.Errorf("%s is not on %s, the partition %q of this machine's disk; mount that one", file, dev, label)
	}
	return nil
}

// sameFileSystem reports whether a path, or the nearest folder above it that
// exists, is on the same file system as another.
func sameFileSystem(a, b string) bool {
	x, errA := statAbove(a)
	y, errB := statAbove(b)
	return errA == nil && errB == nil && x.Dev == y.Dev
}

// statAbove is of a path, or of the nearest folder above it that exists: what is
// missing would be made there.
func statAbove(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		err := unix.Stat(path, &st)
		if err == nil {
			return st, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) || path == "/" || path == "." {
			return st, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		path = filepath.Dir(path)
	}
}

// room refuses when the data partition has less room than packs of that many
// bytes need, of which containerd may have some already, and the clone of /etc.
func (m *machine) room(fetch int64, packs []ocispec.Descriptor) error {
	data := filepath.Dir(m.config.StateDir)
	content := filepath.Join(data, "containerd/io.containerd.content.v1.content/blobs/sha256")
	if _, err := os.Stat(content); err != nil {
		fetch = 0 // containerd keeps its content elsewhere
	}
	for _, p := range packs {
		if _, err := os.Stat(filepath.Join(content, p.Digest.Encoded())); err == nil {
			fetch -= p.Size
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.config.StateDir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: m.config.StateDir, Err: err}
	}
	clone, err := etc.Size(m.config.EtcDir, m.booted.Slot)
	if err != nil {
		return err
	}
	need, free := max(fetch, 0)+clone+reserve, int64(st.Bavail)*st.Bsize //nolint:gosec // far below 2^63
	if free < need {
		return storageError{fmt.Errorf("%w: the upgrade needs %s on %s, and %s are free", errNoRoom, size(need), data, size(free))}
	}
	return nil
}

// errNoRoom: the data partition is too full to begin.
var errNoRoom = errors.New("not enough room")
