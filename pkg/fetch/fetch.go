// Package fetch brings OS artifacts to the machine: it resolves a name to a
// digest once, reads the small parts (manifest, config, signatures) into memory,
// and the packs into memory too or, where they have to wait, into containerd's
// content store.
//
// It is the only user of containerd's content. It goes through containerd's own
// resolver, hosts configuration (certs.d) and the credentials of "nerdctl
// login". It trusts nothing and decides nothing: whether an image may be
// installed is settled by others before they open the first pack.
//
// A Registry and a Layout (a folder or an archive, offline) are two sources of
// the same things; behind a Registry stands either the containerd daemon's
// content store or, where there is no daemon, the same store as a library.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
)

// Errors that a caller tells apart. ErrRegistry wraps all that went wrong between
// this machine and a registry.
var (
	ErrRegistry  = errors.New("registry")
	ErrNotFound  = errors.New("not found")
	ErrDenied    = errors.New("access denied")
	ErrReference = errors.New("malformed reference")
	// ErrDaemon says that containerd does not answer.
	ErrDaemon = errors.New("containerd does not answer")
	// ErrStore says that content cannot be kept or read, because its file
	// system is full for example.
	ErrStore = errors.New("content store")
	// ErrLayout says that a folder or archive is no usable OCI layout.
	ErrLayout = errors.New("not a usable OCI layout")
)

// Ref is a resolved reference: from here on only the digest counts, and
// everything is read from where it was resolved. The zero value is refused.
type Ref struct {
	name   string
	desc   ocispec.Descriptor
	source source
}

// Name is what was asked for, for people.
func (r Ref) Name() string { return r.name }

// Digest is what the name meant when it was resolved.
func (r Ref) Digest() digest.Digest { return r.desc.Digest }

// source is where a Ref was resolved.
type source interface {
	opener
	// signatures finds the manifests that hold cosign signatures of a digest.
	signatures(ctx context.Context, image digest.Digest) ([]ocispec.Descriptor, error)
	// tagged finds what another tag of the same place leads to.
	tagged(ctx context.Context, tag string) (ocispec.Descriptor, error)
	// blobs opens packs; what it fetches is kept until release.
	blobs(ctx context.Context, image digest.Digest, sink progress.Sink) (osimage.Blobs, error)
	release(ctx context.Context) error
}

// opener opens a blob by its descriptor.
type opener interface {
	open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

var errUnresolved = errors.New("the reference was not resolved")

// Describe reads manifest and config into memory and checks them.
func (r Ref) Describe(ctx context.Context) (osimage.Image, error) {
	if r.source == nil {
		return osimage.Image{}, errUnresolved
	}
	raw, err := readSmall(ctx, r.source, r.desc, osimage.MaxManifest)
	if err != nil {
		return osimage.Image{}, fmt.Errorf("reading the manifest of %s: %w", r.name, err)
	}
	manifest, err := osimage.ParseManifest(r.desc, raw)
	if err != nil {
		return osimage.Image{}, fmt.Errorf("reading the manifest of %s: %w", r.name, err)
	}
	config, err := readSmall(ctx, r.source, manifest.Config, osimage.MaxConfig)
	if err != nil {
		return osimage.Image{}, fmt.Errorf("reading the config of %s: %w", r.name, err)
	}
	img, err := osimage.Parse(r.desc, raw, config)
	if err != nil {
		return osimage.Image{}, fmt.Errorf("reading %s: %w", r.name, err)
	}
	return img, nil
}

// Signatures reads the classic cosign signatures that lie beside the image. An
// image without any has an empty list.
func (r Ref) Signatures(ctx context.Context) ([]osimage.Signature, error) {
	if r.source == nil {
		return nil, errUnresolved
	}
	manifests, err := r.source.signatures(ctx, r.desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("looking for signatures of %s: %w", r.name, err)
	}
	var list []osimage.Signature
	for _, desc := range manifests {
		more, err := readSignatures(ctx, r.source, desc)
		if err != nil {
			return nil, fmt.Errorf("reading the signatures of %s: %w", r.name, err)
		}
		list = append(list, more...)
	}
	return list, nil
}

// Blobs opens the packs. What is kept stays, also when the work is interrupted,
// until Release.
func (r Ref) Blobs(ctx context.Context, sink progress.Sink) (osimage.Blobs, error) {
	if r.source == nil {
		return nil, errUnresolved
	}
	return r.source.blobs(ctx, r.desc.Digest, sink)
}

// Release lets the packs of every image go: the slot has them.
func (r Ref) Release(ctx context.Context) error {
	if r.source == nil {
		return errUnresolved
	}
	return r.source.release(ctx)
}

// readSmall reads a whole blob of at most limit bytes and checks its digest. Where
// it comes wrong and there is another place to ask, that is asked.
func readSmall(ctx context.Context, from opener, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", osimage.ErrInvalid, desc.Size, limit)
	}
	for {
		rc, err := from.open(ctx, plain(desc))
		if err != nil {
			return nil, err
		}
		data, err := readChecked(rc, desc)
		if err = errors.Join(err, rc.Close()); err == nil {
			return data, nil
		}
		place, ok := rc.(interface{ elsewhere() bool })
		if ctx.Err() != nil || !ok || !place.elsewhere() {
			return nil, err
		}
	}
}

func readChecked(r io.Reader, desc ocispec.Descriptor) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != desc.Size || digest.FromBytes(data) != desc.Digest {
		return nil, fmt.Errorf("%w: %s came with %d bytes of other content, expected are %d", osimage.ErrInvalid, desc.Digest, len(data), desc.Size)
	}
	return data, nil
}

// plain keeps of a descriptor what identifies a blob: no URLs and no embedded
// data, by which a manifest could send the machine elsewhere.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// readSignatures reads the classic cosign signatures of one signature manifest.
func readSignatures(ctx context.Context, from opener, desc ocispec.Descriptor) ([]osimage.Signature, error) {
	raw, err := readSmall(ctx, from, desc, osimage.MaxManifest)
	if err != nil {
		return nil, err
	}
	layers, err := osimage.SignatureLayers(raw)
	if err != nil {
		return nil, err
	}
	var list []osimage.Signature
	for _, layer := range layers {
		payload, err := readSmall(ctx, from, layer, osimage.MaxPayload)
		if err != nil {
			return nil, err
		}
		list = append(list, osimage.Signature{
			Payload: payload, Base64: layer.Annotations[osimage.SignatureAnnotation], Annotations: layer.Annotations,
		})
	}
	return list, nil
}
