package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/osimage"
)

type inspectOptions struct {
	source, hostsDir string
	json             bool
}

func inspectCmd(s streams) *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect REF|LAYOUT",
		Short: "Show what an OS image says of itself, verifying nothing",
		Long:  "inspect prints the description of an OS image and how many signatures lie beside\nit. It does not say whether any of them is good.\n\n" + exitTable(),
		Args:  exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = args[0]
			return runInspect(cmd.Context(), o, s)
		},
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	cmd.Flags().StringVar(&o.hostsDir, "hosts-dir", "/etc/containerd/certs.d", "`folder` of containerd's hosts.toml files")
	return cmd
}

// inspection is the answer of inspect --json.
type inspection struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Name       string         `json:"name"`
	Digest     string         `json:"digest"`
	Config     osimage.Config `json:"config"`
	Packs      int            `json:"packs"`
	Compressed int64          `json:"compressed"`
	Signatures int            `json:"signatures"`
}

func runInspect(ctx context.Context, o inspectOptions, s streams) (err error) {
	source, err := openSource(ctx, o.source, o.hostsDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	img, err := source.offer.Describe(ctx)
	if err != nil {
		return err
	}
	sigs, err := source.offer.Signatures(ctx)
	if err != nil {
		return err
	}
	i := inspection{
		APIVersion: apiVersion, Kind: "Image", Name: source.offer.Name(), Digest: img.Digest().String(), Config: img.Config(),
		Packs: len(img.Packs()), Compressed: img.CompressedSize(), Signatures: len(sigs),
	}
	if o.json {
		return printJSON(s.out, i)
	}
	return printInspection(s.out, i)
}

func printInspection(w io.Writer, i inspection) error {
	c := i.Config
	from := c.MinVersion
	if from == "" {
		from = "any version"
	}
	_, err := fmt.Fprintf(w, `%s
  digest        %s
  product       %s
  version       %s (epoch %d)
  architecture  %s
  upgrade from  %s
  created       %s
  root          %s, %s in %d segments
  packs         %d, %s
  kernel        %s
  initrd        %s
  packages      %d
  signatures    %d (not verified)
`, i.Name, i.Digest, c.Product, c.Version, c.Epoch, c.Architecture, from, when(c.Created), c.Rootfs.Filesystem, size(c.Rootfs.Size),
		c.Rootfs.Segments(), i.Packs, size(i.Compressed), c.Kernel, c.Initrd, len(c.Packages), i.Signatures)
	return err
}
