package upgrade

import (
	"context"
	"fmt"

	"github.com/kapernikov/osctl/pkg/device"
)

// Images holds what the workloads of a slot need while the other one runs.
type Images interface {
	// Keep holds for a slot what the workloads use now, and nothing else any more.
	Keep(ctx context.Context, slot device.Slot) error
	// Drop lets go what is held for a slot.
	Drop(ctx context.Context, slot device.Slot) error
	// Restore gives what is held for a slot the names back that it was used by.
	Restore(ctx context.Context, slot device.Slot) error
}

// keepImages holds what runs now for the running slot: it is what the machine comes back
// to. A slot that cannot be come back to whole is not left.
func (r *run) keepImages(ctx context.Context) error {
	if r.Images == nil {
		return nil
	}
	if err := r.Images.Keep(ctx, r.Booted); err != nil {
		return fmt.Errorf("keeping the images of what runs now: %w", err)
	}
	return nil
}

// dropImages lets go what the target needed for the system that is no longer in it. Too
// much that is held harms nobody, and the next commit there takes it away.
func (r *run) dropImages(ctx context.Context) {
	if r.Images == nil {
		return
	}
	if err := r.Images.Drop(ctx, r.result.Slot); err != nil {
		r.Log.Warn("images of the system that was in the slot are still held", "slot", r.result.Slot, "error", err)
	}
}

// follow readies the images for a rollback by hand, when the boot state leads there
// already: a rollback needs no containerd. What runs now is held if the machine may come
// back to it.
func (m Reversal) follow(ctx context.Context, b Back, proven bool) {
	if m.Images == nil || b.Slot == m.Booted {
		return
	}
	if proven {
		if err := m.Images.Keep(ctx, m.Booted); err != nil {
			m.Log.Warn("the images of what runs now are not held", "error", err)
		}
	}
	if err := m.Images.Restore(ctx, b.Slot); err != nil {
		m.Log.Warn("images that the other slot needs may be missing", "error", err)
	}
}
