package slot

import (
	"context"
	"fmt"

	"github.com/kapernikov/osctl/pkg/progress"
)

// Range is a run of bytes of a slot that are not those of the image. The signed
// config has a digest for each segment, so ranges begin and end with segments.
type Range struct {
	// First and Last are the offsets of its first and its last byte.
	First int64 `json:"first"`
	Last  int64 `json:"last"`
	// Zero says that the whole range is zeros, as at the start of a slot whose
	// writing was not finished.
	Zero bool `json:"zero,omitempty"`
	// Unreadable says that the medium does not give these bytes at all.
	Unreadable bool `json:"unreadable,omitempty"`
}

// String is the range in words.
func (r Range) String() string {
	what := "other bytes"
	switch {
	case r.Unreadable:
		what = "unreadable"
	case r.Zero:
		what = "zeros"
	}
	return fmt.Sprintf("bytes %d to %d: %s", r.First, r.Last, what)
}

// grows reports whether r goes on with the next range, and is of one kind with it.
func (r Range) grows(next Range) bool {
	return r.Last+1 == next.First && r.Zero == next.Zero && r.Unreadable == next.Unreadable
}

// Check reads a slot from the medium and returns what differs from want, in
// order; nothing for a slot that holds it. It writes nothing, so the slot may be
// the running one. Damage is no error: the error says that nothing was found out.
func Check(ctx context.Context, medium Medium, want Want, sink progress.Sink) ([]Range, error) {
	var list []Range
	counter := progress.NewCounter(sink, progress.Check, want.Size)
	err := newReader(medium, want).each(ctx, nil, func(f found) error {
		counter.Add(int64(len(f.data)))
		if f.err == nil && f.same {
			return nil
		}
		first := int64(f.segment) * want.SegmentSize
		r := Range{First: first, Last: first + int64(len(f.data)) - 1, Zero: f.err == nil && f.zero, Unreadable: f.err != nil}
		if n := len(list); n > 0 && list[n-1].grows(r) {
			list[n-1].Last = r.Last
		} else {
			list = append(list, r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("checking the slot: %w", err)
	}
	return list, nil
}
