package bench

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// sampled is which part of the segments the levels are compared on: one of four.
const sampled = 4

// levels compares the levels of the compressor on the segments of an image, one
// frame each, as osctl build makes them.
func levels(b *testing.B, i image) {
	b.Helper()
	list := []zstd.EncoderLevel{zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBestCompression}
	sizes, cpu := make([]int64, len(list)), make([]time.Duration, len(list))
	var encoders []*zstd.Encoder
	for _, level := range list {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithWindowSize(osimage.SegmentSize), zstd.WithEncoderConcurrency(1))
		check(b, err)
		encoders = append(encoders, e)
	}
	raw, segment, frame := i.raw(b), make([]byte, osimage.SegmentSize), []byte(nil)
	for n := 0; ; n++ {
		_, err := io.ReadFull(raw, segment)
		if errors.Is(err, io.EOF) {
			break
		}
		check(b, err)
		if n%sampled != 0 {
			continue
		}
		for k, e := range encoders {
			start := ownCPU(b)
			frame = e.EncodeAll(segment, frame[:0])
			cpu[k] += ownCPU(b) - start
			sizes[k] += int64(len(frame))
		}
	}
	last := len(list) - 1
	for k, level := range list {
		say("zstd level %s: bytes %.3f, CPU time %.2f of that of level %s", level,
			part(sizes[k], sizes[last]), cpu[k].Seconds()/cpu[last].Seconds(), list[last])
	}
}

// ownCPU is the CPU time of this process so far.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	check(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
