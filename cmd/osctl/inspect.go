package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
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
		Long:  "inspect prints the description of an OS image with the signatures and\nattestations that lie beside it. It does not say whether any of them is good.\n\n" + exitTable(),
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
	// Beside are the signatures and attestations, as they describe themselves.
	Beside []inspectedProof `json:"beside"`
}

type inspectedProof struct {
	Kind string `json:"kind"` // signature, provenance, sbom, other or unreadable
	Form string `json:"form"` // classic, bundle or envelope
	Type string `json:"type,omitempty"`
	// Certified says that it was made with a certificate instead of a key.
	Certified bool   `json:"certified,omitempty"`
	Builder   string `json:"builder,omitempty"`
	Packages  int    `json:"packages,omitempty"`
	Error     string `json:"error,omitempty"`
}

// curious wants all that may lie beside an image.
type curious struct{}

func (curious) Wants() []string { return osimage.Attestations() }

func (curious) Enough(context.Context, osimage.Image, []osimage.Signature) bool { return false }

// inspected describes what lies beside an image.
func inspected(sigs []osimage.Signature) (list []inspectedProof, signatures int) {
	list = []inspectedProof{}
	for _, s := range sigs {
		d, err := trust.Describe(s)
		p := inspectedProof{Kind: "other", Form: string(s.Form), Type: d.Type, Certified: d.Certified, Builder: d.Builder, Packages: d.Packages}
		if s.Form == osimage.Classic {
			p.Form = "classic"
		}
		switch {
		case err != nil:
			p.Kind, p.Error = "unreadable", err.Error()
			if s.Form == osimage.Classic {
				signatures++
			}
		case d.Type == "" || d.Type == osimage.PredicateSignature:
			p.Kind = "signature"
			signatures++
		case d.Type == osimage.PredicateProvenance || d.Type == osimage.PredicateProvenance02:
			p.Kind = trust.Provenance
		case d.Type == osimage.PredicateSPDX || d.Type == osimage.PredicateCycloneDX:
			p.Kind = trust.SBOM
		}
		list = append(list, p)
	}
	return list, signatures
}

// text is a line for an attestation; empty for a signature, which is only counted.
func (p inspectedProof) text() string {
	switch p.Kind {
	case "signature":
		return ""
	case trust.Provenance:
		return fmt.Sprintf("%s, built by %s", p.Type, p.Builder)
	case trust.SBOM:
		return fmt.Sprintf("%s, %d entries", p.Type, p.Packages)
	case "unreadable":
		return p.Error
	}
	return p.Type
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
	sigs, err := source.offer.For(curious{}).Signatures(ctx)
	if err != nil {
		return err
	}
	beside, signatures := inspected(sigs)
	i := inspection{
		APIVersion: apiVersion, Kind: "Image", Name: source.offer.Name(), Digest: img.Digest().String(), Config: img.Config(),
		Packs: len(img.Packs()), Compressed: img.CompressedSize(), Signatures: signatures, Beside: beside,
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
	text := fmt.Sprintf(`%s
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
	for _, p := range i.Beside {
		if said := p.text(); said != "" {
			text += fmt.Sprintf("  %-13s %s (not verified)\n", p.Kind, strings.ReplaceAll(said, "\n", " "))
		}
	}
	_, err := io.WriteString(w, printable(text))
	return err
}
