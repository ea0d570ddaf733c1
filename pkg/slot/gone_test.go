package slot

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// fading answers a number of calls, and then none: the device is gone.
type fading struct {
	Medium
	left int
}

func (f *fading) gone() bool {
	f.left--
	return f.left < 0
}

func (f *fading) WriteAt(p []byte, off int64) (int, error) {
	if f.gone() {
		return 0, unix.ENODEV
	}
	return f.Medium.WriteAt(p, off)
}

func (f *fading) ReadBackAt(p []byte, off int64) (int, error) {
	if f.gone() {
		return 0, unix.ENODEV
	}
	return f.Medium.ReadBackAt(p, off)
}

func (f *fading) Sync() error {
	if f.gone() {
		return unix.ENODEV
	}
	return f.Medium.Sync()
}

// TestDeviceGoesAway: whichever call is the last one that a device answers, nothing
// is proven, and what is on it has no beginning, unless it is the old image, still
// untouched, or the new one, whole. When the device is back, the same again goes on.
func TestDeviceGoesAway(t *testing.T) {
	old, img := image(1, 3*segment), image(2, 3*segment)
	for calls := 0; ; calls++ {
		m := newMedium(t, old)
		w, err := upgrade(&fading{m, calls}, img, source(img))
		if err == nil {
			if calls < 30 || !w.Valid() {
				t.Errorf("with %d calls the slot is written: %+v", calls, w)
			}
			return
		}
		if !errors.Is(err, ErrMedium) || !errors.Is(err, unix.ENODEV) || w.Valid() {
			t.Errorf("after %d calls: %+v, %v", calls, w, err)
		}
		now := content(t, m, len(img))
		if !isZero(now[:sector]) && !bytes.Equal(now, old) && !bytes.Equal(now, img) {
			t.Errorf("after %d calls the slot has a beginning and is not whole", calls)
		}
		if w, err := upgrade(m, img, source(img)); err != nil || !w.Valid() || !bytes.Equal(content(t, m, len(img)), img) {
			t.Errorf("after %d calls, and once more: %+v, %v", calls, w, err)
		}
	}
}
