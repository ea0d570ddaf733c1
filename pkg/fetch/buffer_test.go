package fetch

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// put fetches content into a buffer in two goes.
func put(t *testing.T, pool *buffers, data []byte) *buffer {
	t.Helper()
	b := pool.get(ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
	w, err := b.begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range [][]byte{data[:len(data)/2], data[len(data)/2:]} {
		if _, err := w.(filling).ReadFrom(bytes.NewReader(part)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(ctx, b.desc.Size, b.desc.Digest); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBuffersAreUsedAgain(t *testing.T) {
	var pool buffers
	long, short := bytes.Repeat([]byte("long "), 100), []byte("short")
	first := put(t, &pool, long)
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	// One piece came back, so the second of two at a time is new.
	a, b := put(t, &pool, short), put(t, &pool, long)
	for want, r := range map[string]io.Reader{string(short): a, string(long): b} {
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	if cap(a.data) < len(long) {
		t.Error("the memory was not used again")
	}
}

func TestBufferRefuses(t *testing.T) {
	var pool buffers
	b := put(t, &pool, []byte("content"))
	w := filling{b}
	if _, err := w.Write([]byte("!")); !errors.Is(err, errLength) {
		t.Errorf("one byte too many: %v", err)
	}
	if n, err := w.ReadFrom(bytes.NewReader([]byte("!"))); n != 0 || err != nil {
		t.Errorf("read %d bytes too many, %v", n, err)
	}
	if err := w.Commit(ctx, b.desc.Size, digest.FromString("other")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("other content: %v", err)
	}
	if err := w.Truncate(8); !errdefs.IsInvalidArgument(err) {
		t.Errorf("longer than it is: %v", err)
	}
	if err := errors.Join(w.Truncate(3), w.Commit(ctx, 3, digest.FromString("con"))); err != nil {
		t.Errorf("cut short: %v", err)
	}
}
