package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/content"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
)

func (r repository) blobs(ctx context.Context, image digest.Digest, sink progress.Sink) (osimage.Blobs, error) {
	lease, err := r.store.hold(ctx, image)
	if err != nil {
		return nil, err
	}
	return &blobs{repository: r, lease: lease, sink: sink, count: func(int64) {}}, nil
}

func (r repository) release(ctx context.Context) error { return r.store.release(ctx) }

// blobs are the packs of one image, under a lease.
type blobs struct {
	repository
	lease   string
	sink    progress.Sink
	count   func(int64)
	buffers buffers
}

// Expect starts the count for the progress display.
func (b *blobs) Expect(total int64) {
	b.count = progress.NewCounter(b.sink, progress.Fetch, total).Add
}

// Open opens a pack where Keep put it, or fetches it into memory: the caller puts
// its content where it belongs at once, and writing it twice would wear the
// machine's storage out. It may be called by several goroutines.
func (b *blobs) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	desc = plain(desc)
	rc, err := b.store.read(ctx, desc)
	if err == nil {
		b.count(desc.Size)
		return rc, nil
	}
	if !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("opening pack %s: %w", desc.Digest, b.explain(err))
	}
	if desc.Size > maxBuffered {
		if err := b.Keep(ctx, desc); err != nil {
			return nil, err
		}
		return b.store.read(ctx, desc)
	}
	buf := b.buffers.get(desc)
	if err := b.ensure(ctx, desc, buf); err != nil {
		return nil, errors.Join(fmt.Errorf("fetching pack %s: %w", desc.Digest, err), buf.Close())
	}
	return buf, nil
}

// Keep makes sure that the content store holds a pack, fetching what it lacks. It
// may be called by several goroutines.
func (b *blobs) Keep(ctx context.Context, desc ocispec.Descriptor) error {
	desc = plain(desc)
	if err := b.ensure(ctx, desc, stored{b.store, desc}); err != nil {
		return fmt.Errorf("fetching pack %s: %w", desc.Digest, err)
	}
	return nil
}

// ensure fetches with retries. A registry's "no" is final, a broken connection
// and a busy server are not.
func (b *blobs) ensure(ctx context.Context, desc ocispec.Descriptor, into place) error {
	var last error
	for attempt := range attempts {
		if attempt > 0 {
			if err := b.pause(ctx, attempt-1); err != nil {
				return errors.Join(err, last)
			}
		}
		asked, t := withTransfer(ctx, desc.Size+1)
		err := b.fetchOnce(asked, desc, into, t)
		if err == nil {
			return nil
		}
		another := t.host != "" && !errors.Is(err, errEarlier) && b.moveOn(t)
		last = b.explain(err)
		// The context's end also looks like an absent daemon.
		if ctx.Err() != nil || final(last) || wrong(last) && !another {
			break
		}
	}
	return last
}

func final(err error) bool {
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrStore) ||
		errors.Is(err, ErrDaemon) || errors.Is(err, errPlain) || errors.Is(err, errPatience)
}

// wrong says that this host will give the same again.
func wrong(err error) bool {
	return errors.Is(err, errDigest) || errors.Is(err, errEncoded) || errors.Is(err, errUnasked)
}

var (
	// errDigest says that a pack that came in one piece has the wrong content:
	// fetching it again from the same place gives the same.
	errDigest = errors.New("the content has another digest")
	// errParts says that of a pack that came in several pieces: each may be the
	// wrong one, and the next time it may come in one.
	errParts = errors.New("the parts together have another digest")
	// errEarlier says that where the first part was there before: the host of
	// the rest is not to blame.
	errEarlier = errors.New("what an earlier attempt left and the rest together have another digest")
)

func (b *blobs) fetchOnce(ctx context.Context, desc ocispec.Descriptor, into place, t *transfer) error {
	ctx = b.store.under(ctx, b.lease)
	w, err := into.begin(ctx)
	if errdefs.IsAlreadyExists(err) {
		b.count(desc.Size)
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // the commit is what counts
	status, err := w.Status()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	if status.Offset < desc.Size {
		err := b.copy(ctx, w, desc, status.Offset)
		if refusedRange(err) {
			// This registry cannot continue; the next attempt starts at the beginning.
			return errors.Join(err, w.Close(), into.forget(ctx))
		}
		if err != nil {
			return err
		}
	} else {
		b.count(status.Offset)
	}
	err = w.Commit(ctx, desc.Size, desc.Digest)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if errdefs.IsFailedPrecondition(err) {
		// What is there is wrong as a whole; nothing of it may be built upon.
		why := errDigest
		if status.Offset > 0 {
			why = errEarlier
		} else if t.asked > 1 {
			why = errParts
		}
		b.count(-desc.Size)
		return errors.Join(fmt.Errorf("%w: %w", why, err), w.Close(), into.forget(ctx))
	}
	return err
}

func refusedRange(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return errors.Is(err, errRange) || errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// copy appends what is missing of the pack to its partial download.
func (b *blobs) copy(ctx context.Context, w content.Writer, desc ocispec.Descriptor, offset int64) error {
	rc, err := b.fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer rc.Close() //nolint:errcheck // read only
	if offset > 0 {
		seeker, ok := rc.(io.Seeker)
		if !ok {
			return fmt.Errorf("%w: cannot continue a download", ErrRegistry)
		}
		if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
			return err
		}
		b.count(offset)
	}
	n, err := transport(w, io.LimitReader(progress.Reader(rc, b.count), desc.Size-offset))
	if err == nil && n < desc.Size-offset {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("it ended after %d of %d bytes: %w", offset+n, desc.Size, err)
	}
	if err != nil {
		// The bytes are counted again by the next attempt.
		b.count(-(offset + n))
		return err
	}
	return nil
}

// transport copies to a place: straight into memory, or in pieces to the store.
func transport(w content.Writer, r io.Reader) (int64, error) {
	if f, ok := w.(filling); ok {
		return f.ReadFrom(r)
	}
	// Each write is a round trip to containerd, and each of the packs that are
	// fetched at a time has such a buffer.
	return io.CopyBuffer(onlyWriter{w}, r, make([]byte, 512<<10))
}

// onlyWriter hides the writer's other methods from io.Copy.
type onlyWriter struct{ io.Writer }
