package trust

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// RuleInfo describes a rule for people.
type RuleInfo struct {
	Name       string
	Repository string // empty: every one
	Product    string // empty: every one
	Threshold  int    // different keys that must have signed
	Keys       []string
	// Identities are the names of those that count beside Keys.
	Identities []string
	// Annotations are the claims name=value that each signature has to carry.
	Annotations []string
	// Attestations say what is needed beside signatures.
	Attestations []string
}

// IdentityInfo describes an identity of a policy for people.
type IdentityInfo struct {
	Name, Subject, Issuer string // a pattern stands between slashes
	// TrustedRoot is the SHA-256 of the file, in hex.
	TrustedRoot string
	// Signed says that a signature by it counts; only in an Explanation.
	Signed bool
}

// KeyInfo describes a key of a policy for people.
type KeyInfo struct {
	Name        string
	Fingerprint string    // SHA-256 of the DER form, in hex
	NotBefore   time.Time // zero: no limit
	NotAfter    time.Time
	// Ignored is why the key does not count now; empty if it does.
	Ignored string
	// Signed says that the key made a signature of the image that counts; only in
	// an Explanation.
	Signed bool
}

// Explanation is a decision with its reasons. It accepts nothing: see Verify.
type Explanation struct {
	// Passed are the rules before the one that decides, with why they do not match.
	Passed []string
	// Rule is the one that decides, and Index its place in the policy, from 0. If
	// none matches, Rule is nil and Index is -1.
	Rule  *RuleInfo
	Index int
	// Keys and Identities are those of the rule.
	Keys       []KeyInfo
	Identities []IdentityInfo
	// Found sums up all signatures, those that count first.
	Found string
	// Refusal is the answer of Verify; nil if it accepts.
	Refusal *Refusal
}

// Explain says what Verify decides, and why. Other than Verify it looks at all
// signatures.
func (v *Verifier) Explain(ctx context.Context, img osimage.Image, sigs []osimage.Signature) (Explanation, error) {
	j, err := v.judge(ctx, img, sigs, true)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Index: -1, Found: j.found.String(), Refusal: j.refusal}
	switch {
	case len(sigs) == 0:
		e.Found = "no signature"
	case e.Found == "":
		e.Found = plural(len(sigs)) + ", not looked at"
	}
	for i := range v.rules {
		if j.rule == &v.rules[i] {
			e.Index = i
			break
		}
		_, why := v.rules[i].matches(img, v.under.Repository)
		e.Passed = append(e.Passed, v.rules[i].name+": "+why)
	}
	if j.rule == nil {
		return e, nil
	}
	info := j.rule.info()
	e.Rule = &info
	for _, k := range j.rule.keys {
		described := v.describe(k, img.Config().Created)
		described.Signed = j.found.has("key " + k.fingerprint)
		e.Keys = append(e.Keys, described)
	}
	for _, i := range j.rule.identities {
		described := i.info()
		described.Signed = j.found.has("identity " + i.Name)
		e.Identities = append(e.Identities, described)
	}
	return e, nil
}

func (r rule) info() RuleInfo {
	info := RuleInfo{Name: r.name, Repository: r.repository, Product: r.product, Threshold: r.threshold, Annotations: r.claims()}
	for _, k := range r.keys {
		info.Keys = append(info.Keys, k.name)
	}
	for _, i := range r.identities {
		info.Identities = append(info.Identities, i.Name)
	}
	for _, a := range r.attestations {
		info.Attestations = append(info.Attestations, a.String())
	}
	return info
}

func (v *Verifier) describe(k key, created time.Time) KeyInfo {
	info := KeyInfo{Name: k.name, Fingerprint: k.fingerprint, NotBefore: k.notBefore, NotAfter: k.notAfter, Ignored: k.outOfTime(v.under.Now, created)}
	if _, revoked := v.revoked[k.fingerprint]; revoked {
		info.Ignored = "revoked"
	}
	return info
}

func (f findings) has(id string) bool {
	return slices.ContainsFunc(f.counted, func(v voucher) bool { return slices.Contains(v.ids, id) })
}

func (i identity) info() IdentityInfo {
	between := func(text, pattern string) string {
		if pattern != "" {
			return "/" + pattern + "/"
		}
		return text
	}
	return IdentityInfo{
		Name: i.Name, Subject: between(i.Subject, i.SubjectPattern), Issuer: between(i.Issuer, i.IssuerPattern), TrustedRoot: i.root.fingerprint,
	}
}

// Identities describes the identities.
func (v *Verifier) Identities() []IdentityInfo {
	var list []IdentityInfo
	for _, i := range v.identities {
		list = append(list, i.info())
	}
	return list
}

// Rules describes the rules, in order.
func (v *Verifier) Rules() []RuleInfo {
	var list []RuleInfo
	for _, r := range v.rules {
		list = append(list, r.info())
	}
	return list
}

// Keys describes the keys, and then those that are only in the list of revoked
// ones.
func (v *Verifier) Keys() []KeyInfo {
	var list []KeyInfo
	known := map[string]bool{}
	for _, k := range slices.Concat(v.keys, v.gone) {
		if !known[k.fingerprint] {
			list = append(list, v.describe(k, time.Time{}))
		}
		known[k.fingerprint] = true
	}
	return list
}

// Doubt is something in a usable policy that its author hardly meant.
type Doubt struct {
	Field string // as in PolicyError
	Text  string
}

// Doubts finds rules that no image can reach or satisfy now, and keys that no
// rule asks for.
func (v *Verifier) Doubts() []Doubt {
	var list []Doubt
	asked, askedFor := map[string]bool{}, map[string]bool{}
	for i, r := range v.rules {
		field := fmt.Sprintf("rules[%d]", i)
		for _, before := range v.rules[:i] {
			if (before.repository == "" || before.repository == r.repository) && (before.product == "" || before.product == r.product) {
				list = append(list, Doubt{field, fmt.Sprintf("no image reaches the rule %s: %s matches all that it matches", r.name, before.name)})
				break
			}
		}
		count := 0
		for _, k := range r.keys {
			asked[k.fingerprint] = true
			if v.describe(k, time.Time{}).Ignored == "" {
				count++
			}
		}
		count += len(r.identities)
		if count < r.threshold {
			list = append(list, Doubt{field, fmt.Sprintf("the rule %s accepts nothing now: it asks for %d different keys, and %d of its keys count", r.name, r.threshold, count)})
		}
		if len(r.annotations) > 0 && len(r.identities) > 0 {
			list = append(list, Doubt{field, fmt.Sprintf("the rule %s asks for annotations, which sigstore bundles do not carry", r.name)})
		}
		for _, a := range r.attestations {
			for _, k := range a.keys {
				asked[k.fingerprint] = true
			}
			for _, i := range a.identities {
				askedFor[i.Name] = true
			}
		}
		for _, i := range r.identities {
			askedFor[i.Name] = true
		}
	}
	for i, k := range v.keys {
		if !asked[k.fingerprint] {
			list = append(list, Doubt{fmt.Sprintf("keys[%d]", i), "no rule asks for the key " + k.name})
		}
	}
	for i, who := range v.identities {
		if !askedFor[who.Name] {
			list = append(list, Doubt{fmt.Sprintf("identities[%d]", i), "no rule asks for the identity " + who.Name})
		}
	}
	return list
}
