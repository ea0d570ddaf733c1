package main

import (
	"context"
	"fmt"
	"io"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/status"
)

// sizes says how large a slot is, and the image that it should hold; 0 is not known.
func (m *machine) sizes(slot device.Slot) (slotSize, imageSize int64) {
	if !slot.Holds() {
		return 0, 0
	}
	if record, err := proof.Open(m.config.StateDir).Load(slot); err == nil {
		imageSize = record.Image().Config().Rootfs.Size
	}
	path, err := m.slotPath(slot)
	if err != nil {
		return 0, imageSize
	}
	d, err := disk.OpenReadOnly(path)
	if err != nil {
		return 0, imageSize
	}
	defer d.Close() //nolint:errcheck // nothing was written
	return d.Size(), imageSize
}

// held asks containerd for the space that it takes.
func (m *machine) held(ctx context.Context) (status.Held, error) {
	s, err := m.containers().Space(ctx)
	return status.Held(s), err
}

// sizeOf says how large a system is, for people; empty if that is not known.
func sizeOf(sys status.System) string {
	switch {
	case sys.Size == 0:
		return ""
	case sys.SlotSize == 0:
		return size(sys.Size)
	}
	return fmt.Sprintf("%s, in a slot of %s", size(sys.Size), size(sys.SlotSize))
}

// printSpace says what is free on the data partition, and what containerd takes.
func printSpace(w io.Writer, s status.Space) {
	fmt.Fprintf(w, "  Space\t%s of %s free on %s\n", size(int64(s.Free)), size(int64(s.Total)), s.Path) //nolint:gosec // no disk is that large
	if s.Held == nil {
		return
	}
	fmt.Fprintf(w, "  \tworkloads: %s of images, unpacked to %s\n", size(s.Held.Images), size(s.Held.Layers))
	artifacts := "none kept"
	if s.Held.Artifacts > 0 {
		artifacts = size(s.Held.Artifacts)
	}
	fmt.Fprintf(w, "  \tOS artifacts: %s\n", artifacts)
}
