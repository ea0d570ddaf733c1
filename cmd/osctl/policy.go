package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/trust"
)

func policyCmd(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check a trust policy, and explain what it decides",
		Long:  "policy check says whether a policy file can be used, policy explain why it accepts\nan image or refuses it.\n\n" + exitTable(),
		Args:  commandsOnly,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyCheckCmd(s), policyExplainCmd(s))
	return cmd
}

type policyCheckOptions struct {
	file string
	json bool
}

func policyCheckCmd(s streams) *cobra.Command {
	var o policyCheckOptions
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a policy file can be used, and what it says",
		Long: `check reads a policy and its key files as a machine would. What is wrong is said with
line and column, and ends with 20. A policy that can be used is shown, with notes on
what its author hardly meant; notes do not change the exit code.

` + exitTable(),
		Args: exactArgs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			o.file = args[0]
			return runPolicyCheck(o, s)
		},
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// policyCheck is the answer of policy check --json.
type policyCheck struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	File       string       `json:"file"`
	Digest     string       `json:"digest"` // of the policy with its keys and roots
	Rules      []policyRule `json:"rules"`
	Keys       []policyKey  `json:"keys"`
	Identities []policyWho  `json:"identities"`
	Rescue     []policyKey  `json:"rescue"`
	Revoked    []string     `json:"revokedDigests"`
	Notes      []policyNote `json:"notes"`
	// AllowDowngrade permits upgrade --allow-downgrade.
	AllowDowngrade bool `json:"allowDowngrade"`
}

type policyRule struct {
	Name       string   `json:"name"`
	Line       int      `json:"line"` // 0: the rule of a policy without rules
	Repository string   `json:"repository,omitempty"`
	Product    string   `json:"product,omitempty"`
	Threshold  int      `json:"threshold"`
	Keys       []string `json:"keys"`
	Identities []string `json:"identities,omitempty"`
	// Annotations are claims that each signature has to carry.
	Annotations []string `json:"annotations,omitempty"`
	// Attestations are what is needed beside signatures.
	Attestations []string `json:"attestations,omitempty"`
}

type policyWho struct {
	Name        string `json:"name"`
	Subject     string `json:"subject"` // a pattern stands between slashes
	Issuer      string `json:"issuer"`
	TrustedRoot string `json:"trustedRoot"`      // the digest of the file
	Signed      *bool  `json:"signed,omitempty"` // policy explain only
}

type policyKey struct {
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint"`
	NotBefore   time.Time `json:"notBefore,omitzero"`
	NotAfter    time.Time `json:"notAfter,omitzero"`
	Ignored     string    `json:"ignored,omitempty"` // why it does not count now
	Signed      *bool     `json:"signed,omitempty"`  // policy explain only
}

type policyNote struct {
	Line int    `json:"line"`
	Text string `json:"text"`
}

func runPolicyCheck(o policyCheckOptions, s streams) error {
	f, err := loadPolicy(o.file)
	if err != nil {
		return err
	}
	v := f.Under(circumstances(""))
	c := policyCheck{
		APIVersion: apiVersion, Kind: "PolicyCheck", File: f.Path, Digest: v.Digest().String(),
		Rules: []policyRule{}, Keys: policyKeys(v.Keys()), Identities: policyWhos(v.Identities()), Rescue: []policyKey{}, Revoked: append([]string{}, f.Revoked.Digests...), Notes: []policyNote{},
		AllowDowngrade: f.AllowDowngrade,
	}
	for i, r := range v.Rules() {
		c.Rules = append(c.Rules, f.describe(i, r))
	}
	if len(f.Rescue) > 0 {
		rescue, err := f.rescue()
		if err != nil {
			return err
		}
		// Only its own keys: those that are revoked are listed already.
		c.Rescue = policyKeys(rescue.Under(circumstances("")).Keys()[:len(f.Rescue)])
	}
	for _, d := range v.Doubts() {
		c.Notes = append(c.Notes, policyNote{f.Line(d.Field), d.Text})
	}
	if o.json {
		return printJSON(s.out, c)
	}
	return printPolicyCheck(s.out, c)
}

// describe gives the rule at an index its place in the file.
func (f policyFile) describe(i int, r trust.RuleInfo) policyRule {
	return policyRule{
		Name: r.Name, Line: f.Line(fmt.Sprintf("rules[%d]", i)), Repository: r.Repository, Product: r.Product, Threshold: r.Threshold,
		Keys: append([]string{}, r.Keys...), Identities: r.Identities, Annotations: r.Annotations, Attestations: r.Attestations,
	}
}

func policyWhos(list []trust.IdentityInfo) []policyWho {
	all := []policyWho{}
	for _, i := range list {
		all = append(all, policyWho{i.Name, i.Subject, i.Issuer, "sha256:" + i.TrustedRoot, nil})
	}
	return all
}

func policyKeys(list []trust.KeyInfo) []policyKey {
	keys := []policyKey{}
	for _, k := range list {
		keys = append(keys, policyKey{k.Name, "sha256:" + k.Fingerprint, k.NotBefore, k.NotAfter, k.Ignored, nil})
	}
	return keys
}

func printPolicyCheck(w io.Writer, c policyCheck) error {
	fmt.Fprintf(w, "%s can be used.\n", c.File)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range c.Rules {
		fmt.Fprintf(t, "  rule\t%s\t%s\t%s\n", r.Name, r.matches(), r.asks())
	}
	for _, list := range []struct {
		title string
		keys  []policyKey
	}{{"key", c.Keys}, {"rescue key", c.Rescue}} {
		for _, k := range list.keys {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", list.title, k.Name, k.Fingerprint, k.state())
		}
	}
	for _, i := range c.Identities {
		fmt.Fprintf(t, "  identity\t%s\t%s\tfrom %s\n", i.Name, i.Subject, i.Issuer)
	}
	for _, d := range c.Revoked {
		fmt.Fprintf(t, "  revoked\t\t%s\t\n", d)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if c.AllowDowngrade {
		fmt.Fprintf(w, "  downgrades to what was committed here are permitted\n")
	}
	for _, n := range c.Notes {
		fmt.Fprintf(w, "note: %s:%d: %s\n", c.File, n.Line, n.Text)
	}
	return nil
}

// matches says which images a rule is for.
func (r policyRule) matches() string {
	var parts []string
	if r.Repository != "" {
		parts = append(parts, r.Repository)
	}
	if r.Product != "" {
		parts = append(parts, "product "+r.Product)
	}
	if len(parts) == 0 {
		return "every image"
	}
	return strings.Join(parts, ", ")
}

// asks says what a rule asks for.
func (r policyRule) asks() string {
	signers := slices.Concat(r.Keys, r.Identities)
	asks := "a signature by " + strings.Join(signers, " or ")
	if r.Threshold > 1 {
		asks = fmt.Sprintf("signatures by %d of %s", r.Threshold, strings.Join(signers, ", "))
	}
	if len(r.Annotations) > 0 {
		asks += " with " + strings.Join(r.Annotations, ", ")
	}
	for _, a := range r.Attestations {
		asks += ", and " + a
	}
	return asks
}

// state says whether a key counts now.
func (k policyKey) state() string {
	var parts []string
	if k.Ignored != "" {
		parts = append(parts, k.Ignored)
	}
	if !k.NotBefore.IsZero() {
		parts = append(parts, "from "+when(k.NotBefore))
	}
	if !k.NotAfter.IsZero() {
		parts = append(parts, "until "+when(k.NotAfter))
	}
	if k.Signed != nil && *k.Signed {
		parts = slices.Insert(parts, 0, "signed")
	}
	return strings.Join(parts, ", ")
}
