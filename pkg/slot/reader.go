package slot

import (
	"context"
	"crypto/sha256"
)

// reader reads segments from the medium and compares their digests. One segment
// is read while the one before it is hashed: either alone would leave the medium
// or the processor idle half of the time.
type reader struct {
	medium Medium
	want   Want
	zero   [sha256.Size]byte // digest of a full segment of zeros
}

// found is what the medium holds in the place of one segment.
type found struct {
	segment int
	data    []byte // valid until the next one
	err     error  // it could not be read; nothing else counts then
	same    bool   // it is what is wanted
	zero    bool   // it is zeros and nothing else
}

func newReader(medium Medium, want Want) *reader {
	return &reader{medium: medium, want: want, zero: sha256.Sum256(make([]byte, want.SegmentSize))}
}

// each reads, in order, the segments that pick chooses (nil means all) and calls
// use with each, until use or the context ends it. The medium is not touched
// any more when each returns.
func (r *reader) each(ctx context.Context, pick func(i int) bool, use func(found) error) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	free, full := make(chan []byte, 2), make(chan found, 2)
	for range cap(free) {
		free <- make([]byte, r.want.SegmentSize)
	}
	go func() {
		defer close(full)
		for i := range r.want.Segments() {
			if pick != nil && !pick(i) {
				continue
			}
			select {
			case buf := <-free:
				full <- r.read(i, buf)
			case <-reading.Done():
				return
			}
		}
	}()
	var err error
	for f := range full {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			r.judge(&f)
			err = use(f)
		}
		if err != nil {
			stop()
		}
		free <- f.data[:cap(f.data)]
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

func (r *reader) read(i int, buf []byte) found {
	f := found{segment: i, data: buf[:r.want.length(i)]}
	_, f.err = r.medium.ReadBackAt(f.data, int64(i)*r.want.SegmentSize)
	return f
}

// judge compares the digests of a segment that was read.
func (r *reader) judge(f *found) {
	if f.err != nil {
		return
	}
	f.zero = isZero(f.data)
	if f.zero && int64(len(f.data)) == r.want.SegmentSize {
		// Most of a fresh slot and much of an image is zero: its digest is known.
		f.same = r.want.SegmentDigest(f.segment) == r.zero
		return
	}
	f.same = sha256.Sum256(f.data) == r.want.SegmentDigest(f.segment)
}
