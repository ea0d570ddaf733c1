package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// settler is what the end of a boot changes of the boot state (boot.Store).
type settler interface {
	Load() (boot.State, []boot.Problem, error)
	Commit(booted device.Slot) error
	FallBack() error
	Acknowledge() error
	Settle() error
	Repair() error
}

// Settlement is everything that Settle needs of the machine.
type Settlement struct {
	Booted device.Boot
	Lock   func() (release func() error, err error)
	Boot   settler
	Ledger *ledger.Store
	// Gate runs the health gate against a baseline.
	Gate func(ctx context.Context, b health.Baseline) health.Report
	// System says what the system itself lacks to have come up: which of the units
	// that its image requires do not run; empty when nothing. Workloads are no part
	// of it.
	System func(ctx context.Context) string
	// Excuse names what is wrong with the machine rather than with the system, and
	// so no other rung of the ladder would cure; empty when nothing.
	Excuse string
	// Rescue reports whether there is a rescue system to come down to.
	Rescue func() bool
	// Hooks are what else belongs to a verdict.
	Hooks Hooks
	Log   *slog.Logger
}

// Action is what Settle did.
type Action string

// The actions.
const (
	Nothing      Action = "nothing to do"
	Kept         Action = "committed"
	WentBack     Action = "rolled back" // the machine must reboot now
	Acknowledged Action = "recorded the fall back"
	Unproven     Action = "not committed"
	Failed       Action = "did not come up" // the machine must reboot now, on one try less
)

// Verdict is the outcome of Settle.
type Verdict struct {
	Action Action
	Slot   device.Slot // what the action is about
	Reason string
	Report *health.Report // nil when the gate was not asked
}

// Settle ends a boot: a trial is committed when the gate is green, or its failure
// is recorded and the boot state goes back; a fall back that GRUB made is
// recorded. A proven system that came up gets all its tries back; one whose own
// units do not run does not, and GRUB goes down the ladder. The caller reboots
// when the verdict says WentBack or Failed.
//
// What is recorded comes before what is changed, except at a commit, where the
// floor rises only after the boot state holds. A ledger that cannot be written
// never keeps a machine on a bad slot, and neither does a hook.
//
// After a fall back the gate looks at the proven system as well, when all is settled
// and the lock is free again; what it says is recorded and changes nothing.
func Settle(ctx context.Context, m Settlement) (Verdict, error) {
	v, err := m.decide(ctx)
	if err == nil && v.Action == Acknowledged && v.Slot == m.Booted.Slot.Other() {
		v = m.lookBack(ctx, v)
	}
	return v, err
}

// decide is Settle under the lock.
func (m Settlement) decide(ctx context.Context) (v Verdict, err error) {
	release, err := m.Lock()
	if err != nil {
		return Verdict{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	state, problems, err := m.Boot.Load()
	for _, p := range problems {
		m.Log.Warn("boot state", "problem", p.String())
	}
	unknown := errors.Is(err, boot.ErrUnknown)
	if err != nil && !unknown {
		return Verdict{}, err
	}
	booted := m.Booted.Slot
	switch {
	case unknown:
		return m.adopt(ctx, "no copy of the boot state was valid")
	case state.Phase == boot.Trial && booted == state.Rootfs:
		return m.judge(ctx)
	case state.Phase == boot.Trial && m.Booted.Kind == boot.KindUnsaved:
		return m.refuseTrial(state)
	case state.Phase == boot.Trial:
		return Verdict{Action: Nothing, Slot: state.Rootfs, Reason: "slot " + string(state.Rootfs) + " is armed; it starts at the next boot"}, nil
	case state.Phase == boot.FellBack && booted != state.Rootfs && m.Booted.Kind != boot.KindOther:
		// The failed system still runs: the reboot is yet to come.
		return m.acknowledge(state)
	}
	if lacks := m.System(ctx); lacks != "" && ctx.Err() == nil {
		if v, down := m.giveUp(state, lacks); down {
			return v, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return Verdict{}, err
	}
	switch {
	case state.Phase == boot.FellBack && booted == state.Rootfs:
		v, err := m.acknowledge(state)
		m.Hooks.back(ctx, m.Log, booted)
		if err != nil {
			// The failure stays to be recorded, and the system came up all the same.
			err = errors.Join(err, mild(m.Log, m.Boot.Settle()))
		}
		return v, err
	case state.Phase == boot.FellBack:
		if v, err := m.acknowledge(state); err != nil {
			return v, err
		}
		return m.adopt(ctx, fmt.Sprintf("slot %s could not be started", state.Rootfs))
	case booted != state.Rootfs && m.Booted.Kind == boot.KindOther && state.Other:
		return m.takeOver(ctx, state)
	case booted != state.Rootfs:
		return m.adopt(ctx, fmt.Sprintf("slot %s could not be started", state.Rootfs))
	}
	return m.settle(ctx)
}

// settle ends the boot of the committed slot: it gets everything back. A cut
// between a commit and the ledger is mended here.
func (m Settlement) settle(ctx context.Context) (Verdict, error) {
	booted := m.Booted.Slot
	v := Verdict{Action: Nothing, Slot: booted, Reason: "slot " + string(booted) + " is committed"}
	if m.Booted.Kind == boot.KindPristine {
		v.Reason += ", and runs with a pristine /etc: with its own it did not come up"
		m.note("pristine", "the system did not come up with the /etc of this machine"+m.lastReason())
	}
	return v, errors.Join(m.record(ctx, booted), mild(m.Log, m.Boot.Settle()))
}

// takeOver commits the other slot, which was committed before, after the slot that
// the boot state names has not come up on any of its rungs.
func (m Settlement) takeOver(ctx context.Context, state boot.State) (Verdict, error) {
	booted := m.Booted.Slot
	v := Verdict{Action: Kept, Slot: booted, Reason: fmt.Sprintf("slot %s did not come up", state.Rootfs) + m.lastReason()}
	if err := mild(m.Log, m.Boot.Commit(booted)); err != nil {
		return v, err
	}
	m.note("adopted", v.Reason)
	m.Hooks.back(ctx, m.Log, booted)
	return v, m.record(ctx, booted)
}

// giveUp leaves a proven system whose own units do not run to the ladder: its try
// stays taken. It does not where that leads nowhere: where GRUB does not count,
// where the cause is not the system, and where nothing stands below. A machine
// that can still be reached is better than one that restarts for ever.
func (m Settlement) giveUp(state boot.State, lacks string) (Verdict, bool) {
	last := state.Rung == boot.RungOther || state.Rung == boot.RungPristine && !state.Other
	switch {
	case m.Booted.Kind == boot.KindUnsaved:
		m.Log.Error("the system did not come up, and GRUB cannot count that", "reason", lacks)
	case m.Excuse != "":
		m.Log.Error("the system did not come up, for want of something else", "reason", lacks, "cause", m.Excuse)
	case last && !m.Rescue():
		m.Log.Error("the system did not come up, and nothing is left to go down to", "reason", lacks)
	default:
		m.note("not up", lacks)
		return Verdict{Action: Failed, Slot: m.Booted.Slot, Reason: lacks}, true
	}
	return Verdict{}, false
}

// note adds to the history, which may be lost.
func (m Settlement) note(kind, reason string) {
	err := m.Ledger.Update(func(l *ledger.Ledger) error {
		l.Add(ledger.Event{At: time.Now().UTC(), Kind: kind, Slot: m.Booted.Slot, Reason: reason})
		return nil
	})
	if err != nil {
		m.Log.Warn("the history is not kept", "event", kind, "reason", reason, "error", err)
	}
}

// lastReason is why the boot before did not come up, if it could tell.
func (m Settlement) lastReason() string {
	l, err := m.Ledger.Load()
	if err != nil || len(l.History) == 0 {
		return ""
	}
	if last := l.History[len(l.History)-1]; last.Kind == "not up" {
		return ": " + last.Reason
	}
	return ""
}

// judge asks the gate about the system on trial.
func (m Settlement) judge(ctx context.Context) (Verdict, error) {
	booted := m.Booted.Slot
	report := m.Gate(ctx, m.baseline(booted))
	if err := ctx.Err(); err != nil {
		// The gate was interrupted, not failed: the next boot judges again.
		return Verdict{}, err
	}
	v := Verdict{Slot: booted, Report: &report, Reason: report.Reason()}
	if !report.Green {
		m.fail(booted, v.Reason)
		m.Log.Error("the gate is red", "slot", booted, "reason", v.Reason)
		m.Hooks.red(ctx, m.Log, v.Reason)
		v.Action = WentBack
		err := mild(m.Log, m.Boot.FallBack())
		m.Hooks.back(ctx, m.Log, booted.Other())
		return v, err
	}
	return m.keep(ctx, v)
}

// keep commits the running slot, which passed the gate.
func (m Settlement) keep(ctx context.Context, v Verdict) (Verdict, error) {
	booted := m.Booted.Slot
	if err := mild(m.Log, m.Boot.Commit(booted)); err != nil {
		return v, err
	}
	v.Action = Kept
	err := m.record(ctx, booted)
	m.Log.Info("the system is committed", "slot", booted, "gate", v.Report.Duration.Round(time.Millisecond))
	m.Hooks.green(ctx, m.Log)
	return v, err
}

// acknowledge records that GRUB, or the gate before the reboot, gave the trial up.
func (m Settlement) acknowledge(state boot.State) (Verdict, error) {
	failed := state.Rootfs.Other()
	v := Verdict{Action: Acknowledged, Slot: failed, Reason: "it used up its boots without reaching the gate's verdict"}
	err := m.Ledger.Update(func(l *ledger.Ledger) error {
		if e := l.Slot(failed); e != nil && e.State == ledger.Failed {
			if f := l.FailureOf(e.Digest); f != nil {
				v.Reason = f.Reason
			}
			return nil
		}
		l.Fail(failed, v.Reason, time.Now().UTC())
		return nil
	})
	if err != nil {
		return Verdict{}, err
	}
	return v, mild(m.Log, m.Boot.Acknowledge())
}

// refuseTrial ends a trial that GRUB never took because it could not save.
func (m Settlement) refuseTrial(state boot.State) (Verdict, error) {
	v := Verdict{Action: Acknowledged, Slot: state.Rootfs, Reason: "GRUB could not save the boot state, so the trial was not taken"}
	m.fail(state.Rootfs, v.Reason)
	if err := mild(m.Log, m.Boot.FallBack()); err != nil {
		return Verdict{}, err
	}
	return v, mild(m.Log, m.Boot.Acknowledge())
}

// adopt commits the running slot when the boot state names another one, or none,
// and the machine is fit. Otherwise all stays: GRUB finds its way again.
func (m Settlement) adopt(ctx context.Context, reason string) (Verdict, error) {
	booted := m.Booted.Slot
	report := m.Gate(ctx, health.Baseline{})
	v := Verdict{Action: Unproven, Slot: booted, Report: &report, Reason: reason + "; " + report.Reason()}
	if err := ctx.Err(); err != nil || !report.Green {
		return v, err
	}
	v.Reason = reason
	v, err := m.keep(ctx, v)
	if v.Action != Kept {
		return v, err
	}
	return v, errors.Join(err, m.Ledger.Update(func(l *ledger.Ledger) error {
		l.Add(ledger.Event{At: time.Now().UTC(), Kind: "adopted", Slot: booted, Reason: reason})
		return nil
	}))
}

// record brings everything else up to a commit of the boot state, once: first what
// the slot's workloads need is kept, and then the ledger says that it is committed.
// After a cut between them the next boot does both.
func (m Settlement) record(ctx context.Context, s device.Slot) error {
	l, err := m.Ledger.Load()
	e := l.Slot(s)
	if e != nil && e.State == ledger.Committed {
		return nil
	}
	m.Hooks.kept(ctx, m.Log)
	if err != nil {
		m.Log.Warn("the commit is not recorded", "error", err)
	}
	if e == nil {
		return nil
	}
	return m.Ledger.Update(func(l *ledger.Ledger) error { return l.Commit(s, time.Now().UTC()) })
}

// fail records a failure; that it cannot be recorded must not keep the machine
// on the slot that failed.
func (m Settlement) fail(s device.Slot, reason string) {
	err := m.Ledger.Update(func(l *ledger.Ledger) error {
		l.Fail(s, reason, time.Now().UTC())
		return nil
	})
	if err != nil {
		m.Log.Error("the failure is not recorded", "slot", s, "reason", reason, "error", err)
	}
}

// mild lets a change pass that is in effect in one copy only; Repair mends the
// other one at the next boot.
func mild(log *slog.Logger, err error) error {
	if errors.Is(err, boot.ErrOneCopy) {
		log.Warn("boot state", "error", err)
		return nil
	}
	return err
}
