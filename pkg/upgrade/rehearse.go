package upgrade

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/progress"
)

// rehearse lends the slot to the rehearsal, and holds it again afterwards: what is
// still in use then is not armed. A slot that is refused stays as it was written, and
// is named by nothing.
func (r *run) rehearse(ctx context.Context, s device.Slot) error {
	if r.Rehearse == nil {
		return nil
	}
	r.Progress.Say(progress.Rehearse, "rehearsing slot "+string(s))
	if err := r.close(); err != nil {
		return err
	}
	if err := r.Rehearse(ctx, s); err != nil {
		r.refused(ctx, s, err)
		return fmt.Errorf("rehearsing slot %s: %w", s, err)
	}
	target, err := r.OpenSlot(s)
	if err != nil {
		return fmt.Errorf("opening slot %s after its rehearsal: %w", s, err)
	}
	r.target = target
	return nil
}

// refused notes why the image was not armed; nothing fails for want of a note.
func (r *run) refused(ctx context.Context, s device.Slot, reason error) {
	if ctx.Err() != nil {
		return
	}
	img, one := r.plan.Image(), strings.ReplaceAll(reason.Error(), "\n", "; ")
	err := r.Ledger.Update(func(l *ledger.Ledger) error {
		l.Add(ledger.Event{At: time.Now().UTC(), Kind: "refused", Slot: s, Version: img.Config().Version, Digest: img.Digest().String(), Reason: one})
		return nil
	})
	if err != nil {
		r.Log.Warn("the history lacks an event", "kind", "refused", "error", err)
	}
}

// close lets go of the slot, if it is held.
func (r *run) close() error {
	if r.target == nil {
		return nil
	}
	target := r.target
	r.target = nil
	return target.Close()
}
