package fetch

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// Document reads the statement that another tag of the same place leads to, and the
// signatures beside it. A tag that is not there is osimage.ErrNoDocument.
func (r Ref) Document(ctx context.Context, tag string) (osimage.Document, error) {
	if r.source == nil {
		return osimage.Document{}, errUnresolved
	}
	desc, err := r.source.tagged(ctx, tag)
	if err != nil {
		return osimage.Document{}, err
	}
	manifest, err := readSmall(ctx, r.source, desc, osimage.MaxStatement)
	if err != nil {
		return osimage.Document{}, err
	}
	config, err := osimage.StatementConfig(manifest)
	if err != nil {
		return osimage.Document{}, err
	}
	raw, err := readSmall(ctx, r.source, config, osimage.MaxStatement)
	if err != nil {
		return osimage.Document{}, err
	}
	sigs, err := Ref{name: tag, desc: desc, source: r.source}.For(first{}).Signatures(ctx)
	if err != nil {
		return osimage.Document{}, err
	}
	return osimage.Document{Digest: desc.Digest, Config: raw, Signatures: sigs}, nil
}

// first is content with what the first place has: a statement is signed in one form.
type first struct{}

func (first) Wants() []string { return nil }

func (first) Enough(context.Context, osimage.Image, []osimage.Signature) bool { return true }

// tagged asks for another tag of the repository.
func (r repository) tagged(ctx context.Context, tag string) (ocispec.Descriptor, error) {
	_, desc, err := r.resolver.Resolve(ctx, r.spec.Locator+":"+tag)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %w", osimage.ErrNoDocument, r.explain(err))
	}
	if err != nil {
		return ocispec.Descriptor{}, r.explain(err)
	}
	return asManifest(desc), nil
}

// tagged finds what the layout has under a name.
func (l *Layout) tagged(_ context.Context, tag string) (ocispec.Descriptor, error) {
	for _, d := range l.index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			return d, nil
		}
	}
	return ocispec.Descriptor{}, errors.Join(osimage.ErrNoDocument, fmt.Errorf("%w: it has nothing under %s", ErrLayout, tag))
}
