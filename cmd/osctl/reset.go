package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// errResetPending: what an upgrade stages now, the next boot would reset.
var errResetPending = errors.New("a factory reset is ordered for the next boot")

type resetOptions struct {
	machineFlags
	apps   string
	yes    bool
	cancel bool
	reboot bool
}

func resetCmd(s streams) *cobra.Command {
	var o resetOptions
	cmd := &cobra.Command{
		Use:   "reset --apps=keep|wipe",
		Short: "Bring the machine back to how it was installed, at the next boot",
		Long: `reset gives both slots the /etc that the machine was installed with, and empties the
home of root. --apps=wipe also removes everything else on the data partition:
images, containers and their data. --apps=keep leaves that alone.

The systems in the slots stay, and so do machine-id, the host keys of ssh, the
version floor and the history. The next boot carries it out before anything uses
the data partition; a power cut in between does no harm. Until then nothing
changes, and --cancel takes it back.

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := runReset(o, s); err != nil || !o.reboot {
				return err
			}
			return reboot(cmd.Context())
		},
	}
	o.add(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&o.apps, "apps", "", "`keep` or wipe the applications and their data; there is no default")
	f.BoolVar(&o.yes, "yes", false, "do not ask")
	f.BoolVar(&o.cancel, "cancel", false, "take back what was ordered")
	f.BoolVar(&o.reboot, "reboot", false, "reboot at once")
	return cmd
}

func runReset(o resetOptions, s streams) (err error) {
	if o.cancel && (o.apps != "" || o.reboot || o.yes) {
		return usageError{errors.New("--cancel stands alone")}
	}
	var apps etc.Apps
	if !o.cancel {
		if o.apps == "" {
			return usageError{errors.New("say what becomes of the applications: --apps=keep or --apps=wipe")}
		}
		if apps, err = etc.ParseApps(o.apps); err != nil {
			return usageError{err}
		}
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
	if o.cancel {
		if err := etc.CancelFactory(m.config.StateDir); err != nil {
			return storageError{err}
		}
		_, err := fmt.Fprintln(s.out, "No factory reset is ordered.")
		return err
	}
	// On trial, the gate asks for the applications that ran before.
	state, _, err := m.boot.Load()
	if err != nil {
		return err
	}
	if state.Phase != boot.Committed {
		return fmt.Errorf("ordering the factory reset: %w: %s", boot.ErrState, state)
	}
	if !o.yes {
		if err := confirm(s, apps); err != nil {
			return err
		}
	}
	if err := etc.OrderFactory(m.config.StateDir, apps); err != nil {
		return storageError{err}
	}
	m.note(ledger.Event{Kind: "reset", Slot: m.booted.Slot, Reason: "ordered: factory reset, applications: " + string(apps)})
	_, err = fmt.Fprintf(s.out, "The next boot resets this machine; applications: %s. Until then nothing changes.\n", apps)
	return err
}

// confirm asks. Anything but yes, and no answer at all, is no.
func confirm(s streams, apps etc.Apps) error {
	lost := "The next boot discards all changes of /etc in both slots and the home of root."
	if apps == etc.WipeApps {
		lost += "\nIt REMOVES ALL APPLICATIONS with their images and data."
	}
	fmt.Fprintf(s.err, "%s\nType yes to go on: ", lost)
	// An end of the input is an answer as well: not yes.
	answer, _ := bufio.NewReader(s.in).ReadString('\n')
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was ordered: the answer was not yes (--yes does not ask)")
	}
	return nil
}
