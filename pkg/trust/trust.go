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
// It asks no network, no clock and no file: signatures are fetched by others
// and handed over. The format is cosign's (docs/decisions/0030 says which parts
// of it); the cryptography is that of cosign's library.
package trust

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
)

// ErrPolicy says that a policy cannot be used, so that every image would be
// refused: it names no key, or a key that is malformed, weak or there twice.
var ErrPolicy = errors.New("unusable trust policy")

// Policy says whose signature makes an image acceptable: any one of Keys.
type Policy struct {
	Keys []Key
}

// Key is a public key under the name that reports call it by.
type Key struct {
	// Name is 1 to 64 letters, digits and . _ - inside; unique in a policy.
	Name string
	// PEM is one PEM block of type PUBLIC KEY (as in cosign.pub) or
	// RSA PUBLIC KEY, with an ECDSA P-256, RSA (2048, 3072 or 4096 bits) or
	// Ed25519 key.
	PEM []byte
}

// Verifier holds a policy that was found usable. It is safe for use by several
// goroutines. The zero value refuses everything.
type Verifier struct {
	keys []key
}

// New checks a policy. Its error wraps ErrPolicy and names the key at fault.
func New(p Policy) (*Verifier, error) {
	if len(p.Keys) == 0 {
		return nil, fmt.Errorf("%w: it names no key; add the publisher's cosign.pub under keys", ErrPolicy)
	}
	names, prints := map[string]bool{}, map[string]string{}
	v := &Verifier{}
	for i, k := range p.Keys {
		if err := osimage.CheckName("name", k.Name); err != nil {
			return nil, fmt.Errorf("%w: key %d: %w", ErrPolicy, i+1, err)
		}
		if names[k.Name] {
			return nil, fmt.Errorf("%w: two keys are named %q", ErrPolicy, k.Name)
		}
		parsed, err := parseKey(k)
		if err != nil {
			return nil, fmt.Errorf("%w: key %q: %w", ErrPolicy, k.Name, err)
		}
		if other, ok := prints[parsed.fingerprint]; ok {
			return nil, fmt.Errorf("%w: %q and %q are the same key", ErrPolicy, other, k.Name)
		}
		names[k.Name], prints[parsed.fingerprint] = true, k.Name
		v.keys = append(v.keys, parsed)
	}
	return v, nil
}

// Verified is an image with a signature that satisfies the policy. Only Verify
// makes one; consumers refuse the zero value by asking Valid.
type Verified struct {
	image osimage.Image
	key   string
}

// Valid reports whether the value came from Verify.
func (v Verified) Valid() bool { return v.key != "" && v.image.Valid() }

// Image is the image that was vouched for.
func (v Verified) Image() osimage.Image { return v.image }

// KeyName is the policy's name of the key that vouched for it.
func (v Verified) KeyName() string { return v.key }

// Verify looks for one signature of img by a key of the policy. Signatures that
// do not count are no obstacle to one that does. A refusal is a *Refusal; any
// other error means that nothing was decided.
func (v *Verifier) Verify(ctx context.Context, img osimage.Image, sigs []osimage.Signature) (Verified, error) {
	if v == nil || len(v.keys) == 0 {
		return Verified{}, fmt.Errorf("%w: the verifier holds no key", ErrPolicy)
	}
	if !img.Valid() {
		return Verified{}, errors.New("verifying signatures: there is no image")
	}
	hash, err := v1.NewHash(img.Digest().String())
	if err != nil {
		return Verified{}, fmt.Errorf("verifying signatures of %s: %w", img.Digest(), err)
	}
	if n := len(sigs); n == 0 || n > osimage.MaxSignatures {
		return Verified{}, v.refuseCount(img.Digest(), n)
	}
	var found findings
	for _, s := range sigs {
		sig, err := candidate(s)
		if err != nil {
			found.malformed = append(found.malformed, err)
			continue
		}
		name, err := v.match(ctx, sig, hash)
		if err == nil {
			return Verified{image: img, key: name}, nil
		}
		if ctx.Err() != nil {
			return Verified{}, fmt.Errorf("verifying signatures of %s: %w", img.Digest(), ctx.Err())
		}
		found.add(err)
	}
	return Verified{}, v.refuse(img.Digest(), found)
}
