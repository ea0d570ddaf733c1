// Package trust decides whether somebody that the policy names vouches for an
// OS image. It is the only place in osctl that verifies a signature.
//
// Parties: a publisher signs the digest of an image's manifest with a private
// key (cosign sign --key, osctl sign); a machine carries a policy with the
// public keys of its publishers. A registry in between is not trusted with
// anything: it can withhold a signature, and that refuses the image.
//
// Or he signs without a key of his own: an authority certifies for some minutes
// who he is, and a log notes what he signed. Then the policy names him, and a
// trusted root with the authorities and logs that count (Identity).
//
// It refuses when in doubt. No policy, no key, no signature, no match or a zero
// value is never a yes, and the only value that says yes, Verified, cannot be
// made outside this package. Nothing that travels beside a signature counts when
// a key decides: certificates, log entries and keys in annotations are not read.
// When an identity decides they are the proof, and every part of it has to hold.
// The repository name in the payload is a claim that nobody checks, because a
// signed image may be mirrored.
//
// It asks no network, no clock and no file: signatures and the present time are
// handed over (Circumstances). The forms are cosign's classic one and the sigstore
// bundle (docs/decisions/0030 and 0035 say which parts of them); the cryptography
// is that of cosign's and sigstore's libraries.
package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
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
	keys       []key
	identities []identity
	rules      []rule
	gone       []key             // the revoked keys
	revoked    map[string]string // fingerprint to name, of the same
	digests    map[digest.Digest]bool
	digest     digest.Digest
	under      Circumstances
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
	basis Basis
}

// Basis is what an image was accepted on.
type Basis struct {
	// Policy is the digest of the whole policy, its keys and trusted roots included
	// (Verifier.Digest).
	Policy digest.Digest `json:"policy"`
	// Rule is the name of the rule that decided; DefaultRule in a policy without rules.
	Rule string `json:"rule"`
	// Signers are the policy's names of the keys and identities that vouched.
	Signers []string `json:"signers"`
}

// Valid reports whether the value came from Verify.
func (v Verified) Valid() bool { return len(v.basis.Signers) > 0 && v.image.Valid() }

// Image is the image that was vouched for.
func (v Verified) Image() osimage.Image { return v.image }

// Basis is what the image was accepted on.
func (v Verified) Basis() Basis {
	b := v.basis
	b.Signers = slices.Clone(b.Signers)
	return b
}

// KeyName is the policy's name of the key or identity that vouched for the image; if
// its rule asks for several, their names with commas between.
func (v Verified) KeyName() string { return strings.Join(v.basis.Signers, ", ") }

// RuleName is the name of the rule that decided; DefaultRule in a policy without
// rules.
func (v Verified) RuleName() string { return v.basis.Rule }

// Digest identifies the policy: equal policies have the same, whatever their files
// look like.
func (v *Verifier) Digest() digest.Digest { return v.digest }

// Wants lists the types of attestations that some rule asks for.
func (v *Verifier) Wants() []string {
	if v == nil {
		return nil
	}
	var list []string
	for _, r := range v.rules {
		for _, a := range r.attestations {
			list = append(list, a.types...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Enough reports whether these signatures of img satisfy the policy, so that no
// others are needed.
func (v *Verifier) Enough(ctx context.Context, img osimage.Image, found []osimage.Signature) bool {
	_, err := v.Verify(ctx, img, found)
	return err == nil
}

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
	digest   digest.Digest
	created  time.Time // what was signed says that it was made then
	rule     *rule     // nil if none matches
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
	j.digest, j.created, j.rule = img.Digest(), img.Config().Created, v.ruleFor(img)
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
	exhibits := readAll(sigs, &j.found)
	if err := v.count(ctx, &j, hash, exhibits, thorough); err != nil {
		return j, fmt.Errorf("verifying signatures of %s: %w", img.Digest(), err)
	}
	if len(j.found.counted) < j.rule.threshold {
		j.refusal = j.rule.refuse(img.Digest(), j.found)
		return j, nil
	}
	for _, a := range j.rule.attestations {
		ok, instead, err := v.attested(ctx, &j, a, exhibits)
		if err != nil {
			return j, fmt.Errorf("verifying attestations of %s: %w", img.Digest(), err)
		}
		if !ok {
			j.refusal = j.rule.refuseAttestation(img.Digest(), a, instead)
			return j, nil
		}
		j.found.attested = append(j.found.attested, a.String())
	}
	j.verified = Verified{img, Basis{v.digest, j.rule.name, voucherNames(j.found.counted)}}
	return j, nil
}

func readAll(sigs []osimage.Signature, f *findings) []exhibit {
	var exhibits []exhibit
	for _, s := range sigs {
		x, err := readExhibit(s)
		if err != nil {
			f.malformed = append(f.malformed, err)
			continue
		}
		exhibits = append(exhibits, x)
	}
	return exhibits
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

// count finds the different keys and identities of the rule that signed. Each counts
// once, however many signatures it made, and one person counts once, however many
// identities of the rule fit him.
func (v *Verifier) count(ctx context.Context, j *judgement, hash v1.Hash, exhibits []exhibit, thorough bool) error {
	usable, others := v.sortKeys(j.rule, j.created)
	seen := map[string]bool{}
	var unknown []exhibit
	for _, x := range exhibits {
		if !x.signs() {
			j.found.attestations++
			continue
		}
		by, err := v.signedBy(ctx, x, hash, usable, j)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		claim, certified := (*claimError)(nil), (*certifiedError)(nil)
		switch {
		case errors.As(err, &claim):
			j.found.claims = append(j.found.claims, claim)
		case errors.As(err, &certified):
			j.found.certified = append(j.found.certified, certified)
		case err != nil:
			unknown = append(unknown, x)
		case !slices.ContainsFunc(by.ids, func(id string) bool { return seen[id] }):
			for _, id := range by.ids {
				seen[id] = true
			}
			j.found.counted = append(j.found.counted, by)
		}
		if len(j.found.counted) >= j.rule.threshold && !thorough {
			return nil
		}
	}
	// What is left decides nothing, and says what to do about a refusal.
	for _, x := range unknown {
		k, err := x.matchKey(ctx, hash, others.keys, nil)
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

// voucher is a key or an identity that counts.
type voucher struct {
	name, text string
	// ids tell it from others: of the key, or of the identity, of who it was, and of the
	// key that was certified.
	ids []string
}

func voucherNames(list []voucher) []string {
	var names []string
	for _, v := range list {
		names = append(names, v.name)
	}
	return names
}

// signedBy finds who signed: a key first, and where none did, an identity.
func (v *Verifier) signedBy(ctx context.Context, x exhibit, hash v1.Hash, usable []key, j *judgement) (voucher, error) {
	k, err := x.matchKey(ctx, hash, usable, j.rule.annotations)
	if !errors.Is(err, errUnknownKey) {
		return voucher{k.name, k.String(), []string{"key " + k.fingerprint}}, err
	}
	who, statement, err := x.byIdentity(ctx, v, j.rule.identities, j.digest)
	if err != nil {
		return voucher{}, err
	}
	by := voucher{who.identity.Name, who.identity.Name + ", who is " + who.exact, []string{"identity " + who.identity.Name, "person " + who.exact, "key " + who.key}}
	if x.classic != nil {
		return by, claimBy(verifyClaim(x.classic, hash, j.rule.annotations), who.identity.Name)
	}
	if err := checkStatement(who.identity.Name, statement, []string{osimage.PredicateSignature}); err != nil {
		return by, err
	}
	return by, lacksAnnotations(who.identity.Name, j.rule.annotations)
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
