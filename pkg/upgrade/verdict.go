package upgrade

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// hookLimit is how long a hook may take when Hooks does not say.
const hookLimit = time.Minute

// Hooks are told of a verdict; nil is nobody. They change nothing of it: what they
// return is logged, and a hook that has not returned after Limit is left behind.
type Hooks struct {
	// Kept keeps what the committed slot's workloads need, so that nothing that prunes
	// takes it away. It may be called again for the same commit.
	Kept func(ctx context.Context) error
	// Green follows a commit, with everything recorded.
	Green func(ctx context.Context) error
	// Red follows a gate that was not passed, with the reason recorded. The slot that
	// failed is still the one on trial.
	Red func(ctx context.Context, reason string) error
	// Back follows a fall back, with the boot state settled: on the slot that failed, and
	// again on the slot that the machine came back to. It readies that slot's workloads.
	Back  func(ctx context.Context, slot device.Slot) error
	Limit time.Duration // of each; 0 is a minute
}

func (h Hooks) kept(ctx context.Context, log *slog.Logger) { h.call(ctx, log, "kept", h.Kept) }

func (h Hooks) green(ctx context.Context, log *slog.Logger) { h.call(ctx, log, "green", h.Green) }

func (h Hooks) red(ctx context.Context, log *slog.Logger, reason string) {
	if h.Red != nil {
		h.call(ctx, log, "red", func(ctx context.Context) error { return h.Red(ctx, reason) })
	}
}

func (h Hooks) back(ctx context.Context, log *slog.Logger, s device.Slot) {
	if h.Back != nil {
		h.call(ctx, log, "back", func(ctx context.Context) error { return h.Back(ctx, s) })
	}
}

// call returns when hook has, or its time is over, even if it does not heed ctx.
func (h Hooks) call(ctx context.Context, log *slog.Logger, name string, hook func(context.Context) error) {
	if hook == nil {
		return
	}
	limit := h.Limit
	if limit == 0 {
		limit = hookLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- hook(ctx) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("it has not ended: %w", ctx.Err())
	}
	if err != nil {
		log.Warn("what follows the verdict went wrong", "hook", name, "error", err)
	}
}

// lookBack asks the gate about the proven system that the machine fell back to: by
// what was recorded on it when the upgrade that failed was staged. Nothing follows
// from the answer but a line of the history: below a system that comes up there is
// nothing better for its workloads.
func (m Settlement) lookBack(ctx context.Context, v Verdict) Verdict {
	report := m.Gate(ctx, m.baseline(v.Slot))
	if ctx.Err() != nil {
		return v
	}
	v.Report = &report
	if report.Green {
		return v
	}
	reason := report.Reason()
	m.Log.Error("not everything is as it was before the upgrade", "slot", m.Booted.Slot, "reason", reason)
	release, err := m.Lock()
	if err != nil {
		m.Log.Warn("the history is not kept", "event", ledger.NotAsBefore, "error", err)
		return v
	}
	m.note(ledger.NotAsBefore, reason)
	if err := release(); err != nil {
		m.Log.Warn("giving the lock back", "error", err)
	}
	return v
}

// baseline is what staging recorded for this slot's first boot.
func (m Settlement) baseline(s device.Slot) health.Baseline {
	l, err := m.Ledger.Load()
	if err != nil {
		m.Log.Warn("what ran before the upgrade is unknown", "error", err)
	}
	if e := l.Slot(s); e != nil && e.Baseline != nil {
		return *e.Baseline
	}
	return health.Baseline{}
}
