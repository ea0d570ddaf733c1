// Package slot streams an OS image into the inactive slot and proves that the
// medium holds it. The proof is a Written, which nothing else can make and
// without which package boot arms nothing.
//
// The order is what makes a cut at any moment harmless:
//
//  1. Compare reads the slot and changes nothing.
//  2. Write zeroes the first segment and syncs, its first block sector after
//     sector: from here on no boot loader and no kernel finds a file system in the
//     slot.
//  3. All other segments that differ are written, synced, read back from the
//     medium and compared with the digests of the signed config.
//  4. The first segment is written last, its first block sector after sector from
//     the end, each synced; then it is read back.
//
// Blocks of 4 KiB that hold the right bytes already are not written again; that
// spares the flash and lets an interrupted write go on where it stopped. The
// package refuses to know where the bytes come from and what they mean.
package slot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/progress"
)

// blockSize is the unit in which unchanged content is left alone: the page and
// the file-system block of every system that osctl runs on, 4 KiB.
const blockSize = 4096

// ErrMedium says that the slot's medium failed: it cannot be read or written, or
// what it holds after a write is not what was written. Nothing was armed.
var ErrMedium = errors.New("the slot cannot be trusted")

// ErrTooSmall says that the image does not fit into the slot.
var ErrTooSmall = errors.New("the image is larger than the slot")

// Medium is the opened slot: *disk.Device, or one that fails in a test.
type Medium interface {
	Size() int64
	WriteAt(p []byte, off int64) (int, error)
	// ReadBackAt reads from the medium, past the page cache.
	ReadBackAt(p []byte, off int64) (int, error)
	Sync() error
}

// Want is what the slot shall hold: the layout of an image.
type Want struct {
	// Slot is the slot that the medium is.
	Slot device.Slot
	// Digest is the digest of the artifact's manifest; Written carries it on.
	Digest string
	// Size is the length of the image in bytes, SegmentSize that of a segment;
	// the last segment may be shorter.
	Size, SegmentSize int64
	// SegmentDigest returns the SHA-256 of segment i.
	SegmentDigest func(i int) [sha256.Size]byte
}

// Segments is the number of segments.
func (w Want) Segments() int { return int((w.Size + w.SegmentSize - 1) / w.SegmentSize) }

func (w Want) length(i int) int64 { return min(w.SegmentSize, w.Size-int64(i)*w.SegmentSize) }

// Written proves that a slot holds an image: every byte was read back from the
// medium and has the digest that the signed config gives. The zero value proves
// nothing.
type Written struct {
	slot   device.Slot
	digest string
}

// Slot is the slot that holds the image.
func (w Written) Slot() device.Slot { return w.slot }

// Digest is the digest of the image's manifest.
func (w Written) Digest() string { return w.digest }

// Valid reports whether w came from Write.
func (w Written) Valid() bool { return w.slot != "" && w.digest != "" }

// Missing is the outcome of Compare: the segments that the slot lacks.
type Missing struct {
	medium Medium
	want   Want
	lacks  []bool
	zero   []bool // segments of which the slot held zeros only
	count  int
	first  []byte // the first segment, when the slot has it already
}

// Has reports whether the slot holds segment i already.
func (m *Missing) Has(i int) bool { return !m.lacks[i] }

// Count is the number of segments that the slot lacks.
func (m *Missing) Count() int { return m.count }

// Compare reads the slot and finds the segments of want that it lacks. It writes
// nothing. A segment that cannot be read counts as lacking: the write decides
// whether the medium still works there.
func Compare(ctx context.Context, medium Medium, want Want, sink progress.Sink) (*Missing, error) {
	name := want.Slot
	if !name.Holds() {
		return nil, fmt.Errorf("comparing slot %q: the slots are A and B", name)
	}
	if want.Size > medium.Size() {
		return nil, fmt.Errorf("comparing slot %s: %w: %d bytes, the slot has %d", name, ErrTooSmall, want.Size, medium.Size())
	}
	m := &Missing{medium: medium, want: want, lacks: make([]bool, want.Segments()), zero: make([]bool, want.Segments())}
	counter := progress.NewCounter(sink, progress.Compare, want.Size)
	err := newReader(medium, want).each(ctx, nil, func(f found) error {
		m.zero[f.segment] = f.err == nil && f.zero
		if f.err != nil || !f.same {
			m.lacks[f.segment] = true
			m.count++
		} else if f.segment == 0 {
			// Write zeroes it first and needs it last.
			m.first = bytes.Clone(f.data)
		}
		counter.Add(int64(len(f.data)))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("comparing slot %s: %w", name, err)
	}
	return m, nil
}

// isZero compares each 4 KiB block with a zero array: the runtime's memequal
// runs at memory speed.
func isZero(p []byte) bool {
	var zero [blockSize]byte
	for len(p) >= blockSize {
		if [blockSize]byte(p[:blockSize]) != zero {
			return false
		}
		p = p[blockSize:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
