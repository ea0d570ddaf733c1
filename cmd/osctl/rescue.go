package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/rescue"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// networkScript brings the network of the rescue system up.
const networkScript = "/usr/lib/osctl/network"

type rescueOptions struct {
	machineFlags
	progressFlags
	imageFlags
	slot, reference string
	retry           bool
	json            bool
}

func rescueCmd(s streams) *cobra.Command {
	var o rescueOptions
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "In the rescue system: show what happened, and bring the machine back",
		Long: `rescue shows what happened to this machine: the boot state, what each slot should
hold and whether it does, the last failure, the history. Its commands repair, and
need the rescue system, where no slot runs.

` + exitTable(),
		Args: commandsOnly,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRescue(cmd.Context(), o, s) },
	}
	o.machineFlags.add(cmd.Flags())
	o.progressFlags.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	cmd.AddCommand(rescueRepairCmd(s), rescueAutoCmd(s), rescueEtcCmd(s), rescueCheckCmd(s), rescueFormatCmd(s))
	return cmd
}

func rescueRepairCmd(s streams) *cobra.Command {
	var o rescueOptions
	cmd := &cobra.Command{
		Use:   "repair [A|B] [REF]",
		Short: "Bring a slot back, from where its image came, from REF or from a layout",
		Long: `repair pulls what was committed in the slot (default: the one that is to be booted)
once more, by its digest. Another image, named by REF or --from, goes into the
other slot and on trial, if an upgrade would admit it.

` + exitTable(),
		Args: exactArgs(0, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if _, err := device.ParseSlot(arg); err == nil && o.slot == "" {
					o.slot = arg
				} else if o.reference == "" {
					o.reference = arg
				} else {
					return usageError{fmt.Errorf("%q is no slot; usage: %s", args[0], cmd.UseLine())}
				}
			}
			return runRescueRepair(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	o.progressFlags.add(cmd.Flags())
	cmd.Flags().StringVar(&o.from, "from", "", "take the image from an OCI layout `folder or archive`, such as one on a USB stick")
	cmd.Flags().BoolVar(&o.retry, "retry", false, "permit an image that failed its trial here")
	return cmd
}

func rescueAutoCmd(s streams) *cobra.Command {
	var o rescueOptions
	cmd := &cobra.Command{
		Use:   "auto",
		Short: "Try to bring the machine back until that worked, with growing pauses",
		Long: `auto is what the rescue system runs by itself. It ends with 0 when the machine
should start again: a slot was restored, or something newer was installed, or the
slots are whole and have been given another start. It restarts nothing itself.

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runRescueAuto(cmd.Context(), o, s) },
	}
	o.machineFlags.add(cmd.Flags())
	o.progressFlags.add(cmd.Flags())
	return cmd
}

func rescueEtcCmd(s streams) *cobra.Command {
	var o rescueOptions
	cmd := &cobra.Command{
		Use:   "reset-etc A|B",
		Short: "Give a slot the /etc of its image at its next start",
		Long:  "reset-etc orders the reset; it is carried out before the slot's /etc is mounted. The\nmachine's identity and the keys of ssh stay.\n\n" + exitTable(),
		Args:  exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.slot = args[0]
			return runRescueEtc(o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	return cmd
}

// inRescue opens the machine and holds that no slot runs.
func (o rescueOptions) inRescue(s streams) (*machine, error) {
	m, err := o.machineFlags.open(s)
	if err != nil {
		return nil, err
	}
	if m.err != nil {
		return nil, m.err
	}
	if m.booted.Slot != device.Rescue {
		return nil, usageError{fmt.Errorf("slot %s runs, and this command is for the rescue system; osctl upgrade --repair mends the other slot", m.booted.Slot)}
	}
	m.log = logger(s, slog.LevelInfo)
	return m, nil
}

// oneDisk holds that no second disk carries the names of this machine's partitions.
// No slot runs, so nothing tells which disk is this machine's, and what is written to
// the other one is another machine's.
func (m *machine) oneDisk() error {
	labels := map[string]string{
		device.SlotA.Label(): m.config.Slots.A, device.SlotB.Label(): m.config.Slots.B,
		disk.LabelBoot: m.config.BootedSlot, disk.LabelData: m.config.BootedSlot, // where init mounts them
	}
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		if labels[label] != config.Auto {
			continue
		}
		_, err := disk.FindPartition(label)
		if _, several := errors.AsType[*disk.AmbiguousError](err); several {
			return storageError{fmt.Errorf("finding this machine's disk: %w", err)}
		}
	}
	return nil
}

// rescue is what rescue needs of this machine.
func (m *machine) rescue() (rescue.Machine, error) {
	// A policy that cannot be used is an error now, not one of each attempt.
	if _, err := m.verifier(m.config.Reference); err != nil {
		return rescue.Machine{}, err
	}
	return rescue.Machine{
		Facts:     admit.Machine{Product: m.config.Product, Architecture: device.Architecture(), Version: m.release.Version},
		Reference: m.config.Reference, Tries: m.config.Tries, Lock: m.lock, OpenSlot: m.openSlot, Resolve: m.resolve,
		Verifier: func(reference string) (upgrade.Verifier, error) { return m.verifier(reference) }, Boot: m.boot, Ledger: m.ledger, Records: proof.Open(m.config.StateDir), Log: m.log,
	}, nil
}

// contentDir keeps what was downloaded from one attempt to the next.
func (m *machine) contentDir() string { return filepath.Join(m.config.StateDir, "content") }

// resolve finds an image without a containerd: the same store, in process.
func (m *machine) resolve(ctx context.Context, reference string) (rescue.Source, error) {
	if err := fetch.CheckReference(reference); err != nil {
		return rescue.Source{}, err
	}
	v, err := m.verifier(reference)
	if err != nil {
		return rescue.Source{}, err
	}
	if err := os.MkdirAll(m.contentDir(), 0o700); err != nil {
		return rescue.Source{}, storageError{err}
	}
	store, err := fetch.OpenStore(m.contentDir())
	if err != nil {
		return rescue.Source{}, err
	}
	ref, err := fetch.NewRegistry(ctx, store, m.hostsDir()).SetTime(present().Now).Resolve(ctx, reference)
	if err != nil {
		return rescue.Source{}, errors.Join(err, store.Close())
	}
	return rescue.Source{Offer: ref.For(everything{v}), Close: store.Close}, nil
}

// hostsDir is where this machine says how to reach its registries: in the rescue
// system itself, or in what a slot's /etc has beyond its image's. It says where
// bytes come from, never what they have to be.
func (m *machine) hostsDir() string {
	own := m.config.Containerd.HostsDir
	dirs := []string{own}
	if inEtc, ok := strings.CutPrefix(own, "/etc/"); ok && m.config.EtcDir != "" {
		for _, name := range []device.Slot{device.SlotA, device.SlotB} {
			dirs = append(dirs, filepath.Join(m.config.EtcDir, string(name), "upper", inEtc))
		}
	}
	for _, dir := range dirs {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return dir
		}
	}
	return own
}

// rescueResult is the answer of rescue --json.
type rescueResult struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	rescue.Survey
}

// runRescue shows the survey, on a running machine too.
func runRescue(ctx context.Context, o rescueOptions, s streams) error {
	m, err := o.machineFlags.open(s)
	if err != nil {
		return err
	}
	deps, err := m.rescue()
	if err != nil {
		return err
	}
	display, err := o.display(s)
	if err != nil {
		return err
	}
	deps.OpenSlot = m.readSlot
	survey := rescue.Look(ctx, deps, display.sink)
	display.finish()
	if err := ctx.Err(); err != nil {
		return err
	}
	if o.json {
		return printJSON(s.out, rescueResult{apiVersion, "Rescue", survey})
	}
	return printSurvey(s.out, survey)
}

// begin opens the machine for the commands that write slots.
func (o rescueOptions) begin(s streams) (m *machine, deps rescue.Machine, d display, err error) {
	if m, err = o.inRescue(s); err != nil {
		return m, deps, d, err
	}
	if err = m.oneDisk(); err != nil {
		return m, deps, d, err
	}
	if deps, err = m.rescue(); err != nil {
		return m, deps, d, err
	}
	d, err = o.display(s)
	return m, deps, d, err
}

func runRescueRepair(ctx context.Context, o rescueOptions, s streams) (err error) {
	if o.from != "" && o.reference != "" {
		return usageError{errors.New("both --from and a reference; name one source")}
	}
	m, deps, display, err := o.begin(s)
	if err != nil {
		return err
	}
	r, err := o.repair(ctx, m, deps, display)
	display.finish()
	if err != nil {
		return err
	}
	return m.repaired(s, r)
}

// repair chooses the source: a layout, a reference, or where the slot's image came
// from.
func (o rescueOptions) repair(ctx context.Context, m *machine, deps rescue.Machine, d display) (_ rescue.Result, err error) {
	order := rescue.Order{Slot: device.Slot(o.slot), Retry: o.retry, Reference: o.reference}
	var source rescue.Source
	switch {
	case o.from != "":
		layout, err := fetch.OpenLayout(o.from)
		if err != nil {
			return rescue.Result{}, err
		}
		source.Close = layout.Close
		v, err := m.verifier(o.reference)
		if err != nil {
			return rescue.Result{}, errors.Join(err, layout.Close())
		}
		ref, err := layout.Resolve(ctx, "")
		if err != nil {
			return rescue.Result{}, errors.Join(err, layout.Close())
		}
		source.Offer = ref.For(everything{v})
	case o.reference != "":
		if source, err = m.resolve(ctx, o.reference); err != nil {
			return rescue.Result{}, err
		}
	default:
		return rescue.Repair(ctx, deps, order.Slot, d.sink)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	order.Offer = source
	return rescue.Restore(ctx, deps, order, d.sink)
}

// repaired says what was done, and lets the downloads go.
func (m *machine) repaired(s streams, r rescue.Result) error {
	if err := os.RemoveAll(m.contentDir()); err != nil {
		m.log.Warn("downloaded packs are still there", "error", err)
	}
	what := "holds again " + m.config.Product + " " + r.Version + " and is booted next"
	if r.Outcome == rescue.Installed {
		what = "holds " + m.config.Product + " " + r.Version + " and is booted next, on trial"
	}
	_, err := fmt.Fprintf(s.out, "Slot %s %s.\n  digest     %s\n  signed by  %s\n", r.Slot, what, r.Digest, r.SignedBy)
	return err
}

func runRescueAuto(ctx context.Context, o rescueOptions, s streams) error {
	m, deps, display, err := o.begin(s)
	if err != nil {
		return err
	}
	first := true
	r, err := rescue.Watch(ctx, deps, rescue.Watching{
		Network: m.network(s), Wait: wait,
		Tell: func(survey rescue.Survey, r rescue.Result, err error, pause time.Duration) {
			if first {
				_ = printSurvey(s.out, survey) //nolint:errcheck // nobody may look
				first = false
			}
			tell(s.out, r, err, pause)
		},
	}, display.sink)
	display.finish()
	if err != nil {
		return err
	}
	if r.Outcome == rescue.Whole {
		_, err := fmt.Fprintln(s.out, "The slots are whole: the machine is given another start.")
		return err
	}
	return m.repaired(s, r)
}

// network runs the rescue image's script, where there is one.
func (m *machine) network(s streams) func(context.Context) error {
	if _, err := os.Stat(networkScript); err != nil {
		return nil
	}
	return func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, networkScript)
		cmd.Stdout, cmd.Stderr = s.out, s.out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("bringing the network up: %w", err)
		}
		return nil
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func runRescueEtc(o rescueOptions, s streams) error {
	name, err := device.ParseSlot(o.slot)
	if err != nil {
		return usageError{err}
	}
	m, err := o.inRescue(s)
	if err != nil {
		return err
	}
	if _, err := etc.OrderReset(m.config.EtcDir, name, nil); err != nil {
		return storageError{err}
	}
	_, err = fmt.Fprintf(s.out, "Slot %s starts with the /etc of its image.\n", name)
	return err
}
