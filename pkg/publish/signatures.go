package publish

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/empty"
	"github.com/sigstore/cosign/v2/pkg/oci/mutate"
	cosignature "github.com/sigstore/cosign/v2/pkg/oci/signature"
)

// signatureSet is the manifest under a tag sha256-<hex>.sig: each layer is a
// signed payload, with the signature in an annotation of its descriptor.
type signatureSet struct {
	v1.Image
}

var _ oci.Signatures = (*signatureSet)(nil)

// Get implements oci.Signatures.
func (s *signatureSet) Get() ([]oci.Signature, error) {
	m, err := s.Manifest()
	if err != nil {
		return nil, err
	}
	layers, err := s.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(m.Layers) {
		return nil, fmt.Errorf("%d layers in a manifest that lists %d", len(layers), len(m.Layers))
	}
	var list []oci.Signature
	for i, desc := range m.Layers {
		list = append(list, cosignature.New(layers[i], desc))
	}
	return list, nil
}

// check refuses what no machine would look at, before anything is added to it.
func (s *signatureSet) check() error {
	m, err := s.Manifest()
	if err != nil {
		return err
	}
	if n := len(m.Layers); n > osimage.MaxSignatures {
		return fmt.Errorf("%d signatures, machines look at no more than %d", n, osimage.MaxSignatures)
	}
	for _, desc := range m.Layers {
		limit := int64(osimage.MaxPayload)
		if desc.MediaType == osimage.MediaTypeEnvelope {
			limit = osimage.MaxAttestation
		}
		if desc.Size > limit {
			return fmt.Errorf("a signed payload of %d bytes, machines read no more than %d", desc.Size, limit)
		}
	}
	return nil
}

// with returns a set with more signatures at its end; s may be nil.
func (s *signatureSet) with(more ...oci.Signature) (*signatureSet, error) {
	var base oci.Signatures = empty.Signatures()
	if s != nil {
		base = s
	}
	img, err := mutate.AppendSignatures(base, false, more...)
	if err != nil {
		return nil, fmt.Errorf("adding a signature: %w", err)
	}
	set := &signatureSet{img}
	return set, set.check()
}

// lacking returns the signatures of other that s does not have.
func (s *signatureSet) lacking(other *signatureSet) ([]oci.Signature, error) {
	type identity struct {
		payload   v1.Hash
		signature string
	}
	have := map[identity]bool{}
	var missing []oci.Signature
	for _, set := range []*signatureSet{s, other} {
		list, err := set.Get()
		if err != nil {
			return nil, err
		}
		for _, sig := range list {
			hash, err := sig.Digest()
			if err != nil {
				return nil, err
			}
			annotations, err := sig.Annotations()
			if err != nil {
				return nil, err
			}
			id := identity{hash, annotations[osimage.SignatureAnnotation]} // an attestation has none
			if set == other && !have[id] {
				missing = append(missing, sig)
			}
			have[id] = true
		}
	}
	return missing, nil
}

// remoteSignatures fetches the set of a digest, or nil if there is none.
func remoteSignatures(ctx context.Context, tag name.Tag, o Options) (*signatureSet, error) {
	doing := "reading the signatures at " + tag.String()
	img, err := remote.Image(tag, o.remote(ctx)...)
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, registryError(doing, err)
	}
	set := &signatureSet{img}
	if err := set.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return set, nil
}

func signatureTag(repo name.Repository, d digest.Digest) name.Tag {
	return repo.Tag(osimage.SignatureTag(d))
}

// pushSignatures adds the layout's signatures, or attestations, to those that the
// registry has.
func (l layout) pushSignatures(ctx context.Context, pusher *remote.Pusher, tag name.Tag, o Options) error {
	local, err := l.signatures(tag.TagStr())
	if err != nil || local == nil {
		return err
	}
	there, err := remoteSignatures(ctx, tag, o)
	if err != nil {
		return err
	}
	if there != nil {
		missing, err := there.lacking(local)
		if err != nil {
			return fmt.Errorf("comparing signatures: %w", err)
		}
		if len(missing) == 0 {
			return nil
		}
		if local, err = there.with(missing...); err != nil {
			return err
		}
	}
	if err := pusher.Push(ctx, tag, local); err != nil {
		return registryError("pushing signatures to "+tag.String(), err)
	}
	return nil
}
