package slot

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheck(t *testing.T) {
	img := image(1, 6*segment+512)
	for name, tt := range map[string]struct {
		damage func(content []byte, m *medium)
		want   []Range
	}{
		"whole":            {want: nil},
		"the first byte":   {func(c []byte, _ *medium) { c[0] ^= 1 }, []Range{{First: 0, Last: segment - 1}}},
		"the last byte":    {func(c []byte, _ *medium) { c[6*segment+511] ^= 1 }, []Range{{First: 6 * segment, Last: 6*segment + 511}}},
		"after the image":  {func(c []byte, _ *medium) { c[6*segment+512] ^= 1 }, nil},
		"neighbours":       {func(c []byte, _ *medium) { c[2*segment-1] ^= 1; c[2*segment] ^= 1 }, []Range{{First: segment, Last: 3*segment - 1}}},
		"two places":       {func(c []byte, _ *medium) { c[0] ^= 1; c[2*segment] ^= 1 }, []Range{{First: 0, Last: segment - 1}, {First: 2 * segment, Last: 3*segment - 1}}},
		"zeros and others": {func(c []byte, _ *medium) { clear(c[:segment]); c[segment] ^= 1 }, []Range{{First: 0, Last: segment - 1, Zero: true}, {First: segment, Last: 2*segment - 1}}},
		"unreadable": {func(_ []byte, m *medium) {
			m.readBack = func(_ []byte, off int64) error {
				if off == 3*segment {
					return errors.New("medium error")
				}
				return nil
			}
		}, []Range{{First: 3 * segment, Last: 4*segment - 1, Unreadable: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			content := append(bytes.Clone(img), make([]byte, segment)...)
			faults := &medium{}
			if tt.damage != nil {
				tt.damage(content, faults)
			}
			m := newMedium(t, content)
			m.readBack = faults.readBack
			got, err := Check(context.Background(), m, want(img), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ranges (-want +got):\n%s", diff)
			}
			if m.written != 0 || m.syncs != 0 {
				t.Error("checking wrote something")
			}
		})
	}
}

func TestCheckOfASlotThatIsTooSmall(t *testing.T) {
	img := image(1, 3*segment)
	m := newMedium(t, img[:2*segment])
	got, err := Check(context.Background(), m, want(img), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Range{{First: 2 * segment, Last: 3*segment - 1, Unreadable: true}}, got); diff != "" {
		t.Errorf("ranges (-want +got):\n%s", diff)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	img := image(1, 3*segment)
	if got, err := Check(ctx, newMedium(t, img), want(img), nil); !errors.Is(err, context.Canceled) || got != nil {
		t.Errorf("Check = %v, %v; want the context's error and no verdict", got, err)
	}
}
