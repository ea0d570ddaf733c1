package assemble

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// FuzzSegments decodes a pack of any bytes: nothing is handed on that the signed
// config does not name, and what fails is a corrupt pack.
func FuzzSegments(f *testing.F) {
	encoder, err := zstd.NewWriter(nil, zstd.WithWindowSize(osimage.SegmentSize))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add([]byte("not zstd"))
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff})                               // a skippable frame of 4 GiB
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff})                                           // a window of 2^41 bytes
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}) // content of 2^63-1
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x03, 0x00, 1, 2, 3, 4})                               // a dictionary
	f.Add(encoder.EncodeAll(make([]byte, 1000), nil))
	img, s := artifact(f, nil)
	pack := img.Packs()[1].Digest
	good := s.blobs[pack]
	others := func(i int) bool { return i != 2 && i != 3 }
	f.Fuzz(func(t *testing.T, frames []byte) {
		// Nobody compares the digest of a pack here: the segments' own count.
		s.blobs[pack] = append(good[:len(good)/2:len(good)/2], frames...)
		err := Segments(context.Background(), img, others, s, func(i int, data []byte) error {
			if !bytes.Equal(data, s.raw[i*osimage.SegmentSize:][:len(data)]) {
				t.Errorf("segment %d was handed on with wrong bytes", i)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("error = %v, want ErrCorrupt", err)
		}
	})
}
