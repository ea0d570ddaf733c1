package proof

import (
	"context"
	"fmt"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
)

// verifier decides by the present policy (trust.Verifier).
type verifier interface {
	Verify(ctx context.Context, img osimage.Image, sigs []osimage.Signature) (trust.Verified, error)
}

// Verdict is what a slot was found to hold.
type Verdict struct {
	// Verified is the image that the slot should hold, vouched for once more.
	Verified trust.Verified
	// Damage is what differs, in order; nothing in a whole slot.
	Damage []slot.Range
}

// Whole reports whether the slot holds every signed byte. The zero value does not.
func (v Verdict) Whole() bool { return v.Verified.Valid() && len(v.Damage) == 0 }

// Verify asks the present policy about the recorded image, and nothing else.
func (r Record) Verify(ctx context.Context, v verifier) (trust.Verified, error) {
	return v.Verify(ctx, r.image, r.signatures)
}

// Prove verifies the record's signature by the present policy, reads the slot from
// the medium and compares every segment with the signed config. It writes nothing.
// An error says that nothing was proven; damage is not one. A refusal of the
// policy is a *trust.Refusal.
func (r Record) Prove(ctx context.Context, v verifier, medium slot.Medium, sink progress.Sink) (Verdict, error) {
	verified, err := r.Verify(ctx, v)
	if err != nil {
		return Verdict{}, err
	}
	damage, err := slot.Check(ctx, medium, Want("", verified.Image()), sink)
	if err != nil {
		return Verdict{}, fmt.Errorf("proving %s: %w", r.image.Digest(), err)
	}
	return Verdict{verified, damage}, nil
}

// Want is what a slot shall hold, for package slot.
func Want(name device.Slot, img osimage.Image) slot.Want {
	rootfs := img.Config().Rootfs
	return slot.Want{
		Slot: name, Digest: img.Digest().String(), Size: rootfs.Size, SegmentSize: rootfs.SegmentSize,
		SegmentDigest: rootfs.SegmentDigest,
	}
}
