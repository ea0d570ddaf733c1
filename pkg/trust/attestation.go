package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/in-toto/attestation/go/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
)

// The kinds of attestations that a rule may ask for.
const (
	// Provenance says who built the image from what (SLSA, versions 0.2 and 1).
	Provenance = "provenance"
	// SBOM lists what is in the image (SPDX or CycloneDX).
	SBOM = "sbom"
)

// PolicyAttestation is a statement about the image that has to lie beside it.
type PolicyAttestation struct {
	// Type is Provenance or SBOM.
	Type string
	// Builder is the identity of the builder that a Provenance names; required there.
	Builder string
	// Format is spdx or cyclonedx; empty takes either. Of an SBOM only.
	Format string
	// Keys and Identities are who may have signed it; without any, those of the rule.
	// One of them is enough.
	Keys, Identities []string
}

// attestation is a PolicyAttestation that was found usable.
type attestation struct {
	kind, builder string
	types         []string
	keys          []key
	identities    []identity
}

func (a attestation) String() string {
	what := "a list of contents (SPDX or CycloneDX)"
	switch {
	case a.kind == Provenance:
		what = "provenance by the builder " + a.builder
	case len(a.types) == 1 && a.types[0] == osimage.PredicateSPDX:
		what = "a list of contents (SPDX)"
	case len(a.types) == 1:
		what = "a list of contents (CycloneDX)"
	}
	return what + " signed by " + strings.Join(a.signers(), " or ")
}

// option is what cosign attest calls it.
func (a attestation) option() string {
	switch a.types[0] {
	case osimage.PredicateProvenance:
		return "slsaprovenance1"
	case osimage.PredicateCycloneDX:
		return "cyclonedx"
	}
	return "spdxjson"
}

func (a attestation) signers() []string { return signerNames(a.keys, a.identities) }

func signerNames(keys []key, identities []identity) []string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	for _, i := range identities {
		names = append(names, i.Name)
	}
	return names
}

// parse checks what a rule asks for. The rule's own keys and identities are parsed.
func (p PolicyAttestation) parse(r rule, keys []key, identities []identity) (attestation, error) {
	a := attestation{kind: p.Type, builder: p.Builder, keys: r.keys, identities: r.identities}
	if len(p.Keys)+len(p.Identities) > 0 {
		var err error
		if a.keys, err = pick("key", p.Keys, keys, func(k key) string { return k.name }); err != nil {
			return a, err
		}
		if a.identities, err = pick("identity", p.Identities, identities, func(i identity) string { return i.Name }); err != nil {
			return a, err
		}
	}
	switch {
	case p.Type == Provenance && p.Builder == "":
		return a, errors.New("provenance by which builder? add builder")
	case p.Type == Provenance && p.Format != "":
		return a, errors.New("format is for an sbom")
	case p.Type == SBOM && p.Builder != "":
		return a, errors.New("builder is for provenance")
	case p.Type == Provenance:
		a.types = []string{osimage.PredicateProvenance, osimage.PredicateProvenance02}
	case p.Type != SBOM:
		return a, fmt.Errorf("type %q; expected is %s or %s", p.Type, Provenance, SBOM)
	case p.Format == "":
		a.types = []string{osimage.PredicateSPDX, osimage.PredicateCycloneDX}
	case p.Format == "spdx":
		a.types = []string{osimage.PredicateSPDX}
	case p.Format == "cyclonedx":
		a.types = []string{osimage.PredicateCycloneDX}
	default:
		return a, fmt.Errorf("format %q; expected is spdx or cyclonedx", p.Format)
	}
	return a, nil
}

// pick finds things by their names, each once.
func pick[T any](what string, names []string, all []T, name func(T) string) ([]T, error) {
	var found []T
	for i, n := range names {
		at := slices.IndexFunc(all, func(t T) bool { return name(t) == n })
		if at < 0 {
			return nil, fmt.Errorf("no %s is named %q", what, n)
		}
		if slices.Contains(names[:i], n) {
			return nil, fmt.Errorf("%q is there twice", n)
		}
		found = append(found, all[at])
	}
	return found, nil
}

// attested looks for the statement. Otherwise it says what was found instead.
func (v *Verifier) attested(ctx context.Context, j *judgement, a attestation, exhibits []exhibit) (bool, string, error) {
	var instead []string
	note := func(text string) {
		if !slices.Contains(instead, text) && len(instead) < 3 {
			instead = append(instead, text)
		}
	}
	usable, _ := v.sortKeys(&rule{name: j.rule.name, keys: a.keys}, j.created)
	for _, x := range exhibits {
		if !slices.Contains(a.types, x.predicate) {
			continue
		}
		s, err := v.statement(ctx, x, a, usable, j)
		if ctx.Err() != nil {
			return false, "", ctx.Err()
		}
		if err == nil {
			err = a.check(s)
		}
		if err == nil {
			return true, "", nil
		}
		if errors.Is(err, errUnknownKey) {
			err = errors.New("one signed by nobody of these")
		}
		note(err.Error())
	}
	if len(instead) == 0 {
		return false, "none", nil
	}
	return false, strings.Join(instead, ", "), nil
}

// statement verifies an attestation and returns what it says.
func (v *Verifier) statement(ctx context.Context, x exhibit, a attestation, usable []key, j *judgement) (*v1.Statement, error) {
	if !x.certified {
		_, s, err := x.byKey(ctx, usable, j.digest, a.types...)
		return s, err
	}
	who, s, err := x.byIdentity(ctx, v, a.identities, j.digest)
	if err != nil {
		return nil, err
	}
	return s, checkStatement(who.identity.Name, s, a.types)
}

// check holds the content of a verified statement against what was asked.
func (a attestation) check(s *v1.Statement) error {
	said := s.GetPredicate().AsMap()
	if a.kind == Provenance {
		if have := builderOf(said); have != a.builder {
			return fmt.Errorf("one by the builder %.200q", have)
		}
		return nil
	}
	if s.GetPredicateType() == osimage.PredicateSPDX && text(said, "spdxVersion") == "" ||
		s.GetPredicateType() == osimage.PredicateCycloneDX && text(said, "bomFormat") != "CycloneDX" {
		return errors.New("one that lists nothing")
	}
	return nil
}

// builderOf reads the builder's identity out of provenance: SLSA 1 has it in
// runDetails.builder.id, SLSA 0.2 in builder.id.
func builderOf(provenance map[string]any) string {
	if details, ok := provenance["runDetails"].(map[string]any); ok {
		provenance = details
	}
	builder, _ := provenance["builder"].(map[string]any)
	return text(builder, "id")
}

func text(m map[string]any, name string) string {
	s, _ := m[name].(string)
	return s
}

// Description is what a signature or an attestation says of itself, for people.
// Nobody has verified it.
type Description struct {
	Form osimage.Form
	// Type is the type of the statement; empty for a classic signature.
	Type string
	// Certified says that a certificate lies beside it.
	Certified bool
	// Builder is that of provenance, Packages the number of entries of a list of
	// contents.
	Builder  string
	Packages int
}

// Describe reads a signature without verifying it. What cannot be read is an error.
func Describe(s osimage.Signature) (Description, error) {
	x, err := readExhibit(s)
	if err != nil {
		return Description{}, err
	}
	d := Description{Form: s.Form, Type: x.predicate, Certified: x.certified}
	if x.signs() {
		return d, nil
	}
	envelope, err := x.entity.Envelope()
	if err != nil {
		return d, err
	}
	statement, err := envelope.Statement()
	if err != nil {
		return d, err
	}
	said := statement.GetPredicate().AsMap()
	d.Builder = builderOf(said)
	for _, list := range []string{"packages", "components"} {
		entries, _ := said[list].([]any)
		d.Packages += len(entries)
	}
	return d, nil
}
