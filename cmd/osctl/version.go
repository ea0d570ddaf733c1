package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func versionCmd(s streams) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of osctl, as --version does",
		Long:  "version prints the version of osctl and the commit that it was built from.\n\n" + exitTable(),
		Args:  exactArgs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(s.out, "osctl version %s\n", version())
			return err
		},
	}
}
