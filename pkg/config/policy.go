package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"
)

// ErrNoPolicy says that no policy file exists: nothing can be verified, so
// nothing is installed.
var ErrNoPolicy = errors.New("there is no policy")

// Policy is policy.yaml: whose signatures count. policy/README.md describes it;
// what it means is for package trust.
type Policy struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Keys       []Key  `yaml:"keys"`
	// Identities are who signs with a certificate instead of a key.
	Identities []Identity `yaml:"identities"`
	// Rules are nil if the file has none: then any one of Keys and Identities is enough.
	Rules   []Rule  `yaml:"rules"`
	Revoked Revoked `yaml:"revoked"`
	// Rescue are the keys whose signatures count for the rescue partition, and for
	// nothing else; without any, nothing is accepted there.
	Rescue []Key `yaml:"rescue"`
	// Channels are the repositories whose tags are followed only as far as a signed
	// statement goes; the first that matches counts.
	Channels []Channel `yaml:"channels"`
	// AllowDowngrade permits osctl upgrade --allow-downgrade.
	AllowDowngrade bool `yaml:"allowDowngrade"`
}

// Key is one public key: PEM in the file itself, or in a file beside it.
type Key struct {
	Name string `yaml:"name"`
	File string `yaml:"file"`
	PEM  string `yaml:"pem"`
	// NotBefore and NotAfter are zero where the file has none.
	NotBefore Time `yaml:"notBefore"`
	NotAfter  Time `yaml:"notAfter"`
}

// Identity is somebody who signs with a certificate. Of subject and issuer, each is
// given as a text or as a pattern.
type Identity struct {
	Name           string `yaml:"name"`
	Subject        string `yaml:"subject"`
	SubjectPattern string `yaml:"subjectPattern"`
	Issuer         string `yaml:"issuer"`
	IssuerPattern  string `yaml:"issuerPattern"`
	// TrustedRoot is the name of a file (sigstore's trusted_root.json), relative to
	// the policy. PolicyFile.Roots has its content.
	TrustedRoot string `yaml:"trustedRoot"`
}

// Rule says which images it is for, and how many of which keys they need.
type Rule struct {
	Name       string   `yaml:"name"`
	Repository string   `yaml:"repository"`
	Product    string   `yaml:"product"`
	Keys       []string `yaml:"keys"`
	Identities []string `yaml:"identities"`
	// Threshold is 0 where the file has none.
	Threshold int `yaml:"threshold"`
	// Annotations are claims as name=value.
	Annotations []string `yaml:"annotations"`
	// Attestations are statements that are needed beside signatures.
	Attestations []Attestation `yaml:"attestations"`
}

// Attestation is a statement about an image: provenance by a builder, or an SBOM.
type Attestation struct {
	Type    string `yaml:"type"`
	Builder string `yaml:"builder"`
	Format  string `yaml:"format"`
	// Keys and Identities may have signed it; those of the rule without any.
	Keys       []string `yaml:"keys"`
	Identities []string `yaml:"identities"`
}

// Channel says whose statements count for the tags of which repositories.
type Channel struct {
	Repository string   `yaml:"repository"`
	Keys       []string `yaml:"keys"`
	// Threshold is 0 where the file has none, and so is MaxAge.
	Threshold int      `yaml:"threshold"`
	MaxAge    Duration `yaml:"maxAge"`
}

// Revoked is what no rule can make good.
type Revoked struct {
	Keys    []Key    `yaml:"keys"`
	Digests []string `yaml:"digests"`
}

// Time is a moment written as in RFC 3339: 2027-06-30T00:00:00Z.
type Time time.Time

// UnmarshalYAML parses a moment.
func (t *Time) UnmarshalYAML(text []byte) error {
	var s string
	if err := yaml.Unmarshal(text, &s); err != nil {
		return err
	}
	v, err := time.Parse(time.RFC3339, s)
	if err != nil || v.IsZero() {
		return fmt.Errorf("%q is no time; write for example 2027-06-30T00:00:00Z", s)
	}
	*t = Time(v)
	return nil
}

func (*Time) spelling() string { return "a time such as 2027-06-30T00:00:00Z" }

// PolicyFile is a policy with the file that it was read from.
type PolicyFile struct {
	Policy
	// Path is the file's name.
	Path string
	// Roots are the trusted roots of Identities, in their order.
	Roots    [][]byte
	document document
}

// Blame is an error with the place in the file of a field such as keys[1] or
// rules[0].threshold, as far down as the file has it.
func (f PolicyFile) Blame(field string, err error) error {
	return f.document.blame(f.document.at(field), err)
}

// Line is the line of a field in the file, from 1; 0 if the file has it nowhere.
func (f PolicyFile) Line(field string) int {
	if at := f.document.at(field); f.document.has(field) && at != nil && at.Position != nil {
		return at.Position.Line
	}
	return 0
}

// LoadPolicy reads the first of the named files that exists, and the key files
// that it names (relative to its folder). Every key has its PEM afterwards.
func LoadPolicy(names ...string) (PolicyFile, error) {
	var f PolicyFile
	name, data, err := first("policy", names)
	if err != nil {
		return f, err
	}
	if data == nil {
		return f, fmt.Errorf("%w: none of %v exists; an image brings its policy in /usr/lib/osctl/policy.yaml", ErrNoPolicy, names)
	}
	f.Path = name
	if f.document, err = decode(name, data, &f.Policy, "Policy"); err != nil {
		return f, err
	}
	if err := f.check(); err != nil {
		return f, err
	}
	for i, who := range f.Identities {
		root, err := readRoot(filepath.Dir(name), who.TrustedRoot)
		if err != nil {
			field := fmt.Sprintf("identities[%d].trustedRoot", i)
			return f, f.Blame(field, fmt.Errorf("%s: identity %s: %w", field, who.Name, err))
		}
		f.Roots = append(f.Roots, root)
	}
	for _, list := range []struct {
		field string
		keys  []Key
	}{{"keys", f.Keys}, {"revoked.keys", f.Revoked.Keys}, {"rescue", f.Rescue}} {
		for i := range list.keys {
			field := fmt.Sprintf("%s[%d]", list.field, i)
			if err := list.keys[i].read(filepath.Dir(name)); err != nil {
				return f, f.Blame(field, fmt.Errorf("%s: %w", field, err))
			}
			for limit, at := range map[string]Time{"notBefore": list.keys[i].NotBefore, "notAfter": list.keys[i].NotAfter} {
				if limit = field + "." + limit; time.Time(at).IsZero() && f.document.has(limit) {
					return f, f.Blame(limit, fmt.Errorf("%s: it has no value; expected is %s", limit, at.spelling()))
				}
			}
		}
	}
	return f, nil
}

// check refuses what YAML reads as absent and its author did not mean so: a list
// or a condition without a value would accept more than is written there.
func (f PolicyFile) check() error {
	complain := func(field, text string) error { return f.Blame(field, errors.New(field+": "+text)) }
	none := len(f.Keys)+len(f.Identities) == 0
	switch {
	case len(f.Keys) == 0 && (f.document.has("keys") || none && !f.document.has("identities")):
		return complain("keys", "the list is empty, so nothing could be verified")
	case len(f.Identities) == 0 && (f.document.has("identities") || none):
		return complain("identities", "the list is empty, so nothing could be verified")
	}
	if len(f.Rules) == 0 && f.document.has("rules") {
		return complain("rules", "the list is empty, so no image would be accepted; leave rules out to accept any one of keys")
	}
	for i, r := range f.Rules {
		at := fmt.Sprintf("rules[%d].", i)
		switch {
		case r.Repository == "" && f.document.has(at+"repository"):
			return complain(at+"repository", "it is empty; leave it out for a rule that matches every repository")
		case r.Product == "" && f.document.has(at+"product"):
			return complain(at+"product", "it is empty; leave it out for a rule that matches every product")
		case len(r.Annotations) == 0 && f.document.has(at+"annotations"):
			return complain(at+"annotations", "the list is empty; leave it out for a rule that asks for none")
		case len(r.Identities) == 0 && f.document.has(at+"identities"):
			return complain(at+"identities", "the list is empty; leave it out for a rule that keys alone satisfy")
		case len(r.Keys) == 0 && f.document.has(at+"keys"):
			return complain(at+"keys", "the list is empty; leave it out for a rule that identities alone satisfy")
		case len(r.Attestations) == 0 && f.document.has(at+"attestations"):
			return complain(at+"attestations", "the list is empty; leave it out for a rule that asks for none")
		case r.Threshold < 1 && f.document.has(at+"threshold"):
			return complain(at+"threshold", fmt.Sprintf("%d; expected is the number of different keys that must have signed, 1 or more", r.Threshold))
		}
		if err := f.checkAttestations(at, r.Attestations); err != nil {
			return err
		}
	}
	return errors.Join(f.checkRevoked(), f.checkChannels())
}

// checkRevoked refuses a list that its author began and did not write.
func (f PolicyFile) checkRevoked() error {
	for _, list := range []struct {
		field string
		none  bool // other than []
	}{{"revoked.keys", f.Revoked.Keys == nil}, {"revoked.digests", f.Revoked.Digests == nil}, {"revoked", f.Revoked.Keys == nil && f.Revoked.Digests == nil}} {
		if list.none && f.document.has(list.field) {
			return f.Blame(list.field, errors.New(list.field+": it has no value; leave it out if nothing is revoked"))
		}
	}
	return nil
}

// checkChannels does the same for the list of channels.
func (f PolicyFile) checkChannels() error {
	complain := func(field, text string) error { return f.Blame(field, errors.New(field+": "+text)) }
	for i, c := range f.Channels {
		at := fmt.Sprintf("channels[%d].", i)
		switch {
		case c.Repository == "":
			return complain(at+"repository", "it is missing or empty; for all repositories of a host write host/**")
		case len(c.Keys) == 0:
			return complain(at+"keys", "the list is empty, so no tag could be followed")
		case c.Threshold < 1 && f.document.has(at+"threshold"):
			return complain(at+"threshold", fmt.Sprintf("%d; expected is the number of different keys that must have signed, 1 or more", c.Threshold))
		case c.MaxAge <= 0 && f.document.has(at+"maxAge"):
			return complain(at+"maxAge", "it has no value; expected is "+c.MaxAge.spelling())
		}
	}
	if len(f.Channels) == 0 && f.document.has("channels") {
		return complain("channels", "the list is empty; leave it out if no tag needs a statement")
	}
	return nil
}

func (f PolicyFile) checkAttestations(rule string, list []Attestation) error {
	for i, a := range list {
		at := fmt.Sprintf("%sattestations[%d].", rule, i)
		for field, n := range map[string]int{"builder": len(a.Builder), "format": len(a.Format), "keys": len(a.Keys), "identities": len(a.Identities)} {
			if n == 0 && f.document.has(at+field) {
				return f.Blame(at+field, fmt.Errorf("%s%s: it is empty; leave it out if it does not matter", at, field))
			}
		}
	}
	return nil
}

// readRoot reads a trusted root; its content is for package trust to judge.
func readRoot(dir, name string) ([]byte, error) {
	if name == "" {
		return nil, errors.New("it has no trustedRoot, the name of a trusted_root.json")
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	return os.ReadFile(name)
}

func (k *Key) read(dir string) error {
	switch {
	case k.Name == "":
		return errors.New("it has no name")
	case (k.File == "") == (k.PEM == ""):
		return fmt.Errorf("key %s: expected is either file or pem", k.Name)
	case k.File == "":
		return nil
	}
	path := k.File
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := readFile(path)
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}
	k.PEM = string(data)
	return nil
}
