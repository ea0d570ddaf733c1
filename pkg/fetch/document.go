package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// Document reads the statement that another tag of the same place leads to, and the
// signatures beside it. A tag that is not there is osimage.ErrNoDocument.
func (r Ref) Document(ctx context.Context, tag string) (osimage.Document, error) {
	if r.source == nil {
		return osimage.Document{}, errUnresolved
	}
	desc, manifest, err := r.source.tagged(ctx, tag)
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

// tagged reads what another tag of the repository leads to with one request; to
// resolve it first, as the library does, would be a second one. The library puts what a
// descriptor has for a digest into the path as it is, where a registry takes a tag as
// well, and the digest is that of what came.
func (r repository) tagged(ctx context.Context, tag string) (ocispec.Descriptor, []byte, error) {
	ctx, _ = withTransfer(ctx, osimage.MaxManifest)
	raw, err := func() ([]byte, error) {
		fetcher, err := r.tags.Fetcher(ctx, r.spec.String())
		if err != nil {
			return nil, err
		}
		rc, err := fetcher.Fetch(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(tag), Size: -1})
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(rc)
		return raw, errors.Join(err, rc.Close())
	}()
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%w: %w", osimage.ErrNoDocument, r.explain(err))
	}
	if err != nil {
		return ocispec.Descriptor{}, nil, r.explain(err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, nil
}

// tagged reads what the layout has under a name.
func (l *Layout) tagged(ctx context.Context, tag string) (ocispec.Descriptor, []byte, error) {
	for _, d := range l.index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			raw, err := readSmall(ctx, l, d, osimage.MaxManifest)
			return d, raw, err
		}
	}
	return ocispec.Descriptor{}, nil, errors.Join(osimage.ErrNoDocument, fmt.Errorf("%w: it has nothing under %s", ErrLayout, tag))
}
