package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/upgrade"
)

type rollbackOptions struct {
	machineFlags
	reboot bool
}

func rollbackCmd(s streams) *cobra.Command {
	var o rollbackOptions
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the other proven slot at the next boot",
		Long: `rollback ends a trial, takes back one that has not been booted yet, or puts the
other slot on trial if it holds a system that was committed here. It needs
neither network nor containerd; if containerd answers, images that the workloads of
that slot used have their names again.

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runRollback(cmd.Context(), o, s) },
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.reboot, "reboot", false, "reboot at once")
	return cmd
}

func runRollback(ctx context.Context, o rollbackOptions, s streams) error {
	m, err := o.open(s)
	if err != nil {
		return err
	}
	if m.err != nil {
		return m.err
	}
	back, err := upgrade.RollBack(ctx, upgrade.Reversal{
		Booted: m.booted.Slot, Lock: m.lock, Boot: m.boot, Ledger: m.ledger, Tries: m.config.Tries, Images: m.images(), Log: m.log,
	})
	if err != nil {
		return err
	}
	m.announce(ctx)
	if _, err := fmt.Fprintf(s.out, "Slot %s starts at the next boot: %s.\n", back.Slot, back.How); err != nil {
		return err
	}
	if o.reboot {
		return reboot(ctx)
	}
	return nil
}
