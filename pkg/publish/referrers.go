package publish

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// listedReferrers are the manifests of a layout whose subject is its image and that
// carry sigstore bundles, from the index under the tag that stands in for the referrers
// API. Those in the layout's own index are companions.
func (l layout) listedReferrers() ([]digest.Digest, error) {
	var entries []ocispec.Descriptor
	for _, d := range l.index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != osimage.ReferrersTag(l.image.Digest()) {
			continue
		}
		raw, err := l.readBlob(d.Digest, osimage.MaxManifest)
		if err != nil {
			return nil, fmt.Errorf("%w: the list of referrers: %w", ErrLayout, err)
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, fmt.Errorf("%w: the list of referrers: %w", ErrLayout, err)
		}
		entries = append(entries, index.Manifests...)
	}
	seen := map[digest.Digest]bool{l.image.Digest(): true}
	var list []digest.Digest
	for _, d := range entries {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		raw, err := l.readBlob(d.Digest, osimage.MaxManifest)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLayout, err)
		}
		if r := osimage.ParseReferrer(raw); r.Subject == l.image.Digest() && r.Bundles {
			list = append(list, d.Digest)
		}
	}
	return list, nil
}

// pushReferrers sends them one after the other: a registry without the referrers API
// has them all in one list, which the library reads, extends and writes.
func (l layout) pushReferrers(ctx context.Context, pusher *remote.Pusher, repo name.Repository) error {
	list, err := l.listedReferrers()
	if err != nil || len(list) == 0 {
		return err
	}
	for _, d := range list {
		if err := l.pushStored(ctx, pusher, repo.Digest(d.String()), ocispec.Descriptor{Digest: d}); err != nil {
			return err
		}
	}
	return nil
}
