package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/publish"
)

type bundleOptions struct {
	progressFlags
	registryFlags
	reference, output string
	json              bool
}

func bundleCmd(s streams) *cobra.Command {
	var o bundleOptions
	cmd := &cobra.Command{
		Use:   "bundle REF -o FILE",
		Short: "Put an OS image and all that vouches for it into one file, for air gaps",
		Long: `bundle writes an OCI archive with the image, its signatures and attestations, and the
statement of the channel if REF is one. osctl upgrade --from FILE installs from it
without a network; osctl push FILE REF brings it to another registry.

` + exitTable(),
		Args: exactArgs(1, 1, "output"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.reference = args[0]
			return runBundle(cmd.Context(), o, s)
		},
	}
	o.progressFlags.add(cmd.Flags())
	o.registryFlags.add(cmd.Flags())
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "`file` to make; must not exist")
	cmd.Flags().BoolVar(&o.json, "json", false, "print the result as JSON")
	return cmd
}

// bundleResult is the answer of bundle --json.
type bundleResult struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	File       string `json:"file"`
	Digest     string `json:"digest"`
	// Companions is the number of manifests beside the image, Size that of bytes of
	// the archive.
	Companions int   `json:"companions"`
	Size       int64 `json:"size"`
}

func runBundle(ctx context.Context, o bundleOptions, s streams) error {
	display, err := o.display(s)
	if err != nil {
		return err
	}
	b, err := publish.Bundle(ctx, o.reference, o.output, publish.Options{PlainHTTP: o.plainHTTP, Progress: display.sink})
	display.finish()
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(s.out, bundleResult{apiVersion, "Bundle", o.output, b.Digest.String(), b.Companions, b.Size})
	}
	_, err = fmt.Fprintf(s.out, "%s holds %s\n  digest     %s\n  beside it  %d (signatures, attestations, statements)\n", o.output, size(b.Size), b.Digest, b.Companions)
	return err
}
