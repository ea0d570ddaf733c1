package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/ledger"
)

type historyOptions struct {
	machineFlags
	json bool
}

func historyCmd(s streams) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List what happened to this machine, newest first",
		Long:  "history lists installations, upgrades, commits, failures and rollbacks.\n\n" + exitTable(),
		Args:  exactArgs(0, 0),
		RunE:  func(*cobra.Command, []string) error { return runHistory(o, s) },
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// historyResult is the answer of history --json.
type historyResult struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Events     []ledger.Event `json:"events"`
}

func runHistory(o historyOptions, s streams) error {
	m, err := o.open(s)
	if err != nil {
		return err
	}
	l, err := m.ledger.Load()
	if err != nil {
		return storageError{err}
	}
	events := append([]ledger.Event{}, l.History...)
	slices.Reverse(events)
	if o.json {
		return printJSON(s.out, historyResult{apiVersion, "History", events})
	}
	t := tabwriter.NewWriter(s.out, 0, 8, 2, ' ', 0)
	for _, e := range events {
		why := e.Reason
		if e.Rule != "" {
			why = strings.TrimSuffix("admitted by rule "+e.Rule+"; "+why, "; ")
		}
		lines := reasons(why)
		fmt.Fprintf(t, "%s\t%s\tslot %s\t%s\t%s\n", when(e.At), e.Kind, e.Slot, cell(e.Version), lines[0])
		for _, line := range lines[1:] {
			fmt.Fprintf(t, "\t\t\t\t%s\n", line)
		}
	}
	return t.Flush()
}
