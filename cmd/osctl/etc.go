package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// errNoOverlay: the configuration says that /etc is no overlay.
var errNoOverlay = errors.New("etcDir in the configuration is empty: /etc belongs to no slot here")

func etcCmd(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "etc",
		Short: "Show what this machine has changed in /etc, or take it back",
		Long:  "The /etc of a slot is the image's with this machine's changes over it.\n\n" + exitTable(),
		Args:  commandsOnly,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(etcDiffCmd(s), etcResetCmd(s))
	return cmd
}

type etcDiffOptions struct {
	machineFlags
	json bool
}

func etcDiffCmd(s streams) *cobra.Command {
	var o etcDiffOptions
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "List what differs from the image, and what of it hides news of the other slot's image",
		Long: `diff compares the /etc of the running slot with that of its image. Where the other
slot holds an image, it also says which of these paths that image has changed:
there, the machine's own version hides the image's. The other slot is read under
the machine's lock, and never written.

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(*cobra.Command, []string) error { return runEtcDiff(o, s) },
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// etcDiff is the answer of etc diff --json.
type etcDiff struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Slot       device.Slot `json:"slot"`
	// Other is what the slot's own image was compared with.
	Other   etcOther     `json:"other"`
	Changes []etc.Change `json:"changes"`
	// Pending is what the next boot of the slot resets.
	Pending *etc.Reset `json:"pendingReset,omitempty"`
}

type etcOther struct {
	Slot     device.Slot `json:"slot"`
	Version  string      `json:"version,omitempty"`
	Compared bool        `json:"compared"`
	// Reason says why it was not compared.
	Reason string `json:"reason,omitempty"`
}

// openEtc opens the machine for a command that needs the overlay.
func (f *machineFlags) openEtc(s streams) (*machine, error) {
	m, err := f.open(s)
	if err != nil {
		return nil, err
	}
	if m.err != nil {
		return nil, m.err
	}
	if m.config.EtcDir == "" {
		return nil, errNoOverlay
	}
	// Preinit reads no configuration: it looks in fixed places.
	if m.config.BootedSlot == config.Auto && (m.config.EtcDir != etc.UppersDir || m.config.StateDir != etc.StateDir) {
		return nil, fmt.Errorf("%w: preinit uses etcDir %s and stateDir %s, and the configuration names others", config.ErrInvalid, etc.UppersDir, etc.StateDir)
	}
	return m, nil
}

func runEtcDiff(o etcDiffOptions, s streams) error {
	m, err := o.openEtc(s)
	if err != nil {
		return err
	}
	d := etcDiff{APIVersion: apiVersion, Kind: "EtcDiff", Slot: m.booted.Slot, Other: etcOther{Slot: m.booted.Slot.Other()}}
	if d.Pending, err = etc.PendingReset(m.config.EtcDir, m.booted.Slot); err != nil {
		return storageError{err}
	}
	own, err := m.image(m.booted.Slot)
	if err != nil {
		return storageError{err}
	}
	defer own.Close() //nolint:errcheck // nothing was written
	if err := m.compareEtc(own, &d); err != nil {
		return err
	}
	if o.json {
		return printJSON(s.out, d)
	}
	return printEtcDiff(s.out, d)
}

// image opens the file system of a slot.
func (m *machine) image(slot device.Slot) (*etc.Image, error) {
	if slot == m.booted.Slot && m.config.BootedSlot == config.Auto {
		return etc.OpenRunning("/")
	}
	path, err := m.slotPath(slot)
	if err != nil {
		return nil, err
	}
	return etc.OpenSlot(path)
}

// compareEtc fills in the changes. The other slot is read under the lock: a slot
// that is being written is not read, and one that is being read not written.
func (m *machine) compareEtc(own *etc.Image, d *etcDiff) (err error) {
	upper, other := filepath.Join(m.config.EtcDir, string(d.Slot), "upper"), ""
	release, err := m.lock()
	switch {
	case errors.Is(err, boot.ErrBusy):
		d.Other.Reason = "another osctl is at work"
	case err != nil:
		return err
	default:
		defer func() { err = errors.Join(err, release()) }()
		image, err := m.image(d.Other.Slot)
		if err != nil {
			d.Other.Reason = err.Error()
			break
		}
		defer image.Close() //nolint:errcheck // nothing was written
		other, d.Other.Compared, d.Other.Version = image.Path("etc"), true, releaseIn(image).Version
	}
	if d.Changes, err = etc.Compare(upper, own.Path("etc"), other); err != nil {
		return storageError{err}
	}
	return nil
}

func printEtcDiff(w io.Writer, d etcDiff) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(d.Changes) == 0 {
		fmt.Fprintf(t, "/etc of slot %s is as in its image.\n", d.Slot)
	} else {
		fmt.Fprintf(t, "CHANGE\tPATH\tIMAGE IN SLOT %s\n", d.Other.Slot)
	}
	for _, c := range d.Changes {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Kind, c.Path, hides(c))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case !d.Other.Compared:
		fmt.Fprintf(w, "\nThe image in slot %s was not compared: %s.\n", d.Other.Slot, d.Other.Reason)
	case d.Other.Version != "":
		fmt.Fprintf(w, "\nSlot %s holds %s.\n", d.Other.Slot, d.Other.Version)
	}
	if d.Pending != nil {
		fmt.Fprintf(w, "The next boot of slot %s resets %s.\n", d.Slot, what(*d.Pending))
	}
	return nil
}

// hides is the third column: what the machine's own version hides.
func hides(c etc.Change) string {
	if c.Shadows == "" {
		return ""
	}
	return string(c.Shadows) + ", hidden by this"
}

// what names what an order resets.
func what(r etc.Reset) string {
	if r.All {
		return "all of /etc"
	}
	return strings.Join(r.Paths, ", ")
}

type etcResetOptions struct {
	machineFlags
	cancel bool
	reboot bool
}

func etcResetCmd(s streams) *cobra.Command {
	var o etcResetOptions
	cmd := &cobra.Command{
		Use:   "reset [PATH...]",
		Short: "Bring /etc, or these paths of it, back to the image's version at the next boot",
		Long: `reset notes durably what is to be reset; the next boot does it before /etc is
mounted, since a mounted overlay may not be changed from below. Until then nothing
changes, and --cancel takes it back. A slot that is armed, with its own copy of
/etc, is reset as well.

Without PATH all of /etc is reset, but for machine-id, the host keys of ssh and
ssh/authorized_keys. The same stay when a directory above them is named; what is
named itself is reset whatever it is.

` + exitTable(),
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := runEtcReset(o, args, s); err != nil || !o.reboot {
				return err
			}
			return reboot(cmd.Context())
		},
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.cancel, "cancel", false, "take back what was ordered")
	cmd.Flags().BoolVar(&o.reboot, "reboot", false, "reboot at once")
	return cmd
}

func runEtcReset(o etcResetOptions, args []string, s streams) (err error) {
	if o.cancel && (len(args) > 0 || o.reboot) {
		return usageError{errors.New("--cancel takes everything back and stands alone")}
	}
	var paths []string
	for _, arg := range args {
		path, err := etc.ParsePath(arg)
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	m, err := o.openEtc(s)
	if err != nil {
		return err
	}
	release, err := m.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	slots := m.startsNext()
	if o.cancel {
		return m.cancelEtcReset(slots, s)
	}
	for _, slot := range slots {
		order, err := etc.OrderReset(m.config.EtcDir, slot, paths)
		if err != nil {
			return storageError{err}
		}
		m.note(ledger.Event{Kind: "reset", Slot: slot, Reason: "ordered: " + what(order)})
		if _, err := fmt.Fprintf(s.out, "The next boot of slot %s resets %s. Until then nothing changes.\n", slot, what(order)); err != nil {
			return err
		}
	}
	return nil
}

// startsNext lists the slots whose /etc an order is about: the running one, and
// one that is armed, which has a copy of its own.
func (m *machine) startsNext() []device.Slot {
	slots := []device.Slot{m.booted.Slot}
	state, _, err := m.boot.Load()
	if err == nil && state.Phase == boot.Trial && state.Rootfs != m.booted.Slot {
		slots = append(slots, state.Rootfs)
	}
	return slots
}

func (m *machine) cancelEtcReset(slots []device.Slot, s streams) error {
	for _, slot := range slots {
		if err := etc.CancelReset(m.config.EtcDir, slot); err != nil {
			return storageError{err}
		}
	}
	_, err := fmt.Fprintln(s.out, "No reset of /etc is ordered.")
	return err
}

// note adds an event to the history; nothing fails for want of a note.
func (m *machine) note(e ledger.Event) {
	e.At = time.Now().UTC()
	err := m.ledger.Update(func(l *ledger.Ledger) error {
		l.Add(e)
		return nil
	})
	if err != nil {
		m.log.Warn("the history lacks an event", "kind", e.Kind, "error", err)
	}
}

// copyEtc gives a slot what runs: the /etc of the running slot, or the pristine one
// where the slot did not come up with its own.
func (m *machine) copyEtc(from, to device.Slot) error {
	if m.booted.Kind != etc.PristineBoot {
		return etc.Clone(m.config.EtcDir, from, to)
	}
	memory := filepath.Join(m.config.RuntimeDir, filepath.Base(etc.MemoryDir))
	if err := etc.ClonePristine(m.config.EtcDir, memory, from, to); err != nil {
		return err
	}
	m.log.Warn("the new system starts with the pristine /etc that runs; what this machine had changed stays in slot "+string(from), "slot", to)
	m.note(ledger.Event{Kind: "reset", Slot: to, Reason: "staged on a boot with a pristine /etc, and starts with that; the changes stay in slot " + string(from)})
	return nil
}
