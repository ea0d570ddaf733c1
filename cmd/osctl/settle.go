package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/status"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// bootComplete is reached when everything that is ordered before it, osctl-health
// among it, succeeded.
const bootComplete = "boot-complete.target"

type gateOptions struct {
	machineFlags
	json     bool
	verbose  bool
	noReboot bool
	shutdown bool
}

func healthCmd(s streams) *cobra.Command {
	var o gateOptions
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Run the health gate and report, without acting on it",
		Long: `health runs the checks that decide over a new system: systemd, the required
units, containerd, every workload that ran when the upgrade was staged, and the
machine's own checks: the probes of /etc/osctl/health.yaml and the scripts of
/etc/greenboot/check. What hangs is killed with all that it has started.

It ends with 0 when the gate is green and with 1 when it is red; checks that are only
wanted are warnings. --json has a schema: docs/health.schema.json.

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runHealth(cmd.Context(), o, s) },
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print the report as JSON")
	cmd.Flags().BoolVar(&o.verbose, "verbose", false, "the slowest check first, and say on stderr when a check changes")
	return cmd
}

func settleCmd(s streams) *cobra.Command {
	var o gateOptions
	cmd := &cobra.Command{
		Use:   "settle",
		Short: "End a trial: commit it when the gate is green, else go back and reboot",
		Long: `settle is what osctl-settle.service runs at the end of every boot. A committed
system that came up gets its tries back; one whose required units do not run is
restarted on one try less, and GRUB goes down to the next rung when none is left.

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.shutdown {
				return runGiveBack(cmd.Context(), o, s)
			}
			return runSettle(cmd.Context(), o, s)
		},
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.shutdown, "shutdown", false, "give the try of this boot back, once: the machine is shut down in good order (what osctl-shutdown.service runs)")
	cmd.Flags().BoolVar(&o.noReboot, "no-reboot", false, "leave the reboot after a rollback to the caller")
	return cmd
}

// gateReport is the answer of health --json, and what health leaves for settle.
type gateReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	health.Report
}

func (m *machine) reportPath() string { return filepath.Join(m.config.RuntimeDir, "health.json") }

func runHealth(ctx context.Context, o gateOptions, s streams) error {
	m, err := o.open(s)
	if err != nil {
		return err
	}
	if o.verbose {
		m.log = logger(s, slog.LevelInfo)
	}
	report := gateReport{APIVersion: apiVersion, Kind: "Health", Report: m.watch(ctx, m.gate(m.baseline()))}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.saveReport(report); err != nil {
		m.log.Warn("the report is not kept for settle", "error", err)
	}
	m.announce(ctx)
	if o.json {
		err = printJSON(s.out, report)
	} else {
		err = printReport(s.out, report.Report, o.verbose)
	}
	if err == nil && !report.Green {
		err = exitError(exitFailed)
	}
	return err
}

// baseline is what the running system has to be like: what was recorded for its first
// boot, and on the boot after a fall back what was recorded on it when the upgrade that
// failed was staged.
func (m *machine) baseline() health.Baseline {
	l, err := m.ledger.Load()
	if err != nil {
		m.log.Warn("what ran before the upgrade is unknown", "error", err)
	}
	recordedFor := m.booted.Slot
	if m.boot != nil {
		if state, _, err := m.boot.Load(); err == nil && state.Phase == boot.FellBack && state.Rootfs == m.booted.Slot {
			recordedFor = m.booted.Slot.Other()
		}
	}
	if e := l.Slot(recordedFor); e != nil && e.Baseline != nil {
		return *e.Baseline
	}
	return health.Baseline{}
}

func (m *machine) saveReport(r gateReport) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.config.RuntimeDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(m.reportPath(), data, 0o644)
}

// readReport is what osctl-health found on this boot.
func (m *machine) readReport() (gateReport, error) {
	var kept gateReport
	data, err := os.ReadFile(m.reportPath())
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("the report of osctl-health cannot be read", "error", err)
	}
	return kept, err
}

// lastLook is how long everything has to hold before a commit, after osctl-health
// found that it does.
const lastLook = time.Second

// settleGate is the gate of settle: a red report of this boot's osctl-health
// stands; otherwise the gate runs (again, and then in seconds), and everything
// that is ordered before boot-complete.target must have succeeded as well.
func (m *machine) settleGate(ctx context.Context, b health.Baseline) health.Report {
	kept, err := m.readReport()
	if err == nil && !kept.Green {
		return kept.Report
	}
	options := m.gate(b)
	if err == nil {
		// It has soaked, and its probes have been asked; this is the last look.
		options.Steady, options.Probes = min(lastLook, options.Steady), nil
		if !slices.Contains(options.RequiredUnits, bootComplete) {
			options.RequiredUnits = append(slices.Clone(options.RequiredUnits), bootComplete)
		}
	}
	return m.watch(ctx, options)
}

// watch runs the gate and keeps its progress for osctl status.
func (m *machine) watch(ctx context.Context, o health.Options) health.Report {
	notes := status.NoteGate(m.config.RuntimeDir)
	silent := false
	note := func(p health.Progress) {
		if err := notes.Note(p); err != nil && !silent {
			silent = true
			m.log.Warn("the gate's progress is not kept", "error", err)
		}
	}
	o.Progress = note
	note(health.Progress{Started: time.Now(), Deadline: o.Deadline, Steady: o.Steady}) // the first look may take long
	m.announce(ctx)
	// What the program holds outlives the gate, and is looked through whenever garbage is
	// collected; at the pace that keeps an upgrade small, that was a quarter of the gate.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	report := health.Run(ctx, o)
	m.endChecks()
	if err := notes.End(); err != nil {
		m.log.Warn("the gate's progress is not ended", "error", err)
	}
	return report
}

// openToSettle opens the machine. Its own configuration may be what keeps it from
// coming up; the ladder has to go on working, so the image's one stands in.
func (o *gateOptions) openToSettle(s streams) (*machine, error) {
	m, err := o.open(s)
	if err != nil && o.config == "" && !errors.Is(err, fs.ErrNotExist) {
		bad := err
		o.config = imageConfig
		if m, err = o.open(s); err == nil {
			m.log.Error("the image's configuration stands in", "error", bad)
		}
	}
	if err != nil {
		return nil, err
	}
	return m, m.err
}

func runSettle(ctx context.Context, o gateOptions, s streams) error {
	m, err := o.openToSettle(s)
	if err != nil {
		return err
	}
	m.log = logger(s, slog.LevelInfo)
	v, err := upgrade.Settle(ctx, upgrade.Settlement{
		Booted: m.booted, Lock: m.lock, Boot: m.boot, Ledger: m.ledger, Gate: m.settleGate, Log: m.log,
		System: m.lacks, Excuse: m.excuse(), Rescue: hasRescue, Hooks: m.hooks(),
	})
	if err != nil && v.Action != upgrade.WentBack {
		return err
	}
	m.mendLedger()
	m.announce(ctx)
	m.pronounce(v, s)
	switch v.Action {
	case upgrade.Failed:
		// This restart is no impatience: its try stays taken.
		err = errors.Join(err, m.markGiven())
		if !o.noReboot {
			err = errors.Join(err, m.rebootForGood(ctx))
		}
	case upgrade.WentBack:
		// Also when the boot state could not be changed: the next boot takes a try
		// away, and the last one leads back.
		if !o.noReboot {
			err = errors.Join(err, m.rebootForGood(ctx))
		}
	case upgrade.Unproven:
		err = errors.Join(err, exitError(exitFailed))
	}
	return err
}
