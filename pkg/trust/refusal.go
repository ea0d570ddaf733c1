package trust

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
)

// Rule names the rule that an image broke.
type Rule string

// The rules, from the one that says most about a set of signatures to the one
// that says least: a refusal carries the first that applies.
const (
	// RevokedImage: the policy lists the image's digest as revoked.
	RevokedImage Rule = "revoked-image"
	// NoRule: no rule of the policy is for such an image.
	NoRule Rule = "no-rule"
	// Unsigned: no signature was found beside the image.
	Unsigned Rule = "unsigned"
	// TooMany: there are more than osimage.MaxSignatures; none was looked at.
	TooMany Rule = "too-many-signatures"
	// Threshold: keys of the rule signed, and fewer than it asks for.
	Threshold Rule = "threshold"
	// RevokedKey: a key signed that the policy lists as revoked.
	RevokedKey Rule = "revoked-key"
	// OutOfTime: a key signed that has expired, or does not count yet.
	OutOfTime Rule = "key-out-of-time"
	// OtherImage: a key of the policy signed, but another image.
	OtherImage Rule = "other-image"
	// Annotation: a key of the rule signed the image, without the annotations that
	// the rule asks for.
	Annotation Rule = "annotation"
	// Malformed: a key of the policy signed something that is no statement
	// about an image, or nothing that was found is a signature at all.
	Malformed Rule = "malformed-signature"
	// UnknownIdentity: the certificates are good, and for others than the rule names.
	UnknownIdentity Rule = "unknown-identity"
	// Unproven: a certificate, an entry of a log or a timestamp does not hold.
	Unproven Rule = "unproven-certificate"
	// Attestation: the image is signed, and a statement that the rule asks for is
	// missing, or by somebody else.
	Attestation Rule = "attestation"
	// UnknownKey: all signatures were made by keys that the policy lacks, or that
	// the rule for this image does not name.
	UnknownKey Rule = "unknown-key"
)

// Refusal is the answer no, with its facts.
type Refusal struct {
	Rule  Rule
	Image digest.Digest // the image that was asked about
	Have  string        // what was found
	Want  string        // what the policy asks for
	Next  string        // what a person can do about it
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("the policy does not accept %s: found %s; wanted %s; %s", r.Image, r.Have, r.Want, r.Next)
}

// disregard is why a key of the policy does not count.
type disregard struct {
	rule   Rule
	reason string
}

// findings sorts the signatures: the different keys that count, and those that
// did not count.
type findings struct {
	counted      []voucher
	malformed    []error
	claims       []*claimError
	certified    []*certifiedError
	ignored      []string // by keys that the policy knows and that do not count
	rules        []Rule   // why they do not
	unknown      int
	attestations int      // that lie there; a rule may ask for them
	attested     []string // what was asked for and found
}

func (f *findings) add(d disregard, k key) {
	text := fmt.Sprintf("one by %s, which is %s", k, d.reason)
	if slices.Contains(f.ignored, text) {
		return
	}
	f.ignored = append(f.ignored, text)
	f.rules = append(f.rules, d.rule)
}

func (f *findings) String() string {
	var parts []string
	for _, v := range f.counted {
		parts = append(parts, "one by "+v.text)
	}
	parts = append(parts, f.attested...)
	parts = append(parts, f.ignored...)
	for _, c := range f.claims {
		if c.lacks {
			parts = append(parts, fmt.Sprintf("one by %s without the annotations that are asked for", c.key))
		} else if c.digest != "" {
			parts = append(parts, fmt.Sprintf("one by %s of another image (%.80q)", c.key, c.digest))
		} else {
			parts = append(parts, fmt.Sprintf("one by %s that names no image (%.200v)", c.key, c.err))
		}
	}
	if f.unknown > 0 {
		parts = append(parts, fmt.Sprintf("%s by no key of the policy", plural(f.unknown)))
	}
	for _, err := range f.certified {
		parts = append(parts, err.Error())
	}
	for _, err := range f.malformed {
		parts = append(parts, err.Error())
	}
	if len(parts) == 0 && f.attestations > 0 {
		parts = append(parts, "attestations, which are no signatures")
	}
	const most = 5
	if n := len(parts); n > most {
		parts = append(parts[:most], fmt.Sprintf("%d more", n-most))
	}
	return strings.Join(parts, ", ")
}

// refuse explains why the signatures were not enough.
func (r *rule) refuse(image digest.Digest, f findings) *Refusal {
	no := &Refusal{Image: image, Have: f.String(), Want: r.want()}
	switch {
	case len(f.counted) > 0:
		no.Rule = Threshold
		no.Next = "let the other holders of keys sign this digest (osctl sign), and ask again"
	case slices.Contains(f.rules, RevokedKey):
		no.Rule = RevokedKey
		no.Next = "do not install this image; its publisher signs it anew with a key that still counts"
	case slices.Contains(f.rules, OutOfTime):
		no.Rule = OutOfTime
		no.Next = "check the clock of this machine (timedatectl); if it is right, the image has to be signed with a key that counts now"
	case slices.ContainsFunc(f.claims, func(c *claimError) bool { return c.lacks }):
		no.Rule = Annotation
		no.Next = "this image was signed for something else; if it is meant for this too, sign it so (cosign sign -a NAME=VALUE)"
	case slices.ContainsFunc(f.claims, func(c *claimError) bool { return c.digest != "" }):
		no.Rule = OtherImage
		no.Next = "signatures do not carry over to another build: sign this digest (osctl sign), and ask who put a foreign signature beside it"
	case slices.ContainsFunc(f.certified, func(c *certifiedError) bool { return c.who != "" }):
		no.Rule = UnknownIdentity
		no.Next = "if you trust who signed, add the identity to the policy; otherwise do not install this image"
	case len(f.certified) > 0:
		no.Rule = Unproven
		no.Next = "sign the image again with the log and the timestamp service that the policy's trusted root names, or bring the trusted root up to date"
	case f.attestations > 0 && f.unknown+len(f.claims)+len(f.malformed)+len(f.ignored) == 0:
		no.Rule = Unsigned
		no.Next = "sign the image (osctl sign REF --key KEY); an attestation says how it was made, not that it is good"
	case len(f.claims) > 0, f.unknown == 0 && len(f.ignored) == 0:
		no.Rule = Malformed
		no.Next = "sign the image again (osctl sign or cosign sign --key)"
	default:
		no.Rule = UnknownKey
		no.Next = "if you trust the publisher, add his public key to the policy; otherwise do not install this image"
	}
	return no
}

func (r *rule) refuseCount(image digest.Digest, n int) *Refusal {
	if n == 0 {
		return &Refusal{Unsigned, image, "no signature", r.want(), "sign the image (osctl sign REF --key KEY), or push its signature to the same repository"}
	}
	return &Refusal{
		TooMany, image, plural(n), fmt.Sprintf("at most %d", osimage.MaxSignatures),
		fmt.Sprintf("remove the tag %s from the repository and sign the image again", osimage.SignatureTag(image)),
	}
}

func (r *rule) refuseAttestation(image digest.Digest, a attestation, instead string) *Refusal {
	want := a.String()
	if r.name != DefaultRule {
		want += " (rule " + r.name + ")"
	}
	return &Refusal{
		Attestation, image, "the signatures that are needed, and of the attestation that is asked for: " + instead, want,
		"attest it (cosign attest --type " + a.option() + "), or ask the publisher for an image that has it",
	}
}

func refuseRevoked(image digest.Digest) *Refusal {
	return &Refusal{
		RevokedImage, image, "its digest among the revoked ones", "an image that is not revoked",
		"install another image; do not sign this one again",
	}
}

func (v *Verifier) refuseNoRule(img osimage.Image) *Refusal {
	from := "no repository (it came from a layout)"
	if v.under.Repository != "" {
		from = "the repository " + v.under.Repository
	}
	var rules []string
	for _, r := range v.rules {
		rules = append(rules, r.String())
	}
	return &Refusal{
		NoRule, img.Digest(), fmt.Sprintf("%s and the product %q", from, img.Config().Product),
		"an image for one of the rules " + strings.Join(rules, ", "),
		"name an image that this machine is meant to run, or add a rule for this one to the policy",
	}
}

func plural(n int) string {
	if n == 1 {
		return "1 signature"
	}
	return fmt.Sprintf("%d signatures", n)
}
