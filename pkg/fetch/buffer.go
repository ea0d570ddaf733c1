package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxBuffered is the largest pack that is held in memory, in bytes. Builders aim
// at 4 MiB, and a few are under way at a time; what is larger goes through the
// content store.
const maxBuffered = 8 << 20

// place is where one pack is put together, piece by piece, and checked as a whole.
// A broken download goes on there.
type place interface {
	// begin fails with errdefs.ErrAlreadyExists where the whole pack is there.
	begin(ctx context.Context) (content.Writer, error)
	// forget removes the pieces.
	forget(ctx context.Context) error
}

// stored is a place in the content store. It outlives this process.
type stored struct {
	store *Store
	desc  ocispec.Descriptor
}

func (s stored) begin(ctx context.Context) (content.Writer, error) {
	w, err := content.OpenWriter(ctx, s.store.content, content.WithRef(ingest(s.desc)), content.WithDescriptor(s.desc))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	return w, err
}

func (s stored) forget(ctx context.Context) error {
	return s.store.content.Abort(ctx, ingest(s.desc))
}

// ingest is the name of a partial download in the content store.
func ingest(desc ocispec.Descriptor) string { return "osctl-" + desc.Digest.String() }

// buffers is memory that was used and may be used again. It holds no more pieces
// than there were packs under way at a time. (A sync.Pool forgets them whenever
// garbage is collected, which is often here.)
type buffers struct {
	mu   sync.Mutex
	free [][]byte
}

// get makes an empty buffer for a pack.
func (p *buffers) get(desc ocispec.Descriptor) *buffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &buffer{desc: desc, pool: p}
	if last := len(p.free) - 1; last >= 0 {
		b.data, p.free = p.free[last], p.free[:last]
	}
	if int64(cap(b.data)) < desc.Size {
		// Packs end at about the same size: what is a little larger serves them all.
		b.data = make([]byte, 0, desc.Size+desc.Size/8)
	}
	return b
}

func (p *buffers) put(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, data[:0])
}

// buffer is a place in memory, and the reader of what was put together there.
type buffer struct {
	desc ocispec.Descriptor
	data []byte
	next int // what was read of it
	pool *buffers
}

func (b *buffer) begin(context.Context) (content.Writer, error) { return filling{b}, nil }

func (b *buffer) forget(context.Context) error {
	b.data = b.data[:0]
	return nil
}

// Read hands over what was put together.
func (b *buffer) Read(p []byte) (int, error) {
	if b.next == len(b.data) {
		return 0, io.EOF
	}
	n := copy(p, b.data[b.next:])
	b.next += n
	return n, nil
}

// Close gives the memory back. Nothing may be read afterwards.
func (b *buffer) Close() error {
	if b.data != nil {
		b.pool.put(b.data)
	}
	b.data, b.next = nil, 0
	return nil
}

// filling is one attempt to fill a buffer; its end does not close the buffer.
type filling struct{ b *buffer }

func (f filling) Write(p []byte) (int, error) {
	if int64(len(f.b.data)+len(p)) > f.b.desc.Size {
		return 0, fmt.Errorf("%w: more than %d bytes", errLength, f.b.desc.Size)
	}
	f.b.data = append(f.b.data, p...)
	return len(p), nil
}

// ReadFrom reads straight into the buffer, at most as much as it is to hold.
func (f filling) ReadFrom(r io.Reader) (int64, error) {
	begin := len(f.b.data)
	for int64(len(f.b.data)) < f.b.desc.Size {
		n, err := r.Read(f.b.data[len(f.b.data):f.b.desc.Size])
		f.b.data = f.b.data[:len(f.b.data)+n]
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return int64(len(f.b.data) - begin), err
		}
	}
	return int64(len(f.b.data) - begin), nil
}

func (filling) Close() error { return nil }

func (f filling) Digest() digest.Digest { return digest.FromBytes(f.b.data) }

// Commit checks what was written, as the content store does.
func (f filling) Commit(_ context.Context, _ int64, expected digest.Digest, _ ...content.Opt) error {
	if got := f.Digest(); got != expected {
		return fmt.Errorf("%w: its digest is %s", errdefs.ErrFailedPrecondition, got)
	}
	return nil
}

func (f filling) Status() (content.Status, error) {
	return content.Status{Offset: int64(len(f.b.data)), Total: f.b.desc.Size, UpdatedAt: time.Now()}, nil
}

func (f filling) Truncate(size int64) error {
	if size < 0 || size > int64(len(f.b.data)) {
		return fmt.Errorf("%w: cutting %d bytes to %d", errdefs.ErrInvalidArgument, len(f.b.data), size)
	}
	f.b.data = f.b.data[:size]
	return nil
}
