package upgrade

import (
	"context"
	"errors"

	"github.com/kapernikov/osctl/pkg/assemble"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
)

// Fill writes a verified image into a slot that no machine runs yet: the first
// install, which has nothing to admit it and nothing to arm.
func Fill(ctx context.Context, name device.Slot, medium slot.Medium, v trust.Verified, offer Offer, sink progress.Sink) (slot.Written, error) {
	if !v.Valid() {
		return slot.Written{}, errors.New("filling a slot with an image that was not verified")
	}
	blobs, err := offer.Blobs(ctx, sink)
	if err != nil {
		return slot.Written{}, err
	}
	f := filling{name, medium, v.Image(), blobs, sink}
	missing, err := f.compare(ctx)
	if err != nil {
		return slot.Written{}, err
	}
	return f.write(ctx, missing)
}

// filling is a slot that is to hold an image, and where the image's packs are.
type filling struct {
	slot   device.Slot
	medium slot.Medium
	img    osimage.Image
	blobs  osimage.Blobs
	sink   progress.Sink
}

// compare finds what the slot lacks.
func (f filling) compare(ctx context.Context) (*slot.Missing, error) {
	return slot.Compare(ctx, f.medium, proof.Want(f.slot, f.img), f.sink)
}

// write fills the slot from the packs. The slot itself keeps what arrived of an
// interrupted upgrade, but for its first segment, which it gets last: that one's
// pack is kept beside it.
func (f filling) write(ctx context.Context, missing *slot.Missing) (slot.Written, error) {
	if !missing.Has(0) {
		if err := f.blobs.Keep(ctx, f.img.Packs()[0]); err != nil {
			return slot.Written{}, err
		}
	}
	return missing.Write(ctx, func(put func(int, []byte) error) error {
		return assemble.Segments(ctx, f.img, missing.Has, f.blobs, put)
	}, f.sink)
}
