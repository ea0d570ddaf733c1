package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/status"
)

type statusOptions struct {
	machineFlags
	json     bool
	announce bool
}

func statusCmd(s streams) *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what runs, what is on trial, what failed and why",
		Long: `status reads and writes nothing, but for --announce. It ends with 0 also when there
are problems to show; --json has them in "problems" (schema:
docs/status.schema.json).

` + exitTable(),
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), o, s) },
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	cmd.Flags().BoolVar(&o.announce, "announce", false, "print nothing; write the line for the console and for who logs in, and the metrics (what osctl-announce.service runs)")
	return cmd
}

func runStatus(ctx context.Context, o statusOptions, s streams) error {
	if o.announce && o.json {
		return usageError{errors.New("both --announce, which prints nothing, and --json; choose one")}
	}
	m, err := o.open(s)
	if err != nil {
		return err
	}
	if o.announce {
		return m.tell(ctx)
	}
	sources := m.sources()
	sources.Containers, sources.Sizes, sources.Held = m.containers().List, m.sizes, m.held
	shot := status.Take(ctx, sources)
	if o.json {
		return printJSON(s.out, shot)
	}
	return printStatus(s.out, shot)
}

// sources are where status finds out how this machine stands, without asking containerd.
func (m *machine) sources() status.Sources {
	pre := m.preinitReport()
	return status.Sources{
		Product: m.config.Product, Booted: m.booted, BootedErr: m.err, Release: m.release, Boot: m.boot,
		Ledger: m.ledger, DataDir: filepath.Dir(m.config.StateDir), Degraded: append(m.degraded(), m.unexpected()...),
		Etc: string(pre.Etc), Data: string(pre.Data), Done: pre.Done, Pending: m.pendingResets(), LastWords: m.lastWords(), Clock: m.clock(),
		RuntimeDir: m.config.RuntimeDir,
	}
}

// printStatus renders the snapshot: a line on the machine, one block a slot, the
// last failure, workloads, space and problems.
func printStatus(w io.Writer, shot status.Snapshot) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\n\n", headline(shot))
	printGate(t, shot.Gate)
	if shot.Why != "" && shot.State != "trial" {
		fmt.Fprintf(t, "  Why\t%s\n\n", cell(shot.Why))
	}
	printSystem(t, "● Booted", shot.Booted)
	printSystem(t, "  "+otherTitle(shot), shot.Other)
	if f := shot.LastFailure; f != nil {
		fmt.Fprintf(t, "  Failed\t%s on %s\n", cell(f.Version), when(f.At))
		for i, reason := range reasons(f.Reason) {
			fmt.Fprintf(t, "  \t%s %s\n", []string{"reason:", "       "}[min(i, 1)], reason)
		}
		fmt.Fprintf(t, "  \tdigest: %s\n\n", f.Digest)
	}
	title := "  Workloads"
	for _, c := range shot.Workloads {
		fmt.Fprintf(t, "%s\t%s  %s  %s\n", title, cell(c.Name), cell(c.Status), cell(c.Image))
		title = ""
	}
	if len(shot.Workloads) > 0 {
		fmt.Fprintln(t)
	}
	if shot.Space != nil {
		printSpace(t, *shot.Space)
	}
	for _, list := range []struct {
		title string
		lines []string
	}{{"Pending", shot.Pending}, {"Done", shot.Done}, {"Lost", shot.Lost}, {"Problem", shot.Problems}} {
		for _, line := range list.lines {
			fmt.Fprintf(t, "  %s\t%s\n", list.title, cell(line))
		}
	}
	return t.Flush()
}

// printGate says what a gate that runs waits for, and how long at most.
func printGate(w io.Writer, g *status.Gate) {
	if g == nil {
		return
	}
	left := (time.Duration(g.SecondsLeft) * time.Second).String()
	switch {
	case g.Checks == 0:
		fmt.Fprintf(w, "  Gate\trunning: the first look, verdict in at most %s\n", left)
	case g.SoakSecondsLeft != nil:
		fmt.Fprintf(w, "  Gate\trunning: soaking, %d s left; verdict in at most %s\n", *g.SoakSecondsLeft, left)
	default:
		fmt.Fprintf(w, "  Gate\trunning: %d of %d checks to go, verdict in at most %s\n", len(g.Waiting), g.Checks, left)
	}
	for _, c := range g.Waiting {
		fmt.Fprintf(w, "  \t%s: %s (expected: %s)\n", cell(c.Name), cell(c.Seen), cell(c.Expected))
	}
	fmt.Fprintln(w)
}

// headline says in one line how the machine stands.
func headline(shot status.Snapshot) string {
	product := shot.Product
	if product == "" {
		product = "this machine"
	}
	booted, other := shot.Booted, shot.Other
	switch shot.State {
	case "committed":
		return fmt.Sprintf("%s runs %s from slot %s, committed", product, booted.Version, booted.Slot)
	case "trial":
		return fmt.Sprintf("%s runs %s from slot %s ON TRIAL, %d tries left", product, booted.Version, booted.Slot, shot.TriesLeft)
	case "armed":
		return fmt.Sprintf("%s runs %s from slot %s; %s in slot %s starts at the next boot", product, booted.Version, booted.Slot, other.Version, other.Slot)
	case "fell back":
		return fmt.Sprintf("%s FELL BACK to %s in slot %s", product, booted.Version, booted.Slot)
	}
	return fmt.Sprintf("%s runs %s; its boot state is unknown", product, booted.Version)
}

// otherTitle names the block of the other slot by what it is good for.
func otherTitle(shot status.Snapshot) string {
	switch {
	case shot.State == "armed":
		return "Staged"
	case shot.Other.State == ledger.Committed:
		return "Rollback"
	}
	return "Other"
}

func printSystem(w io.Writer, title string, sys status.System) {
	if sys.Version == "" && sys.Digest == "" {
		fmt.Fprintf(w, "%s\tslot %s: empty\n\n", title, sys.Slot)
		return
	}
	fmt.Fprintf(w, "%s\t%s  (slot %s, %s)\n", title, sys.Version, sys.Slot, standing(sys))
	for _, line := range []struct{ name, value string }{
		{"image", sys.Reference}, {"digest", sys.Digest}, {"signed by", sys.SignedBy}, {"size", sizeOf(sys)},
	} {
		if line.value != "" {
			fmt.Fprintf(w, "  \t%s: %s\n", line.name, line.value)
		}
	}
	fmt.Fprintln(w)
}

func standing(sys status.System) string {
	switch sys.State {
	case ledger.Committed:
		return "committed " + when(sys.CommittedAt)
	case ledger.Staged:
		return "staged " + when(sys.StagedAt)
	case ledger.Failed:
		return "failed its trial"
	}
	return "not in the ledger"
}
