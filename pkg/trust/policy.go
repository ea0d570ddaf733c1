package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
)

// ErrPolicy says that a policy cannot be used, so that every image would be
// refused: it names no key, or something in it is malformed, weak, there twice or
// can never be met. New's errors are *PolicyError.
var ErrPolicy = errors.New("unusable trust policy")

// PolicyError says what is wrong with a policy, and where.
type PolicyError struct {
	// Field is the place as in a policy file: keys[1], rules[0].threshold.
	Field string
	Err   error
}

func (e *PolicyError) Error() string { return fmt.Sprintf("%v: %s: %v", ErrPolicy, e.Field, e.Err) }

// Unwrap makes a PolicyError an ErrPolicy too.
func (e *PolicyError) Unwrap() []error { return []error{ErrPolicy, e.Err} }

// Policy says whose signatures make an image acceptable.
type Policy struct {
	// Keys and Identities are who may sign; there has to be one.
	Keys       []Key
	Identities []Identity
	// Rules are tried in order, and the first that matches an image decides alone;
	// an image that none matches is refused. Nil stands for one rule that matches
	// every image and asks for a signature by any one of Keys and Identities; an
	// empty list is an error.
	Rules []PolicyRule
	// Revoked is what no rule can make good.
	Revoked Revoked
}

// Key is a public key under the name that reports call it by.
type Key struct {
	// Name is 1 to 64 letters, digits and . _ - inside; unique in a policy.
	Name string
	// PEM is one PEM block of type PUBLIC KEY (as in cosign.pub) or
	// RSA PUBLIC KEY, with an ECDSA P-256, RSA (2048, 3072 or 4096 bits) or
	// Ed25519 key.
	PEM []byte
	// NotBefore and NotAfter are the first and the last moment at which the key
	// counts; zero means no such limit. Circumstances says what they are held
	// against.
	NotBefore, NotAfter time.Time
}

// PolicyRule says what the images that it matches need.
type PolicyRule struct {
	// Name is what reports call it; made as that of a key.
	Name string
	// Repository is a pattern for the repository that the image was asked for by:
	// host and path, without tag and digest. * stands for any characters within one
	// part of the path, a last part ** for one or more parts. Empty matches every
	// image, also one that came without a repository, out of a layout.
	Repository string
	// Product is the product that the image must say it is of; empty matches all.
	Product string
	// Keys and Identities are names of those of the policy. Threshold is how many
	// different ones of both together must have signed; 0 stands for 1.
	Keys       []string
	Identities []string
	Threshold  int
	// Annotations are claims name=value that each signature has to carry within
	// what is signed, as cosign sign -a makes them. Bundles carry none.
	Annotations []string
	// Attestations are statements that are needed beside the signatures, all of them.
	Attestations []PolicyAttestation
}

// Revoked lists keys, told by the key itself whatever its name, and digests of
// manifests that are never accepted.
type Revoked struct {
	Keys    []Key
	Digests []digest.Digest
}

// DefaultRule is the name of the rule of a policy without rules.
const DefaultRule = "default"

// New checks a policy. Its error is a *PolicyError. What it returns knows no
// circumstances: see Under.
func New(p Policy) (*Verifier, error) {
	if len(p.Keys)+len(p.Identities) == 0 {
		return nil, &PolicyError{"keys", errors.New("it names no key; add the publisher's cosign.pub under keys")}
	}
	keys, err := parseKeys("keys", p.Keys)
	if err != nil {
		return nil, err
	}
	revoked, err := parseKeys("revoked.keys", p.Revoked.Keys)
	if err != nil {
		return nil, err
	}
	identities, err := parseIdentities(p.Identities, keys)
	if err != nil {
		return nil, err
	}
	v := &Verifier{keys: keys, identities: identities, digest: p.digest(), revoked: map[string]string{}, digests: map[digest.Digest]bool{}}
	for _, k := range revoked {
		v.revoked[k.fingerprint] = k.name
		v.gone = append(v.gone, k)
	}
	for i, d := range p.Revoked.Digests {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, &PolicyError{fmt.Sprintf("revoked.digests[%d]", i), fmt.Errorf("%q; expected is sha256: and 64 hexadecimal digits", d)}
		}
		v.digests[d] = true
	}
	if p.Rules == nil {
		v.rules = []rule{{name: DefaultRule, keys: keys, identities: identities, threshold: 1}}
		return v, nil
	}
	v.rules, err = parseRules(p.Rules, keys, identities)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// digest identifies a policy by all that it says. The types hold nothing that has no
// JSON.
func (p Policy) digest() digest.Digest {
	text, err := json.Marshal(p)
	if err != nil {
		return ""
	}
	return digest.FromBytes(text)
}

// parseKeys checks a list of keys: no name and no key is there twice.
func parseKeys(field string, list []Key) ([]key, error) {
	names, prints := map[string]bool{}, map[string]string{}
	var keys []key
	for i, k := range list {
		fail := func(err error) ([]key, error) {
			return nil, &PolicyError{fmt.Sprintf("%s[%d]", field, i), err}
		}
		if err := osimage.CheckName("name", k.Name); err != nil {
			return fail(fmt.Errorf("key %d: %w", i+1, err))
		}
		if names[k.Name] {
			return fail(fmt.Errorf("two keys are named %q", k.Name))
		}
		parsed, err := parseKey(k)
		if err != nil {
			return fail(fmt.Errorf("key %q: %w", k.Name, err))
		}
		if other, ok := prints[parsed.fingerprint]; ok {
			return fail(fmt.Errorf("%q and %q are the same key", other, k.Name))
		}
		if !k.NotAfter.IsZero() && k.NotAfter.Before(k.NotBefore) {
			return fail(fmt.Errorf("key %q: notAfter is before notBefore", k.Name))
		}
		names[k.Name], prints[parsed.fingerprint] = true, k.Name
		keys = append(keys, parsed)
	}
	return keys, nil
}

// rule is a PolicyRule that was found usable.
type rule struct {
	name, repository, product string
	keys                      []key
	identities                []identity
	threshold                 int
	annotations               map[string]any
	attestations              []attestation
}

// parseRules checks the rules and finds their keys.
func parseRules(list []PolicyRule, keys []key, identities []identity) ([]rule, error) {
	if len(list) == 0 {
		return nil, &PolicyError{"rules", errors.New("the list is empty, so no image would be accepted; leave rules out to accept any one of keys")}
	}
	var rules []rule
	names := map[string]bool{}
	for i, p := range list {
		fail := func(field string, err error) ([]rule, error) {
			return nil, &PolicyError{fmt.Sprintf("rules[%d]%s", i, field), err}
		}
		if err := osimage.CheckName("name", p.Name); err != nil {
			return fail("", fmt.Errorf("rule %d: %w", i+1, err))
		}
		if names[p.Name] {
			return fail(".name", fmt.Errorf("two rules are named %q", p.Name))
		}
		names[p.Name] = true
		if err := checkPattern(p.Repository); err != nil {
			return fail(".repository", err)
		}
		if p.Product != "" {
			if err := osimage.CheckName("product", p.Product); err != nil {
				return fail(".product", err)
			}
		}
		r := rule{name: p.Name, repository: p.Repository, product: p.Product, threshold: max(p.Threshold, 1), annotations: map[string]any{}}
		for j, claim := range p.Annotations {
			name, value, _ := strings.Cut(claim, "=")
			if _, twice := r.annotations[name]; name == "" || value == "" || twice {
				return fail(fmt.Sprintf(".annotations[%d]", j), fmt.Errorf("%q; expected is name=value, each name once", claim))
			}
			r.annotations[name] = value
		}
		for j, name := range p.Keys {
			at := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
			if at < 0 {
				return fail(fmt.Sprintf(".keys[%d]", j), fmt.Errorf("no key is named %q; there are %s", name, keyNames(keys)))
			}
			if slices.ContainsFunc(r.keys, func(k key) bool { return k.fingerprint == keys[at].fingerprint }) {
				return fail(fmt.Sprintf(".keys[%d]", j), fmt.Errorf("%q is there twice", name))
			}
			r.keys = append(r.keys, keys[at])
		}
		var err error
		if r.identities, err = pick("identity", p.Identities, identities, func(i identity) string { return i.Name }); err != nil {
			return fail(".identities", err)
		}
		most := len(r.keys) + len(r.identities)
		if most == 0 {
			return fail("", fmt.Errorf("rule %q: it names no keys, so it would accept nothing", p.Name))
		}
		if p.Threshold < 0 || p.Threshold > most {
			return fail(".threshold", fmt.Errorf("%d of %d keys; allowed are 1 to %d", p.Threshold, most, most))
		}
		for j, a := range p.Attestations {
			parsed, err := a.parse(r, keys, identities)
			if err != nil {
				return fail(fmt.Sprintf(".attestations[%d]", j), err)
			}
			r.attestations = append(r.attestations, parsed)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func keyNames(keys []key) string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	return strings.Join(names, ", ")
}

// patternPart is one part of a pattern: what the OCI distribution specification
// permits in a repository or a host, and the star.
var patternPart = regexp.MustCompile(`^[a-z0-9*]([a-z0-9._:*-]*[a-z0-9*])?$`)

func checkPattern(pattern string) error {
	if pattern == "" {
		return nil
	}
	parts := strings.Split(pattern, "/")
	for i, part := range parts {
		if part == "**" && i == len(parts)-1 {
			return nil
		}
		if !patternPart.MatchString(part) || strings.Contains(part, "**") || i > 0 && strings.Contains(part, ":") {
			return fmt.Errorf("%q; expected is host/path in lower case, without a tag, where * stands for any characters within one part and a last /** for all below", pattern)
		}
	}
	if len(parts) == 1 {
		return fmt.Errorf("%q names no repository; for all of that host write %s/**", pattern, pattern)
	}
	return nil
}

// matches reports whether the rule is the one for an image; if not, why.
func (r rule) matches(img osimage.Image, repository string) (bool, string) {
	if r.repository != "" {
		if repository == "" {
			return false, "it is for " + r.repository + ", and the image has no repository"
		}
		if !matchRepository(r.repository, repository) {
			return false, "it is for " + r.repository
		}
	}
	if have := img.Config().Product; r.product != "" && r.product != have {
		return false, "it is for the product " + r.product
	}
	return true, ""
}

func matchRepository(pattern, repository string) bool {
	host, rest, _ := strings.Cut(repository, "/")
	want, have := strings.Split(pattern, "/"), strings.Split(strings.ToLower(host)+"/"+rest, "/")
	for i, part := range want {
		if part == "**" {
			return len(have) > i
		}
		if i >= len(have) {
			return false
		}
		if ok, err := path.Match(part, have[i]); err != nil || !ok {
			return false
		}
	}
	return len(want) == len(have)
}

// String is the rule's name and what it matches, for reports.
func (r rule) String() string {
	switch {
	case r.repository != "" && r.product != "":
		return fmt.Sprintf("%s (repository %s, product %s)", r.name, r.repository, r.product)
	case r.repository != "":
		return fmt.Sprintf("%s (repository %s)", r.name, r.repository)
	case r.product != "":
		return fmt.Sprintf("%s (product %s)", r.name, r.product)
	}
	return r.name + " (every image)"
}

// claims are the annotations that the rule asks for, as name=value, sorted.
func (r rule) claims() []string {
	var list []string
	for name, value := range r.annotations {
		list = append(list, fmt.Sprintf("%s=%v", name, value))
	}
	slices.Sort(list)
	return list
}

// want names what the rule asks for.
func (r rule) want() string {
	var names []string
	for _, k := range r.keys {
		names = append(names, k.String())
	}
	for _, i := range r.identities {
		names = append(names, i.String())
	}
	want := "a signature by " + strings.Join(names, " or ")
	if r.threshold > 1 {
		want = fmt.Sprintf("signatures by %d different keys of %s", r.threshold, strings.Join(names, ", "))
	}
	if len(r.annotations) > 0 {
		want += " with " + strings.Join(r.claims(), ", ")
	}
	if r.name != DefaultRule {
		want += " (rule " + r.name + ")"
	}
	return want
}
