package slot

import (
	"bytes"
	"context"
	"fmt"

	"github.com/kapernikov/osctl/pkg/progress"
)

// Source hands over the segments that the slot lacks, in any order, each once or
// more often; those that it has are ignored. data is valid during the call only.
type Source func(put func(i int, data []byte) error) error

// Write makes the slot unbootable, fills in what it lacks from source and proves
// the result. On any error the slot stays unbootable and the next Compare finds
// what is still missing. Errors of the medium wrap ErrMedium; those of source are
// passed through.
func (m *Missing) Write(ctx context.Context, source Source, sink progress.Sink) (Written, error) {
	w, err := m.write(ctx, source, sink)
	if err != nil {
		return Written{}, fmt.Errorf("writing slot %s: %w", m.want.Slot, err)
	}
	return w, nil
}

func (m *Missing) write(ctx context.Context, source Source, sink progress.Sink) (Written, error) {
	if err := m.invalidate(); err != nil {
		return Written{}, err
	}
	wr := &writer{m: m, first: m.first, old: make([]byte, m.want.SegmentSize), done: make([]bool, len(m.lacks))}
	wr.counter = progress.NewCounter(sink, progress.Write, m.lackingBytes(0))
	put := func(i int, data []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return wr.put(i, data)
	}
	if err := source(put); err != nil {
		return Written{}, err
	}
	for i, done := range wr.done {
		if m.lacks[i] && !done {
			return Written{}, fmt.Errorf("segment %d of %d never arrived", i, len(m.lacks))
		}
	}
	if err := m.medium.Sync(); err != nil {
		return Written{}, fmt.Errorf("%w: syncing: %w", ErrMedium, err)
	}
	r := newReader(m.medium, m.want)
	// The first segment is not there yet; finish proves it.
	counter := progress.NewCounter(sink, progress.Check, m.lackingBytes(1))
	err := r.each(ctx, func(i int) bool { return i > 0 && m.lacks[i] }, func(f found) error {
		counter.Add(int64(len(f.data)))
		return m.prove(f)
	})
	if err != nil {
		return Written{}, err
	}
	return m.finish(r, wr.first)
}

// sector is the unit that a disk writes whole, in bytes.
const sector = 512

// invalidate zeroes the first segment, which holds the superblock of every file
// system that an image may have, and makes that durable. The first block goes sector
// after sector: a disk may write a part of what it was given, in any order, and a
// superblock must not outlive what it describes.
func (m *Missing) invalidate() error {
	zero := make([]byte, m.want.length(0))
	head := min(blockSize, len(zero))
	for off := 0; off < head; off += sector {
		if err := m.writeDurably(zero[off:min(off+sector, head)], off); err != nil {
			return fmt.Errorf("%w: making it unbootable: %w", ErrMedium, err)
		}
	}
	if err := m.writeDurably(zero[head:], head); err != nil {
		return fmt.Errorf("%w: making it unbootable: %w", ErrMedium, err)
	}
	return nil
}

// finish writes the first segment, the only one that is still missing, and of that
// the first block last, in the opposite order.
func (m *Missing) finish(r *reader, first []byte) (Written, error) {
	head := min(blockSize, len(first))
	if err := m.writeDurably(first[head:], head); err != nil {
		return Written{}, fmt.Errorf("%w: making it bootable: %w", ErrMedium, err)
	}
	for off := (head - 1) / sector * sector; off >= 0; off -= sector {
		if err := m.writeDurably(first[off:min(off+sector, head)], off); err != nil {
			return Written{}, fmt.Errorf("%w: making it bootable: %w", ErrMedium, err)
		}
	}
	// The work is done but for this proof: a signal that comes now is too late.
	only := func(i int) bool { return i == 0 }
	if err := r.each(context.Background(), only, m.prove); err != nil {
		return Written{}, err
	}
	return Written{slot: m.want.Slot, digest: m.want.Digest}, nil
}

// writeDurably writes and syncs, unless there is nothing to write.
func (m *Missing) writeDurably(p []byte, off int) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := m.medium.WriteAt(p, int64(off)); err != nil {
		return err
	}
	return m.medium.Sync()
}

// prove refuses a segment that reads back otherwise than it was written.
func (m *Missing) prove(f found) error {
	if f.err != nil {
		return fmt.Errorf("%w: reading segment %d back: %w", ErrMedium, f.segment, f.err)
	}
	if !f.same {
		off := int64(f.segment) * m.want.SegmentSize
		return fmt.Errorf("%w: segment %d (bytes %d to %d) reads back other bytes than were written: the storage is failing",
			ErrMedium, f.segment, off, off+int64(len(f.data))-1)
	}
	return nil
}

// lackingBytes adds up the segments that the slot lacks, from a given one on.
func (m *Missing) lackingBytes(from int) int64 {
	var n int64
	for i := from; i < len(m.lacks); i++ {
		if m.lacks[i] {
			n += m.want.length(i)
		}
	}
	return n
}

// writer puts segments into the slot, the first one aside.
type writer struct {
	m       *Missing
	old     []byte
	first   []byte
	done    []bool
	counter *progress.Counter
}

func (w *writer) put(i int, data []byte) error {
	switch {
	case i < 0 || i >= len(w.done):
		return fmt.Errorf("segment %d: the image has %d", i, len(w.done))
	case int64(len(data)) != w.m.want.length(i):
		return fmt.Errorf("segment %d has %d bytes, expected %d", i, len(data), w.m.want.length(i))
	case !w.m.lacks[i] || w.done[i]:
		return nil
	}
	if i == 0 {
		w.first = bytes.Clone(data)
	} else if err := w.writeChanged(i, data); err != nil {
		return fmt.Errorf("%w: segment %d: %w", ErrMedium, i, err)
	}
	w.done[i] = true
	w.counter.Add(int64(len(data)))
	return nil
}

// writeChanged writes the runs of blocks that differ from what the slot holds. It
// reads past the page cache, which belongs to the machine's applications. Where the old content cannot be read everything is written.
func (w *writer) writeChanged(i int, data []byte) error {
	off := int64(i) * w.m.want.SegmentSize
	old := w.old[:len(data)]
	if w.m.zero[i] {
		// Compare has seen it, and nobody else writes here: no need to read again.
		clear(old)
	} else if _, err := w.m.medium.ReadBackAt(old, off); err != nil {
		_, err := w.m.medium.WriteAt(data, off)
		return err
	}
	for from := 0; from < len(data); {
		if bytes.Equal(block(data, from), block(old, from)) {
			from += blockSize
			continue
		}
		to := from + blockSize
		for to < len(data) && !bytes.Equal(block(data, to), block(old, to)) {
			to += blockSize
		}
		to = min(to, len(data))
		if _, err := w.m.medium.WriteAt(data[from:to], off+int64(from)); err != nil {
			return err
		}
		from = to
	}
	return nil
}

func block(p []byte, from int) []byte { return p[from:min(from+blockSize, len(p))] }
