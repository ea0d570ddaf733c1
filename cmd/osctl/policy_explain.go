package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
)

type policyExplainOptions struct {
	machineFlags
	source, policy, reference, hostsDir string
	json                                bool
}

func policyExplainCmd(s streams) *cobra.Command {
	var o policyExplainOptions
	cmd := &cobra.Command{
		Use:   "explain REF|LAYOUT",
		Short: "Say which rule decides about an image, what it asks for, and what was found",
		Long: `explain reads an image and its signatures, no pack, and decides as an upgrade would,
with all reasons. It ends with 0 if the policy accepts the image, with 20 if not. It
needs no containerd and changes nothing.

` + exitTable(),
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = args[0]
			return runPolicyExplain(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.StringVar(&o.policy, "policy", "", "policy `file` to ask (default: that of this machine)")
	f.StringVar(&o.reference, "reference", "", "reference to choose the rule by (default: REF; a LAYOUT has none)")
	f.StringVar(&o.hostsDir, "hosts-dir", "/etc/containerd/certs.d", "`folder` of containerd's hosts.toml files")
	return cmd
}

// policyExplanation is the answer of policy explain --json.
type policyExplanation struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Name       string         `json:"name"`
	Digest     string         `json:"digest"`
	Product    string         `json:"product"`
	Version    string         `json:"version"`
	Repository string         `json:"repository"` // empty: none
	Policy     string         `json:"policy"`
	Passed     []string       `json:"passed"`         // rules before the one that decides, and why they do not match
	Rule       *policyRule    `json:"rule,omitempty"` // absent: none matches
	Keys       []policyKey    `json:"keys"`           // of that rule
	Identities []policyWho    `json:"identities"`     // of that rule
	Found      string         `json:"found"`
	Accepted   bool           `json:"accepted"`
	Refusal    *policyRefusal `json:"refusal,omitempty"`
}

type policyRefusal struct {
	Rule string `json:"rule"` // the reason, as a word
	Have string `json:"have"`
	Want string `json:"want"`
	Next string `json:"next"`
}

// open reads the policy, and the times that have passed on this machine. With
// --policy no machine is needed.
func (o policyExplainOptions) open(s streams) (policyFile, []time.Time, error) {
	if o.policy != "" {
		f, err := loadPolicy(o.policy)
		return f, nil, err
	}
	m, err := o.machineFlags.open(s)
	if err != nil {
		return policyFile{}, nil, err
	}
	f, err := loadPolicy(m.policyFiles()...)
	return f, m.passed(), err
}

func runPolicyExplain(ctx context.Context, o policyExplainOptions, s streams) error {
	if o.reference != "" {
		if err := fetch.CheckReference(o.reference); err != nil {
			return err
		}
	}
	f, passed, err := o.open(s)
	if err != nil {
		return err
	}
	e, err := o.explain(ctx, f, passed)
	if err != nil {
		return err
	}
	if o.json {
		err = printJSON(s.out, e)
	} else {
		err = printExplanation(s.out, e)
	}
	if err == nil && !e.Accepted {
		return exitError(exitPolicy)
	}
	return err
}

// everything reads whatever a policy may ask for, and never has enough.
type everything struct{ *trust.Verifier }

func (everything) Enough(context.Context, osimage.Image, []osimage.Signature) bool { return false }

// explain reads the image and asks the policy about it.
func (o policyExplainOptions) explain(ctx context.Context, f policyFile, passed []time.Time) (_ policyExplanation, err error) {
	source, err := openSource(ctx, o.source, o.hostsDir)
	if err != nil {
		return policyExplanation{}, err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	if o.reference == "" {
		o.reference = source.reference
	}
	under := circumstances(o.reference, passed...)
	// All signatures, also where fewer would do; attestations if a rule wants them.
	offer := source.offer.For(everything{f.Verifier})
	img, err := offer.Describe(ctx)
	if err != nil {
		return policyExplanation{}, err
	}
	sigs, err := offer.Signatures(ctx)
	if err != nil {
		return policyExplanation{}, err
	}
	explained, err := f.Under(under).Explain(ctx, img, sigs)
	if err != nil {
		return policyExplanation{}, err
	}
	e := f.explanation(img, explained)
	e.Name, e.Repository = source.offer.Name(), under.Repository
	return e, nil
}

func (f policyFile) explanation(img osimage.Image, e trust.Explanation) policyExplanation {
	c := img.Config()
	p := policyExplanation{
		APIVersion: apiVersion, Kind: "PolicyExplanation", Digest: img.Digest().String(), Product: c.Product, Version: c.Version,
		Policy: f.Path, Passed: append([]string{}, e.Passed...), Keys: policyKeys(e.Keys), Identities: policyWhos(e.Identities), Found: e.Found, Accepted: e.Refusal == nil,
	}
	for i := range p.Keys {
		p.Keys[i].Signed = &e.Keys[i].Signed
	}
	for i := range p.Identities {
		p.Identities[i].Signed = &e.Identities[i].Signed
	}
	if e.Rule != nil {
		r := f.describe(e.Index, *e.Rule)
		p.Rule = &r
	}
	if e.Refusal != nil {
		p.Refusal = &policyRefusal{string(e.Refusal.Rule), e.Refusal.Have, e.Refusal.Want, e.Refusal.Next}
	}
	return p
}

func printExplanation(w io.Writer, e policyExplanation) error {
	repository := e.Repository
	if repository == "" {
		repository = "none"
	}
	fmt.Fprintf(w, "%s %s\n", e.Product, e.Version)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "  digest\t%s\n  repository\t%s\n  policy\t%s\n", e.Digest, repository, e.Policy)
	for _, p := range e.Passed {
		fmt.Fprintf(t, "  no match\t%s\n", p)
	}
	if e.Rule != nil {
		place := ""
		if e.Rule.Line > 0 {
			place = fmt.Sprintf(" in line %d", e.Rule.Line)
		}
		fmt.Fprintf(t, "  rule\t%s%s: %s\n  asks for\t%s\n", e.Rule.Name, place, e.Rule.matches(), e.Rule.asks())
	}
	for _, k := range e.Keys {
		state := k.state()
		if !*k.Signed {
			state = strings.TrimSuffix("did not sign, "+state, ", ")
		}
		if k.Ignored != "" {
			state = "does not count: " + k.Ignored
		}
		fmt.Fprintf(t, "  key\t%s (%.19s): %s\n", k.Name, k.Fingerprint, state)
	}
	for _, i := range e.Identities {
		state := "did not sign"
		if *i.Signed {
			state = "signed"
		}
		fmt.Fprintf(t, "  identity\t%s (%s from %s): %s\n", i.Name, i.Subject, i.Issuer, state)
	}
	fmt.Fprintf(t, "  found\t%s\n", printable(e.Found))
	if err := t.Flush(); err != nil {
		return err
	}
	if e.Accepted {
		_, err := fmt.Fprintln(w, "ACCEPTED")
		return err
	}
	_, err := fmt.Fprintf(w, "REFUSED (%s): wanted %s; %s\n", e.Refusal.Rule, e.Refusal.Want, e.Refusal.Next)
	return err
}
