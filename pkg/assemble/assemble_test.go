package assemble

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// store is an artifact of three packs with two segments each, in memory.
type store struct {
	mu     sync.Mutex
	raw    []byte
	blobs  map[digest.Digest][]byte
	opened []int
	kept   []int
	order  map[digest.Digest]int
	closed int
	total  int64
	fail   map[int]error
}

func (s *store) Expect(total int64) { s.total = total }

func (s *store) Open(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.order[d.Digest]
	if err := s.fail[n]; err != nil {
		return nil, err
	}
	s.opened = append(s.opened, n)
	return closer{bytes.NewReader(s.blobs[d.Digest]), s}, nil
}

func (s *store) Keep(_ context.Context, d ocispec.Descriptor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = append(s.kept, s.order[d.Digest])
	return s.fail[s.order[d.Digest]]
}

type closer struct {
	io.Reader
	s *store
}

func (c closer) Close() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.closed++
	return nil
}

const size = 5*osimage.SegmentSize + 4096

func artifact(t testing.TB, change func(pack int, frames []byte) []byte) (osimage.Image, *store) {
	t.Helper()
	s := &store{raw: make([]byte, size), blobs: map[digest.Digest][]byte{}, order: map[digest.Digest]int{}, fail: map[int]error{}}
	rand.NewChaCha8([32]byte{1}).Read(s.raw)
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	rootfs := osimage.Rootfs{Size: size, Filesystem: "ext4", Digest: digest.FromBytes(s.raw), SegmentSize: osimage.SegmentSize}
	var packs []ocispec.Descriptor
	var frames []byte
	for i := range 6 {
		segment := s.raw[i*osimage.SegmentSize : min((i+1)*osimage.SegmentSize, size)]
		sum := sha256.Sum256(segment)
		rootfs.SegmentDigests = append(rootfs.SegmentDigests, sum[:]...)
		frames = append(frames, encoder.EncodeAll(segment, nil)...)
		if i%2 == 1 {
			if change != nil {
				frames = change(len(packs), frames)
			}
			d := digest.FromBytes(frames)
			s.blobs[d], s.order[d] = frames, len(packs)
			packs = append(packs, ocispec.Descriptor{MediaType: osimage.MediaTypePack, Digest: d, Size: int64(len(frames))})
			rootfs.PackSegments = append(rootfs.PackSegments, 2)
			frames = nil
		}
	}
	config, err := json.Marshal(osimage.Config{Product: "p", Version: "1", Architecture: "amd64", Kernel: "/k", Rootfs: rootfs})
	if err != nil {
		t.Fatal(err)
	}
	raw, desc, err := osimage.Manifest(ocispec.Descriptor{MediaType: osimage.MediaTypeConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}, packs, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := osimage.Parse(desc, raw, config)
	if err != nil {
		t.Fatal(err)
	}
	return img, s
}

func none(int) bool { return false }

func TestSegments(t *testing.T) {
	img, s := artifact(t, nil)
	got := make([]byte, size)
	err := Segments(context.Background(), img, none, s, func(i int, data []byte) error {
		copy(got[i*osimage.SegmentSize:], data)
		return nil
	})
	if err != nil || !bytes.Equal(got, s.raw) {
		t.Errorf("the segments do not give the image: %v", err)
	}
	if s.total != img.CompressedSize() || s.closed != 3 {
		t.Errorf("announced %d of %d bytes, closed %d of 3", s.total, img.CompressedSize(), s.closed)
	}
}

func TestOnlyLackingSegments(t *testing.T) {
	img, s := artifact(t, nil)
	var got []int
	has := func(i int) bool { return i != 3 }
	err := Segments(context.Background(), img, has, s, func(i int, _ []byte) error {
		got = append(got, i)
		return nil
	})
	if diff := cmp.Diff([]int{3}, got); err != nil || diff != "" {
		t.Errorf("segments: %v %s", err, diff)
	}
	if diff := cmp.Diff([]int{1}, s.opened); diff != "" {
		t.Errorf("packs opened: %s", diff)
	}
	if Size(img, has) != img.Packs()[1].Size {
		t.Errorf("Size = %d", Size(img, has))
	}
}

func TestFetch(t *testing.T) {
	img, s := artifact(t, nil)
	if err := Fetch(context.Background(), img, func(i int) bool { return i > 3 }, s); err != nil || len(s.opened) != 0 {
		t.Errorf("Fetch = %v, opened %v", err, s.opened)
	}
	slices.Sort(s.kept)
	if diff := cmp.Diff([]int{0, 1}, s.kept); diff != "" || s.total != img.Packs()[0].Size+img.Packs()[1].Size {
		t.Errorf("kept %s, announced %d bytes", diff, s.total)
	}
	s.fail[1] = os.ErrPermission
	if err := Fetch(context.Background(), img, none, s); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a pack that cannot be kept: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Fetch(ctx, img, none, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestCorruptPacks(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	huge, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	other := make([]byte, 2*osimage.SegmentSize)
	bomb := func() []byte {
		var b bytes.Buffer
		huge.Reset(&b)
		if _, err := huge.Write(make([]byte, 32<<20)); err != nil {
			t.Fatal(err)
		}
		if err := huge.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	for want, change := range map[string]func([]byte) []byte{
		"unexpected EOF":                             func(f []byte) []byte { return f[:len(f)-5] },
		"segment 2: EOF":                             func([]byte) []byte { return []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0} }, // skippable frame
		"magic number mismatch":                      func([]byte) []byte { return []byte("this is not zstd") },
		"another digest than the signed config says": func([]byte) []byte { return encoder.EncodeAll(other, nil) },
		"more in it than its segments":               func(f []byte) []byte { return append(f, encoder.EncodeAll([]byte{1}, nil)...) },
		"window size exceeded":                       func([]byte) []byte { return bomb },
	} {
		img, s := artifact(t, func(n int, f []byte) []byte {
			if n == 1 {
				return change(bytes.Clone(f))
			}
			return f
		})
		var put []int
		err := Segments(context.Background(), img, none, s, func(i int, data []byte) error {
			if !bytes.Equal(data, s.raw[i*osimage.SegmentSize:][:len(data)]) {
				t.Errorf("%s: segment %d was handed on with wrong bytes", want, i)
			}
			put = append(put, i)
			return nil
		})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want ErrCorrupt with %q", err, want)
		}
		if len(put) < 2 || put[len(put)-1] > 3 {
			t.Errorf("%s: segments handed on: %v", want, put)
		}
		if s.closed != len(s.opened) {
			t.Errorf("%s: opened %d packs, closed %d", want, len(s.opened), s.closed)
		}
	}
}

func TestErrorsEndTheWork(t *testing.T) {
	img, s := artifact(t, nil)
	s.fail[1] = os.ErrPermission
	if err := Segments(context.Background(), img, none, s, func(int, []byte) error { return nil }); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a pack that cannot be opened: %v", err)
	}
	img, s = artifact(t, nil)
	if err := Segments(context.Background(), img, none, s, func(int, []byte) error { return os.ErrClosed }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a segment that cannot be put: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Segments(ctx, img, none, s, func(int, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
