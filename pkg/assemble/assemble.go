// Package assemble turns packs into verified segments of the image. Every
// segment is compared with the digest in the signed config before it is handed
// on; bytes that do not match go nowhere.
//
// Packs that hold nothing the caller lacks are not opened. Memory is bounded by
// a few segments, a zstd window of at most 8 MiB and what the opened blobs buffer,
// whatever the size of the image.
package assemble

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// ErrCorrupt says that a pack does not decode to what the signed config says.
var ErrCorrupt = errors.New("corrupt pack")

// ahead is how many packs are opened before the one that is decoded: enough to
// keep a connection busy while a pack is written, few enough to stay small.
const ahead = 2

// readSize is how much of a pack is read at a time, in bytes. Behind an opened pack
// each read may be a round trip to a daemon.
const readSize = 1 << 20

// maxWindow bounds the memory that a hostile frame can ask for. Builders use the
// size of a segment, 1 MiB.
const maxWindow = 8 << 20

// pack is a pack that is needed and the number of its first segment.
type pack struct {
	desc  ocispec.Descriptor
	first int
	count int
}

// needed lists the packs with at least one segment that is lacking, and their
// size.
func needed(img osimage.Image, has func(i int) bool) ([]pack, int64) {
	var list []pack
	var size int64
	first := 0
	for n, count := range img.Config().Rootfs.PackSegments {
		for i := first; i < first+count; i++ {
			if !has(i) {
				list = append(list, pack{desc: img.Packs()[n], first: first, count: count})
				size += img.Packs()[n].Size
				break
			}
		}
		first += count
	}
	return list, size
}

// Size is the number of bytes of packs that have to be opened.
func Size(img osimage.Image, has func(i int) bool) int64 {
	_, size := needed(img, has)
	return size
}

// Fetch keeps every needed pack on this machine and decodes none: for a download
// ahead of time.
func Fetch(ctx context.Context, img osimage.Image, has func(i int) bool, blobs osimage.Blobs) error {
	packs, size := needed(img, has)
	blobs.Expect(size)
	group, keeping := errgroup.WithContext(ctx)
	group.SetLimit(ahead + 1)
	for _, p := range packs {
		group.Go(func() error {
			if err := context.Cause(keeping); err != nil {
				return err
			}
			return blobs.Keep(keeping, p.desc)
		})
	}
	return group.Wait()
}

// Segments hands each lacking segment to put, in order, verified. data is valid
// during the call only.
func Segments(ctx context.Context, img osimage.Image, has func(i int) bool, blobs osimage.Blobs, put func(i int, data []byte) error) error {
	// The segments' own digests are compared; zstd's checksum would only cost time.
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(true),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return fmt.Errorf("preparing the decoder: %w", err)
	}
	defer decoder.Close()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	c := newChecking(img.Config().Rootfs, put)
	go c.run(stop)
	d := &decoding{decoder: decoder, rootfs: img.Config().Rootfs, has: has, check: c, in: bufio.NewReaderSize(nil, readSize)}
	packs, size := needed(img, has)
	blobs.Expect(size)
	err = opened(ctx, packs, blobs, func(p pack, rc io.Reader) error { return d.pack(ctx, p, rc) })
	// What was decoded before an error is good, and is not to be fetched again.
	close(c.full)
	<-c.done
	if c.err != nil {
		return c.err
	}
	return err
}

// opened opens the packs a few ahead and passes them to use one by one, in order.
func opened(ctx context.Context, packs []pack, blobs osimage.Blobs, use func(pack, io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		rc  io.ReadCloser
		err error
	}
	queue := make(chan chan result, ahead)
	go func() {
		defer close(queue)
		for _, p := range packs {
			r := make(chan result, 1)
			select {
			case queue <- r:
			case <-ctx.Done():
				return
			}
			go func() {
				rc, err := blobs.Open(ctx, p.desc)
				r <- result{rc, err}
			}()
		}
	}()
	var first error
	n := 0
	for r := range queue {
		got := <-r
		if got.err == nil {
			if first == nil {
				got.err = use(packs[n], got.rc)
			}
			got.err = errors.Join(got.err, got.rc.Close())
		}
		if got.err != nil && first == nil {
			// The others are only waited for, so that nothing is left open.
			first = got.err
			cancel()
		}
		n++
	}
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// decoding is the state of one pass over the packs.
type decoding struct {
	decoder *zstd.Decoder
	rootfs  osimage.Rootfs
	has     func(i int) bool
	check   *checking
	in      *bufio.Reader
}

// pack decodes one pack: exactly its segments and nothing after them.
func (d *decoding) pack(ctx context.Context, p pack, rc io.Reader) error {
	d.in.Reset(rc)
	if err := d.decoder.Reset(d.in); err != nil {
		return broken(p, err)
	}
	for i := p.first; i < p.first+p.count; i++ {
		if err := d.segment(ctx, p, i); err != nil {
			return err
		}
	}
	var more [1]byte
	if n, err := d.decoder.Read(more[:]); n != 0 || !errors.Is(err, io.EOF) {
		return broken(p, errors.New("there is more in it than its segments"))
	}
	return nil
}

// segment decodes the next segment and sends it on to be checked.
func (d *decoding) segment(ctx context.Context, p pack, i int) error {
	length := d.rootfs.SegmentLength(i)
	if d.has(i) {
		if _, err := io.CopyN(io.Discard, d.decoder, int64(length)); err != nil {
			return broken(p, fmt.Errorf("segment %d: %w", i, err))
		}
		return nil
	}
	var buf []byte
	select {
	case buf = <-d.check.free:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, err := io.ReadFull(d.decoder, buf[:length]); err != nil {
		d.check.free <- buf
		return broken(p, fmt.Errorf("segment %d: %w", i, err))
	}
	d.check.full <- decoded{p, i, buf[:length]}
	return nil
}

func broken(p pack, err error) error {
	return fmt.Errorf("%w %s: %w", ErrCorrupt, p.desc.Digest, err)
}
