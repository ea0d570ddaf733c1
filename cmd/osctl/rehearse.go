package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/rehearsal"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// insideArg makes this program the first process of a rehearsal's container.
const insideArg = "rehearsal-inside"

// rehearseFlag says whether the written system is rehearsed.
type rehearseFlag struct{ mode string }

func (f *rehearseFlag) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.mode, "rehearse", string(rehearsal.Auto),
		"try the new system's programs on this machine's /etc before it is armed: `auto` (for a minute at most), always, never")
	flags.Lookup("rehearse").NoOptDefVal = string(rehearsal.Always)
}

// parse reads the flag; a command that has none rehearses nothing.
func (f rehearseFlag) parse() (rehearsal.Mode, error) {
	if f.mode == "" {
		return rehearsal.Never, nil
	}
	mode, err := rehearsal.ParseMode(f.mode)
	if err != nil {
		return "", usageError{fmt.Errorf("--rehearse: %w", err)}
	}
	return mode, nil
}

// rehearse is what an upgrade does between writing a slot and arming it. report is
// where the report goes; nothing where there was no rehearsal.
func (m *machine) rehearse(mode rehearsal.Mode, sink progress.Sink, report **rehearsal.Report) func(context.Context, device.Slot) error {
	if mode == rehearsal.Never {
		return nil
	}
	return func(ctx context.Context, slot device.Slot) error {
		seen, err := m.runRehearsal(ctx, slot)
		if err == nil {
			*report = &seen
		}
		for _, c := range seen.Checks {
			m.tellRehearsal(c, sink)
		}
		refusal := mode.Decide(seen, err)
		if refusal == nil && err != nil {
			m.log.Warn("the new system is armed without a rehearsal", "error", err)
		}
		return refusal
	}
}

func (m *machine) runRehearsal(ctx context.Context, slot device.Slot) (rehearsal.Report, error) {
	o := rehearsal.Options{
		Address: m.config.Containerd.Address, Namespace: m.config.Containerd.Namespace,
		Dir: m.config.RuntimeDir, Args: []string{insideArg},
	}
	var err error
	if o.Program, err = os.Executable(); err != nil {
		return rehearsal.Report{}, fmt.Errorf("%w: %w", rehearsal.ErrUnable, err)
	}
	if o.Target, err = m.system(slot); err != nil {
		return rehearsal.Report{}, fmt.Errorf("%w: %w", rehearsal.ErrUnable, err)
	}
	if m.config.BootedSlot != config.Auto {
		if o.Running, err = m.system(m.booted.Slot); err != nil {
			return rehearsal.Report{}, fmt.Errorf("%w: %w", rehearsal.ErrUnable, err)
		}
	}
	if m.config.EtcDir != "" {
		o.Changes = func() ([]etc.Change, error) { return m.etcOf(slot) }
	}
	return rehearsal.Run(ctx, o)
}

// openLeft opens a slot, also when a rehearsal that was killed still holds it.
func (m *machine) openLeft(slot device.Slot) (upgrade.Target, error) {
	target, err := m.openSlot(slot)
	if !errors.Is(err, disk.ErrBusy) {
		return target, err
	}
	path, failed := m.slotPath(slot)
	if failed != nil {
		return nil, err
	}
	cleared, failed := rehearsal.Clear(context.Background(), rehearsal.Options{
		Address: m.config.Containerd.Address, Namespace: m.config.Containerd.Namespace,
		Dir: m.config.RuntimeDir, Target: rehearsal.System{Device: path},
	})
	if !cleared || failed != nil {
		return nil, errors.Join(err, failed)
	}
	return m.openSlot(slot)
}

// system is what a slot makes of this machine.
func (m *machine) system(slot device.Slot) (s rehearsal.System, err error) {
	if m.config.EtcDir != "" {
		s.Upper = m.upper(slot)
	}
	s.Device, err = m.slotPath(slot)
	return s, err
}

func (m *machine) upper(slot device.Slot) string {
	return filepath.Join(m.config.EtcDir, string(slot), "upper")
}

// etcOf lists what a slot that does not run has of its own in /etc, and what of it
// hides news of the slot's image. The caller has the machine's lock.
func (m *machine) etcOf(slot device.Slot) ([]etc.Change, error) {
	running, err := m.image(m.booted.Slot)
	if err != nil {
		return nil, err
	}
	defer running.Close() //nolint:errcheck // nothing was written
	next, err := m.image(slot)
	if err != nil {
		return nil, err
	}
	defer next.Close() //nolint:errcheck // nothing was written
	return etc.Compare(m.upper(slot), running.Path("etc"), next.Path("etc"))
}

// tellRehearsal says how a check ended: as progress, and what a person should know of
// an upgrade that goes on as a warning.
func (m *machine) tellRehearsal(c rehearsal.Check, sink progress.Sink) {
	text := fmt.Sprintf("rehearsal: %s %s", c.Name, c.Status)
	if c.Status == rehearsal.Skipped {
		text += ": " + strings.Join(c.Findings, "; ")
	}
	sink.Say(progress.Rehearse, text)
	if len(c.Notes) > 0 {
		sink.Say(progress.Rehearse, fmt.Sprintf("rehearsal: %s says %d things that hold nothing back, the first: %s", c.Name, len(c.Notes), c.Notes[0]))
	}
	switch c.Status {
	case rehearsal.Known:
		m.log.Warn("a check of the rehearsal fails, as it does in the running system", "check", c.Name, "finding", c.Findings[0])
	case rehearsal.Unfinished:
		m.log.Warn("a check of the rehearsal was not made", "check", c.Name, "reason", c.Findings[0])
	}
}
