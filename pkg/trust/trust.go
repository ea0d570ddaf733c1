// Package trust decides whether somebody that the policy names vouches for an
// OS image. It is the only place in osctl that verifies a signature.
//
// Parties: a publisher signs the digest of an image's manifest with a private
// key (cosign sign --key, osctl sign); a machine carries a policy with the
// public keys of its publishers. A registry in between is not trusted with
// anything: it can withhold a signature, and that refuses the image.
//
// It refuses when in doubt. No policy, no key, no signature, no match or a zero
// value is never a yes, and the only value that says yes, Verified, cannot be
// made outside this package. Nothing that travels beside a signature counts:
// certificates, log entries and keys in annotations are not read, and the
// repository name in the payload is a claim that nobody checks, because a
// signed image may be mirrored.
//
// It asks no network, no clock and no file: signatures and the present time are
// handed over (Circumstances). The format is cosign's (docs/decisions/0030 says which parts
// of it); the cryptography is that of cosign's library.
package trust

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/oci"
)

// Circumstances are what a decision rests on beside the image and its signatures.
// The zero value is the strictest: no rule with a repository matches, and no key
// with a time range counts.
type Circumstances struct {
	// Repository is host and path that the image was asked for by; empty for one
	// that came out of a layout. It is what the operator named, not what a registry
	// or a signature says.
	Repository string
	// Now is the present: the machine's clock, but never before a time that has
	// certainly passed, such as the creation of the running image. A key counts
	// from its NotBefore on as Now has it, and until its NotAfter as the later of
	// Now and the creation time of the image in question has it. So a clock of 1970
	// opens no door, and what it closes opens again when the clock is set.
	Now time.Time
}

// Verifier holds a policy that was found usable. It is safe for use by several
// goroutines. The zero value refuses everything.
type Verifier struct {
	keys    []key
	rules   []rule
	gone    []key             // the revoked keys
	revoked map[string]string // fingerprint to name, of the same
	digests map[digest.Digest]bool
	under   Circumstances
}

// Under returns a verifier of the same policy that decides under c.
func (v *Verifier) Under(c Circumstances) *Verifier {
	if v == nil {
		return nil
	}
	bound := *v
	bound.under = c
	return &bound
}

// Verified is an image with a signature that satisfies the policy. Only Verify
// makes one; consumers refuse the zero value by asking Valid.
type Verified struct {
	image osimage.Image
	key   string // names, joined
	rule  string
}

// Valid reports whether the value came from Verify.
func (v Verified) Valid() bool { return v.key != "" && v.image.Valid() }

// Image is the image that was vouched for.
func (v Verified) Image() osimage.Image { return v.image }

// KeyName is the policy's name of the key that vouched for it; if its rule asks
// for several, their names with commas between.
func (v Verified) KeyName() string { return v.key }

// RuleName is the name of the rule that decided; DefaultRule in a policy without
// rules.
func (v Verified) RuleName() string { return v.rule }

// Verify decides by the first rule that matches img: whether enough different keys
// of that rule signed it. Signatures that do not count are no obstacle to those
// that do. A refusal is a *Refusal; any other error means that nothing was decided.
func (v *Verifier) Verify(ctx context.Context, img osimage.Image, sigs []osimage.Signature) (Verified, error) {
	j, err := v.judge(ctx, img, sigs, false)
	if err != nil {
		return Verified{}, err
	}
	if j.refusal != nil {
		return Verified{}, j.refusal
	}
	return j.verified, nil
}

// judgement is a decision with its reasons.
type judgement struct {
	rule     *rule // nil if none matches
	verified Verified
	refusal  *Refusal // nil if accepted
	found    findings
}

// judge decides. With thorough it looks at every signature, also once there are
// enough.
func (v *Verifier) judge(ctx context.Context, img osimage.Image, sigs []osimage.Signature, thorough bool) (j judgement, err error) {
	if v == nil || len(v.rules) == 0 {
		return j, fmt.Errorf("%w: the verifier holds no key", ErrPolicy)
	}
	if !img.Valid() {
		return j, errors.New("verifying signatures: there is no image")
	}
	hash, err := v1.NewHash(img.Digest().String())
	if err != nil {
		return j, fmt.Errorf("verifying signatures of %s: %w", img.Digest(), err)
	}
	j.rule = v.ruleFor(img)
	switch n := len(sigs); {
	case v.digests[img.Digest()]:
		j.refusal = refuseRevoked(img.Digest())
	case j.rule == nil:
		j.refusal = v.refuseNoRule(img)
	case n == 0 || n > osimage.MaxSignatures:
		j.refusal = j.rule.refuseCount(img.Digest(), n)
	}
	if j.refusal != nil {
		return j, nil
	}
	if err := v.count(ctx, &j, hash, sigs, thorough, img.Config().Created); err != nil {
		return j, fmt.Errorf("verifying signatures of %s: %w", img.Digest(), err)
	}
	if len(j.found.counted) < j.rule.threshold {
		j.refusal = j.rule.refuse(img.Digest(), j.found)
		return j, nil
	}
	j.verified = Verified{img, keyNames(j.found.counted), j.rule.name}
	return j, nil
}

// ruleFor is the first rule that matches, or nil.
func (v *Verifier) ruleFor(img osimage.Image) *rule {
	for i := range v.rules {
		if ok, _ := v.rules[i].matches(img, v.under.Repository); ok {
			return &v.rules[i]
		}
	}
	return nil
}

// count finds the different keys of the rule that signed. A key counts once,
// however many signatures it made.
func (v *Verifier) count(ctx context.Context, j *judgement, hash v1.Hash, sigs []osimage.Signature, thorough bool, created time.Time) error {
	usable, others := v.sortKeys(j.rule, created)
	seen := map[string]bool{}
	var unknown []oci.Signature
	for _, s := range sigs {
		sig, err := candidate(s)
		if err != nil {
			j.found.malformed = append(j.found.malformed, err)
			continue
		}
		k, err := match(ctx, sig, hash, usable, j.rule.annotations)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		claim := (*claimError)(nil)
		switch {
		case errors.As(err, &claim):
			j.found.claims = append(j.found.claims, claim)
		case err != nil:
			unknown = append(unknown, sig)
		case !seen[k.fingerprint]:
			seen[k.fingerprint] = true
			j.found.counted = append(j.found.counted, k)
		}
		if len(j.found.counted) >= j.rule.threshold && !thorough {
			return nil
		}
	}
	// What is left decides nothing, and says what to do about a refusal.
	for _, sig := range unknown {
		k, err := match(ctx, sig, hash, others.keys, nil)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.As(err, new(*claimError)) {
			j.found.unknown++
			continue
		}
		j.found.add(others.why[k.fingerprint], k)
	}
	return nil
}

// otherKeys are keys that do not count, and why.
type otherKeys struct {
	keys []key
	why  map[string]disregard
}

// sortKeys parts the keys of a rule that count now from all other keys that the
// policy knows.
func (v *Verifier) sortKeys(r *rule, created time.Time) (usable []key, others otherKeys) {
	others.why = map[string]disregard{}
	add := func(k key, d disregard) {
		others.keys = append(others.keys, k)
		others.why[k.fingerprint] = d
	}
	inRule := map[string]bool{}
	for _, k := range r.keys {
		inRule[k.fingerprint] = true
		_, revoked := v.revoked[k.fingerprint]
		reason := k.outOfTime(v.under.Now, created)
		switch {
		case revoked:
			// Added below, under the name that the list of revoked keys has for it.
		case reason != "":
			add(k, disregard{OutOfTime, reason})
		default:
			usable = append(usable, k)
		}
	}
	for _, k := range v.gone {
		add(k, disregard{RevokedKey, "revoked"})
	}
	for _, k := range v.keys {
		if _, revoked := v.revoked[k.fingerprint]; !revoked && !inRule[k.fingerprint] {
			add(k, disregard{UnknownKey, "not named by the rule " + r.name})
		}
	}
	return usable, others
}
