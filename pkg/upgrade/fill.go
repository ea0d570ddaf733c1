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

// compare finds what the slot lacks, and fetches meanwhile what it was seen to
// lack.
func (f filling) compare(ctx context.Context) (*slot.Missing, error) {
	ahead := assemble.NewAhead(ctx, f.img, f.blobs)
	missing, err := slot.Compare(ctx, f.medium, proof.Want(f.slot, f.img), ahead.Need, f.sink)
	if err := errors.Join(err, ahead.Stop()); err != nil {
		return nil, err
	}
	return missing, nil
}

// write fills the slot from the packs.
func (f filling) write(ctx context.Context, missing *slot.Missing) (slot.Written, error) {
	return missing.Write(ctx, func(put func(int, []byte) error) error {
		return assemble.Segments(ctx, f.img, missing.Has, f.blobs, put)
	}, f.sink)
}
