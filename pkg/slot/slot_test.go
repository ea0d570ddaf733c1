package slot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
)

const segment = 64 << 10

// medium is a disk.Device that records what is written and can lie.
type medium struct {
	Medium
	log      []string
	written  int64
	syncs    int
	readBack func(p []byte, off int64) error
	failSync int // the sync with this number fails
	failAt   int64
}

func (m *medium) WriteAt(p []byte, off int64) (int, error) {
	if m.failAt > 0 && off <= m.failAt && m.failAt < off+int64(len(p)) {
		return 0, errors.New("input/output error")
	}
	m.log = append(m.log, fmt.Sprintf("write %d", off))
	m.written += int64(len(p))
	return m.Medium.WriteAt(p, off)
}

func (m *medium) Sync() error {
	m.syncs++
	if m.syncs == m.failSync {
		return errors.New("sync failed")
	}
	m.log = append(m.log, "sync")
	return m.Medium.Sync()
}

func (m *medium) ReadBackAt(p []byte, off int64) (int, error) {
	m.log = append(m.log, fmt.Sprintf("back %d", off))
	n, err := m.Medium.ReadBackAt(p, off)
	if err == nil && m.readBack != nil {
		err = m.readBack(p, off)
	}
	return n, err
}

func newMedium(t *testing.T, content []byte) *medium {
	t.Helper()
	name := filepath.Join(t.TempDir(), "slot")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return &medium{Medium: d}
}

func image(seed byte, size int) []byte {
	p := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func want(img []byte) Want {
	return Want{Slot: device.SlotB, Digest: "sha256:test", Size: int64(len(img)), SegmentSize: segment, SegmentDigest: func(i int) [32]byte {
		return sha256.Sum256(img[i*segment : min((i+1)*segment, len(img))])
	}}
}

func source(img []byte) Source {
	return func(put func(int, []byte) error) error {
		for i := 0; i*segment < len(img); i++ {
			if err := put(i, img[i*segment:min((i+1)*segment, len(img))]); err != nil {
				return err
			}
		}
		return nil
	}
}

func upgrade(m Medium, img []byte, from Source) (Written, error) {
	missing, err := Compare(context.Background(), m, want(img), nil)
	if err != nil {
		return Written{}, err
	}
	return missing.Write(context.Background(), from, nil)
}

func content(t *testing.T, m Medium, size int) []byte {
	t.Helper()
	p := make([]byte, size)
	if _, err := m.ReadBackAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWrite(t *testing.T) {
	img := image(1, 5*segment+512)
	m := newMedium(t, image(2, 8*segment))
	w, err := upgrade(m, img, source(img))
	if err != nil {
		t.Fatal(err)
	}
	if !w.Valid() || w.Slot() != device.SlotB || w.Digest() != "sha256:test" || (Written{}).Valid() {
		t.Errorf("Written = %+v", w)
	}
	if !bytes.Equal(content(t, m, len(img)), img) {
		t.Error("the slot does not hold the image")
	}
}

// unbootable is how the first segment goes: its first block sector after sector, so
// that no tear leaves a superblock of which the rest is gone.
func unbootable() []string {
	var log []string
	for off := 0; off < 4096; off += 512 {
		log = append(log, fmt.Sprintf("write %d", off), "sync")
	}
	return append(log, "write 4096", "sync")
}

// bootable is how it comes back, the other way round.
func bootable() []string {
	log := []string{"write 4096", "sync"}
	for off := 4096 - 512; off >= 0; off -= 512 {
		log = append(log, fmt.Sprintf("write %d", off), "sync")
	}
	return append(log, "back 0")
}

// The order of the package comment, as the medium sees it.
func TestWriteOrder(t *testing.T) {
	img := image(1, 3*segment)
	m := newMedium(t, image(2, 3*segment))
	if _, err := upgrade(m, img, source(img)); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(
		[]string{"back 0", "back 65536", "back 131072"}, // Compare
		unbootable(),
		[]string{"back 65536", "write 65536", "back 131072", "write 131072", "sync", "back 65536", "back 131072"},
		bootable(),
	)
	if diff := cmp.Diff(want, m.log); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// What Compare saw to be zero is not read a second time.
func TestZeroSegmentsAreReadOnce(t *testing.T) {
	img := image(1, 3*segment)
	old := image(2, 3*segment)
	clear(old[segment : 2*segment])
	m := newMedium(t, old)
	if _, err := upgrade(m, img, source(img)); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(
		[]string{"back 0", "back 65536", "back 131072"},
		unbootable(),
		[]string{"write 65536", "back 131072", "write 131072", "sync", "back 65536", "back 131072"},
		bootable(),
	)
	if diff := cmp.Diff(want, m.log); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestUnchangedBlocksAreNotWritten(t *testing.T) {
	img := image(1, 8*segment)
	clear(img[5*segment:]) // zero segments over a fresh, zero slot
	old := bytes.Clone(img)
	old[2*segment+5000] ^= 1 // one changed block of 4 KiB
	m := newMedium(t, old)
	if _, err := upgrade(m, img, source(img)); err != nil {
		t.Fatal(err)
	}
	if want := int64(2*segment + blockSize); m.written != want { // invalidate, restore, the block
		t.Errorf("wrote %d bytes, want %d", m.written, want)
	}
}

func TestInterruptedWriteGoesOn(t *testing.T) {
	img := image(1, 8*segment)
	m := newMedium(t, make([]byte, 8*segment))
	cut := errors.New("power cut")
	_, err := upgrade(m, img, func(put func(int, []byte) error) error {
		for i := range 4 {
			if err := put(i, img[i*segment:(i+1)*segment]); err != nil {
				return err
			}
		}
		return cut
	})
	if !errors.Is(err, cut) {
		t.Fatalf("error = %v", err)
	}
	if !isZero(content(t, m, segment)) {
		t.Error("an interrupted write left a first segment: the slot could boot")
	}
	missing, err := Compare(context.Background(), m, want(img), nil)
	if err != nil || missing.Count() != 5 || missing.Has(0) || !missing.Has(3) || missing.Has(4) {
		t.Fatalf("Compare = %+v, %v; want the first and the last four missing", missing, err)
	}
	if _, err := missing.Write(context.Background(), source(img), nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, m, len(img)), img) {
		t.Error("the slot does not hold the image")
	}
}

func TestACompleteSlotNeedsNothing(t *testing.T) {
	img := image(1, 3*segment)
	m := newMedium(t, img)
	w, err := upgrade(m, img, func(func(int, []byte) error) error { return nil })
	if err != nil || !w.Valid() || !bytes.Equal(content(t, m, len(img)), img) {
		t.Errorf("Write = %v, %v", w, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	img := image(1, 3*segment)
	for name, tt := range map[string]struct {
		medium func(*medium)
		source Source
		want   string
		is     error
	}{
		"a medium that lies": {
			medium: func(m *medium) {
				syncs := &m.syncs
				m.readBack = func(p []byte, off int64) error {
					if off == segment && *syncs > 0 {
						p[7] ^= 1
					}
					return nil
				}
			}, want: "segment 1 (bytes 65536 to 131071) reads back other bytes", is: ErrMedium,
		},
		"a first segment that reads back wrong": {
			medium: func(m *medium) {
				m.readBack = func(p []byte, off int64) error {
					if off == 0 && m.syncs == 19 {
						p[0] ^= 1
					}
					return nil
				}
			}, want: "segment 0", is: ErrMedium,
		},
		"a write error":       {medium: func(m *medium) { m.failAt = 2*segment + 100 }, want: "segment 2: input/output error", is: ErrMedium},
		"a failed first sync": {medium: func(m *medium) { m.failSync = 1 }, want: "making it unbootable: sync failed", is: ErrMedium},
		"a failed sync":       {medium: func(m *medium) { m.failSync = 10 }, want: "syncing: sync failed", is: ErrMedium},
		"a failed last sync":  {medium: func(m *medium) { m.failSync = 19 }, want: "making it bootable: sync failed", is: ErrMedium},
		"a missing segment":   {source: func(put func(int, []byte) error) error { return put(0, img[:segment]) }, want: "segment 1 of 3 never arrived"},
		"a short segment":     {source: func(put func(int, []byte) error) error { return put(1, img[:9]) }, want: "segment 1 has 9 bytes"},
		"a segment too many":  {source: func(put func(int, []byte) error) error { return put(3, img[:segment]) }, want: "segment 3: the image has 3"},
		"other bytes":         {source: source(image(3, 3*segment)), want: "segment 1 (bytes", is: ErrMedium},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMedium(t, make([]byte, 4*segment))
			if tt.medium != nil {
				tt.medium(m)
			}
			from := tt.source
			if from == nil {
				from = source(img)
			}
			w, err := upgrade(m, img, from)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) || w.Valid() {
				t.Errorf("Write = %v, %v; want %q", w, err, tt.want)
			}
		})
	}
}

func TestUnreadableOldContentIsWritten(t *testing.T) {
	img := image(1, 3*segment)
	m := newMedium(t, img)
	m.readBack = func(_ []byte, off int64) error {
		if off == segment && m.syncs == 0 {
			return errors.New("unreadable sector")
		}
		return nil
	}
	if w, err := upgrade(m, img, source(img)); err != nil || !w.Valid() {
		t.Errorf("Write = %v, %v", w, err)
	}
}

func TestCompareRefusesAnImageLargerThanTheSlot(t *testing.T) {
	img := image(1, 2*segment)
	m := newMedium(t, make([]byte, segment))
	if _, err := upgrade(m, img, source(img)); !errors.Is(err, ErrTooSmall) {
		t.Errorf("error = %v", err)
	}
	if len(m.log) != 0 {
		t.Errorf("the slot was touched: %v", m.log)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	img := image(1, 3*segment)
	m := newMedium(t, make([]byte, 3*segment))
	missing, err := Compare(ctx, m, want(img), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = missing.Write(ctx, func(put func(int, []byte) error) error {
		cancel()
		return put(1, img[segment:2*segment])
	}, nil)
	if !errors.Is(err, context.Canceled) || !isZero(content(t, m, 3*segment)) {
		t.Errorf("error = %v", err)
	}
}
