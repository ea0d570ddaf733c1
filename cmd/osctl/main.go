// Command osctl manages the operating system of an A/B-partitioned machine from
// a container registry. This package holds flags, wiring, rendering and exit
// codes; what osctl does is in the packages under pkg.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/rehearsal"
)

func main() {
	// The memory of a gateway is for its applications. The live heap is small, so
	// collecting twice as often costs nothing that can be measured and takes a
	// seventh off the peak of an upgrade (docs/benchmarks.md).
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	// The first signal ends the work in good order. Something that waits for input,
	// such as a pipe that nobody fills, does not hear it; the second one ends the
	// process at once, which is no worse than a kill.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// streams are where a command reads from and writes to.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run is the whole program; args[0] is the name that it was called by.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// Libraries below us log to standard error by logrus; what matters of it comes
	// back as errors.
	logrus.SetOutput(io.Discard)
	out := &resultWriter{w: stdout}
	s := streams{in: stdin, out: out, err: stderr}
	// The kernel starts /usr/lib/osctl/preinit, a link to osctl, as process 1.
	if filepath.Base(args[0]) == "preinit" {
		return preinit(args[1:], s)
	}
	if len(args) > 1 && args[1] == insideArg {
		return report(stderr, rehearsal.Inside(args[2:]))
	}
	root := newRoot(s)
	root.SetArgs(args[1:])
	return report(stderr, out.check(root.ExecuteContext(ctx)))
}

func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "osctl",
		Short: "Manage the operating system of this machine from a container registry",
		Long: `osctl upgrades the operating system of an A/B-partitioned machine from signed
OCI artifacts, and builds, signs and publishes those artifacts.

` + exitTable(),
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          commandsOnly,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "machine", Title: "On the machine:"}, &cobra.Group{ID: "images", Title: "Where images are made:"})
	root.CompletionOptions.DisableDefaultCmd = true
	for _, c := range []*cobra.Command{
		statusCmd(s), checkCmd(s), upgradeCmd(s), rollbackCmd(s), healthCmd(s), settleCmd(s), historyCmd(s), diffCmd(s), verifyCmd(s), rescueCmd(s), installCmd(s), etcCmd(s), resetCmd(s),
	} {
		c.GroupID = "machine"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{buildCmd(s), pushCmd(s), signCmd(s), channelCmd(s), bundleCmd(s), inspectCmd(s), policyCmd(s)} {
		c.GroupID = "images"
		root.AddCommand(c)
	}
	root.AddCommand(completionCmd(s), versionCmd(s))
	root.SetHelpCommand(helpCmd())
	complete(root)
	return root
}

// commandsOnly is for a command that others are below.
func commandsOnly(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q; %s --help lists them", args[0], cmd.CommandPath())}
	}
	return nil
}

// exactArgs accepts a number of arguments and demands flags, with usage errors.
func exactArgs(least, most int, flags ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for _, name := range flags {
			if !cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is missing; usage: %s", name, cmd.UseLine())}
			}
		}
		if err := nothingEmpty(cmd, args); err != nil {
			return err
		}
		if len(args) < least || len(args) > most {
			return usageError{fmt.Errorf("%d arguments; usage: %s", len(args), cmd.UseLine())}
		}
		return nil
	}
}

// nothingEmpty refuses empty arguments and values. A script whose variable is not set
// passes them, and must not get what is meant for the flag's absence. Only --initrd has
// a meaning when it is empty.
func nothingEmpty(cmd *cobra.Command, args []string) (err error) {
	if slices.Contains(args, "") {
		return usageError{fmt.Errorf("an empty argument; usage: %s", cmd.UseLine())}
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.String() == "" && f.Name != "initrd" {
			err = usageError{fmt.Errorf("--%s has an empty value; usage: %s", f.Name, cmd.UseLine())}
		}
	})
	return err
}
