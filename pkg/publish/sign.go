package publish

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cosignremote "github.com/sigstore/cosign/v2/pkg/cosign/remote"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

// Signed says what was signed and where the signature is.
type Signed struct {
	// Digest is the digest of the image's manifest: what was signed.
	Digest digest.Digest
	// Tag is the tag that carries the signatures, in the same repository or
	// layout; empty for a bundle.
	Tag string
	// Manifest is the manifest of a bundle, which refers to the image.
	Manifest digest.Digest
	// Existing is true if the key had signed this digest before; nothing was
	// changed then.
	Existing bool
}

// Sign signs an OS image as `cosign sign --key` does without a transparency
// log, in the form that the options ask for. The target is the directory of an OCI layout (see IsLayout) or else a
// reference into a registry; a tag is resolved once, and its digest is signed.
//
// The error wraps ErrReference, ErrLayout, ErrRegistry, ErrKey, ErrTimestamp or, if the
// target is something else than an OS image, osimage.ErrNotOS.
func Sign(ctx context.Context, target string, key *Key, o Options) (Signed, error) {
	if key == nil || key.signer == nil {
		return Signed{}, fmt.Errorf("%w: there is none", ErrKey)
	}
	if o.Bundle && len(o.Annotations) > 0 {
		return Signed{}, errors.New("signing: a bundle carries no annotations")
	}
	if o.Timestamps != "" && o.Certificate == nil {
		return Signed{}, errors.New("signing: a timestamp is for a signature with a certificate")
	}
	if IsLayout(target) {
		return signLayout(ctx, target, key, o)
	}
	return signRemote(ctx, target, key, o)
}

func signRemote(ctx context.Context, ref string, key *Key, o Options) (Signed, error) {
	target, err := o.parse(ref)
	if err != nil {
		return Signed{}, err
	}
	repo := target.Context()
	desc, err := remote.Get(target, o.remote(ctx)...)
	if err != nil {
		return Signed{}, registryError("reading "+ref, err)
	}
	d := digest.Digest(desc.Digest.String())
	if _, err := osimage.ParseManifest(ocispec.Descriptor{MediaType: string(desc.MediaType), Digest: d}, desc.Manifest); err != nil {
		return Signed{}, fmt.Errorf("signing %s: %w", ref, err)
	}
	if o.Bundle {
		at, existing, err := key.bundleRemote(ctx, repo, ocispec.Descriptor{MediaType: string(desc.MediaType), Digest: d, Size: desc.Size}, o)
		return Signed{Digest: d, Manifest: at, Existing: existing}, err
	}
	tag := signatureTag(repo, d)
	base, err := remoteSignatures(ctx, tag, o)
	if err != nil {
		return Signed{}, err
	}
	sig, err := key.sign(ctx, payload.Cosign{Image: repo.Digest(d.String()), Annotations: o.claims()})
	if err != nil {
		return Signed{}, err
	}
	signed := Signed{Digest: d, Tag: tag.TagStr()}
	set, existing, err := o.attach(ctx, base, sig, key)
	if signed.Existing = existing; err != nil || existing {
		return signed, err
	}
	if err := remote.Write(tag, set, o.remote(ctx)...); err != nil {
		return Signed{}, registryError("pushing the signature to "+tag.String(), err)
	}
	return signed, nil
}

func signLayout(ctx context.Context, dir string, key *Key, o Options) (Signed, error) {
	l, err := openLayout(dir)
	if err != nil {
		return Signed{}, err
	}
	d := l.image.Digest()
	if o.Bundle {
		at, existing, err := key.bundleLayout(ctx, l, o)
		return Signed{Digest: d, Manifest: at, Existing: existing}, err
	}
	base, err := l.signatures(osimage.SignatureTag(d))
	if err != nil {
		return Signed{}, err
	}
	// A layout has no repository yet. The name in a payload is a claim for
	// people, so it says what the image is for.
	product := l.image.Config().Product
	image, err := name.NewDigest("layout@" + d.String())
	if err != nil {
		return Signed{}, fmt.Errorf("signing %s: %w", dir, err)
	}
	sig, err := key.sign(ctx, payload.Cosign{Image: image, ClaimedIdentity: product, Annotations: o.claims()})
	if err != nil {
		return Signed{}, err
	}
	signed := Signed{Digest: d, Tag: osimage.SignatureTag(d)}
	set, existing, err := o.attach(ctx, base, sig, key)
	if signed.Existing = existing; err != nil || existing {
		return signed, err
	}
	if err := l.replaceSignatures(set); err != nil {
		return Signed{}, fmt.Errorf("writing the signature into %s: %w", dir, err)
	}
	return signed, nil
}

// claims are the annotations in the form of a payload; nil without any.
func (o Options) claims() map[string]any {
	var claims map[string]any
	for name, value := range o.Annotations {
		if claims == nil {
			claims = map[string]any{}
		}
		claims[name] = value
	}
	return claims
}

// sign makes one signature over a payload.
func (k *Key) sign(ctx context.Context, claim payload.Cosign) (oci.Signature, error) {
	raw, err := claim.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding the payload: %w", err)
	}
	sig, err := k.signer.SignMessage(bytes.NewReader(raw), options.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return static.NewSignature(raw, base64.StdEncoding.EncodeToString(sig))
}

// attach adds sig, with the proofs that the options ask for, to base unless the key has
// signed the same payload before with such proofs; ECDSA signatures differ each time, so
// the old one is verified, not compared.
func (o Options) attach(ctx context.Context, base *signatureSet, sig oci.Signature, key *Key) (set *signatureSet, existing bool, err error) {
	if base != nil {
		found, err := cosignremote.NewDupeDetector(key.signer).Find(sameProofs{base, o}, sig)
		if err != nil {
			return nil, false, fmt.Errorf("reading the signatures that are there: %w", err)
		}
		if found != nil {
			return base, true, nil
		}
	}
	if sig, err = o.certify(ctx, sig); err != nil {
		return nil, false, err
	}
	set, err = base.with(sig)
	return set, false, err
}
