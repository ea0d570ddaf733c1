package trust

import (
	"errors"
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
	// Unsigned: no signature was found beside the image.
	Unsigned Rule = "unsigned"
	// TooMany: there are more than osimage.MaxSignatures; none was looked at.
	TooMany Rule = "too-many-signatures"
	// OtherImage: a key of the policy signed, but another image.
	OtherImage Rule = "other-image"
	// Malformed: a key of the policy signed something that is no statement
	// about an image, or nothing that was found is a signature at all.
	Malformed Rule = "malformed-signature"
	// UnknownKey: all signatures were made by keys that the policy lacks.
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

// findings sorts the signatures that did not count.
type findings struct {
	malformed []error
	claims    []*claimError
	unknown   int
}

func (f *findings) add(err error) {
	if claim := (*claimError)(nil); errors.As(err, &claim) {
		f.claims = append(f.claims, claim)
		return
	}
	f.unknown++
}

func (f *findings) String() string {
	var parts []string
	for _, c := range f.claims {
		if c.digest != "" {
			parts = append(parts, fmt.Sprintf("one by %s of another image (%.80q)", c.key, c.digest))
		} else {
			parts = append(parts, fmt.Sprintf("one by %s that names no image (%.200v)", c.key, c.err))
		}
	}
	if f.unknown > 0 {
		parts = append(parts, fmt.Sprintf("%s by no key of the policy", plural(f.unknown)))
	}
	for _, err := range f.malformed {
		parts = append(parts, err.Error())
	}
	const most = 5
	if n := len(parts); n > most {
		parts = append(parts[:most], fmt.Sprintf("%d more", n-most))
	}
	return strings.Join(parts, ", ")
}

// refuse explains why none of the signatures counted.
func (v *Verifier) refuse(image digest.Digest, f findings) *Refusal {
	r := &Refusal{Image: image, Have: f.String(), Want: v.want()}
	switch {
	case slices.ContainsFunc(f.claims, func(c *claimError) bool { return c.digest != "" }):
		r.Rule = OtherImage
		r.Next = "signatures do not carry over to another build: sign this digest (osctl sign), and ask who put a foreign signature beside it"
	case len(f.claims) > 0, f.unknown == 0:
		r.Rule = Malformed
		r.Next = "sign the image again (osctl sign or cosign sign --key)"
	default:
		r.Rule = UnknownKey
		r.Next = "if you trust the publisher, add his public key to the policy; otherwise do not install this image"
	}
	return r
}

func (v *Verifier) refuseCount(image digest.Digest, n int) *Refusal {
	if n == 0 {
		return &Refusal{Unsigned, image, "no signature", v.want(), "sign the image (osctl sign REF --key KEY), or push its signature to the same repository"}
	}
	return &Refusal{
		TooMany, image, plural(n), fmt.Sprintf("at most %d", osimage.MaxSignatures),
		fmt.Sprintf("remove the tag %s from the repository and sign the image again", osimage.SignatureTag(image)),
	}
}

// want names the keys of the policy.
func (v *Verifier) want() string {
	var names []string
	for _, k := range v.keys {
		names = append(names, k.String())
	}
	return "a signature by " + strings.Join(names, " or ")
}

func plural(n int) string {
	if n == 1 {
		return "1 signature"
	}
	return fmt.Sprintf("%d signatures", n)
}
