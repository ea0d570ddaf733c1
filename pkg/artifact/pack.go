package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
)

// packSize is where a pack ends: the frame that would make it larger starts the
// next one. 4 MiB keeps requests few, and a pack that broke off cheap to repeat.
const packSize = 4 << 20

// packed is the outcome of pack.
type packed struct {
	rootfs      osimage.Rootfs
	descriptors []ocispec.Descriptor
}

// frame is one compressed segment on its way through the pipeline.
type frame struct {
	sum  [sha256.Size]byte
	data []byte
}

// pack turns the raw image into packs: each segment of 1 MiB becomes one zstd
// frame, frames are collected into packs of about 4 MiB. Segments are compressed
// by as many goroutines as there are processors; the order, and so the bytes, do
// not depend on that.
func pack(ctx context.Context, path string, l layout, sink progress.Sink) (packed, error) {
	file, err := os.Open(path)
	if err != nil {
		return packed{}, err
	}
	defer file.Close() //nolint:errcheck // read only
	info, err := file.Stat()
	if err != nil {
		return packed{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	encoder, err := newEncoder()
	if err != nil {
		return packed{}, err
	}
	whole := sha256.New()
	futures := make(chan chan frame, 2*runtime.GOMAXPROCS(0))
	readErr := make(chan error, 1)
	go func() {
		defer close(futures)
		readErr <- compress(ctx, io.TeeReader(file, whole), encoder, futures)
	}()
	c := collector{layout: l, counter: progress.NewCounter(sink, progress.Build, info.Size())}
	for future := range futures {
		if err := c.add(<-future); err != nil {
			return packed{}, err
		}
	}
	if err := errors.Join(<-readErr, c.flush()); err != nil {
		return packed{}, err
	}
	c.out.rootfs.Size = info.Size()
	c.out.rootfs.SegmentSize = osimage.SegmentSize
	c.out.rootfs.Digest = digest.NewDigest(digest.SHA256, whole)
	return c.out, nil
}

// newEncoder compresses as well as the library can: an image is built once and
// fetched by a whole fleet, and decoding costs the same. A frame carries its
// content size and a window of at most one segment, so that decoding a frame
// needs bounded memory.
func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(osimage.SegmentSize), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
}

// compress reads segments and sends, in order, a channel for the frame of each.
func compress(ctx context.Context, r io.Reader, encoder *zstd.Encoder, futures chan<- chan frame) error {
	zero := make([]byte, osimage.SegmentSize)
	zeroFrame := frame{sum: sha256.Sum256(zero), data: encoder.EncodeAll(zero, nil)}
	for {
		segment := make([]byte, osimage.SegmentSize)
		n, err := io.ReadFull(r, segment)
		if n > 0 {
			future := make(chan frame, 1)
			select {
			case futures <- future:
			case <-ctx.Done():
				return ctx.Err()
			}
			go func() {
				if bytes.Equal(segment[:n], zero) {
					future <- zeroFrame
					return
				}
				future <- frame{sum: sha256.Sum256(segment[:n]), data: encoder.EncodeAll(segment[:n], nil)}
			}()
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the image: %w", err)
		}
	}
}

// collector writes frames into packs.
type collector struct {
	layout  layout
	counter *progress.Counter
	out     packed
	buf     bytes.Buffer
	frames  int
}

func (c *collector) add(f frame) error {
	if c.frames > 0 && c.buf.Len()+len(f.data) > packSize {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.buf.Write(f.data)
	c.frames++
	c.out.rootfs.SegmentDigests = append(c.out.rootfs.SegmentDigests, f.sum[:]...)
	c.counter.Add(osimage.SegmentSize)
	return nil
}

func (c *collector) flush() error {
	if c.frames == 0 {
		return nil
	}
	desc, err := c.layout.blob(osimage.MediaTypePack, c.buf.Bytes())
	if err != nil {
		return err
	}
	c.out.descriptors = append(c.out.descriptors, desc)
	c.out.rootfs.PackSegments = append(c.out.rootfs.PackSegments, c.frames)
	c.buf.Reset()
	c.frames = 0
	return nil
}
