package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/rehearsal"
)

func completionCmd(s streams) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script by which a shell completes osctl's commands and flags",
		Long: `completion prints a script. For the shell that runs:

  source <(osctl completion bash)

` + exitTable(),
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(s.out, true)
			case "zsh":
				return root.GenZshCompletion(s.out)
			case "fish":
				return root.GenFishCompletion(s.out, true)
			}
			return usageError{fmt.Errorf("shell %q: there are %s", args[0], strings.Join(shells(), ", "))}
		},
	}
}

func shells() []string { return []string{"bash", "zsh", "fish"} }

// helpCmd is cobra's, but for a command that does not exist.
func helpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Print the help of a command",
		Long:  "help prints what COMMAND --help does.\n\n" + exitTable(),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return commandsOnly(cmd.Root(), args)
			}
			return found.Help()
		},
	}
}

// complete tells the shell which values a flag or an argument has, and where no file
// is meant.
func complete(root *cobra.Command) {
	values := map[string][]string{
		"progress": progressModes(),
		"rehearse": {string(rehearsal.Auto), string(rehearsal.Always), string(rehearsal.Never)},
		"apps":     {"keep", "wipe"},
	}
	fixed := func(list ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
	}
	var each func(*cobra.Command)
	each = func(cmd *cobra.Command) {
		for flag, list := range values {
			if cmd.Flags().Lookup(flag) != nil {
				// It fails for a flag that does not exist.
				_ = cmd.RegisterFlagCompletionFunc(flag, fixed(list...)) //nolint:errcheck // see above
			}
		}
		switch name, arguments, _ := strings.Cut(cmd.Use, " "); {
		case name == "verify" || name == "reset-etc":
			cmd.ValidArgsFunction = fixed(string(device.SlotA), string(device.SlotB))
		case name == "completion":
			cmd.ValidArgsFunction = fixed(shells()...)
		case arguments == "":
			cmd.ValidArgsFunction = fixed()
		}
		for _, sub := range cmd.Commands() {
			each(sub)
		}
	}
	each(root)
}
