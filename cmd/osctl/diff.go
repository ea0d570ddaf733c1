package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/osimage"
)

type diffOptions struct {
	machineFlags
	reference string
	json      bool
}

func diffCmd(s streams) *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff [REF|LAYOUT]",
		Short: "List the packages that change between the running system and an offered one",
		Long: `diff compares the packages of the signed description of the running system with those
of REF (default: the reference of the configuration), once the policy accepts it. It
fetches no pack and needs no containerd.

` + exitTable(),
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.reference = args[0]
			}
			return runDiff(cmd.Context(), o, s)
		},
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// diffResult is the answer of diff --json.
type diffResult struct {
	APIVersion string                  `json:"apiVersion"`
	Kind       string                  `json:"kind"`
	From       diffImage               `json:"from"`
	To         diffImage               `json:"to"`
	Changes    []osimage.PackageChange `json:"changes"`
}

// diffImage is one side of a comparison.
type diffImage struct {
	Version  string `json:"version"`
	Digest   string `json:"digest"`
	Packages int    `json:"packages"`
}

func runDiff(ctx context.Context, o diffOptions, s streams) (err error) {
	m, err := o.open(s)
	if err != nil {
		return err
	}
	if m.err != nil {
		return m.err
	}
	if o.reference == "" {
		o.reference = m.config.Reference
	}
	if o.reference == "" {
		return usageError{errors.New("no reference: name one, or set reference in osctl.yaml")}
	}
	running, err := m.record(m.booted.Slot)
	if err != nil {
		return err
	}
	source, err := openSource(ctx, o.reference, m.config.Containerd.HostsDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	offered, err := source.offer.Describe(ctx)
	if err != nil {
		return err
	}
	sigs, err := source.offer.Signatures(ctx)
	if err != nil {
		return err
	}
	v, err := m.verifier(source.reference)
	if err != nil {
		return err
	}
	if _, err := v.Verify(ctx, offered, sigs); err != nil {
		return err
	}
	d := diffResult{
		APIVersion: apiVersion, Kind: "PackageDiff", From: side(running.Image()), To: side(offered),
		Changes: append([]osimage.PackageChange{}, osimage.ComparePackages(running.Image().Config().Packages, offered.Config().Packages)...),
	}
	if d.From.Packages == 0 || d.To.Packages == 0 {
		// An empty list is one that the builder did not have: all would seem to change.
		d.Changes = []osimage.PackageChange{}
	}
	if o.json {
		return printJSON(s.out, d)
	}
	return printDiff(s.out, d)
}

func side(img osimage.Image) diffImage {
	c := img.Config()
	return diffImage{c.Version, img.Digest().String(), len(c.Packages)}
}

func printDiff(w io.Writer, d diffResult) error {
	for _, i := range []diffImage{d.From, d.To} {
		if i.Packages == 0 {
			_, err := fmt.Fprintf(w, "Which packages change from %s to %s is unknown: %s does not list its packages.\n", d.From.Version, d.To.Version, i.Version)
			return err
		}
	}
	fmt.Fprintf(w, "From %s to %s %d packages change, of %d.\n", d.From.Version, d.To.Version, len(d.Changes), d.To.Packages)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range d.Changes {
		from, to := c.From, c.To
		if from == "" {
			from = "(new)"
		}
		if to == "" {
			to = "(removed)"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", c.Name, from, to)
	}
	return t.Flush()
}
