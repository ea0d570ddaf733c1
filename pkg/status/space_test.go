package status

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
)

func TestSpace(t *testing.T) {
	s := sources(t)
	s.Sizes = func(slot device.Slot) (int64, int64) {
		return 100, map[device.Slot]int64{device.SlotA: 10, device.SlotB: 20}[slot]
	}
	want := Held{Artifacts: 1, Images: 2, Layers: 3}
	s.Held = func(ctx context.Context) (Held, error) {
		if _, limited := ctx.Deadline(); !limited {
			t.Error("containerd may take for ever to answer")
		}
		return want, nil
	}
	shot := Take(context.Background(), s)
	if shot.Booted.Size != 20 || shot.Other.Size != 10 || shot.Booted.SlotSize != 100 || shot.Other.SlotSize != 100 {
		t.Errorf("slots %+v, %+v", shot.Booted, shot.Other)
	}
	if shot.Space == nil || shot.Space.Held == nil || *shot.Space.Held != want || len(shot.Problems) != 0 {
		t.Errorf("space %+v, problems %q", shot.Space, shot.Problems)
	}

	// Without an answer it is a problem; the rest is there all the same.
	s.Held = func(context.Context) (Held, error) { return Held{}, errors.New("no answer") }
	shot = Take(context.Background(), s)
	if shot.Space == nil || shot.Space.Held != nil || !slices.Equal(shot.Problems, []string{"what the workloads take is unknown: no answer"}) {
		t.Errorf("space %+v, problems %q", shot.Space, shot.Problems)
	}

	// A containerd that did not answer is not waited for again, and one problem is enough.
	s.Containers = func(context.Context) ([]health.Container, error) { return nil, errors.New("no answer") }
	s.Held = func(context.Context) (Held, error) { t.Error("it was asked again"); return Held{}, nil }
	shot = Take(context.Background(), s)
	if shot.Space == nil || len(shot.Problems) != 1 || !strings.Contains(shot.Problems[0], "the workloads are unknown") {
		t.Errorf("space %+v, problems %q", shot.Space, shot.Problems)
	}
	s.Containers = nil
	Take(context.Background(), s)
}
