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
	judge  Judge
	image  *osimage.Image // what Describe read, with a judge
}

// Judge decides on signatures (trust.Verifier), and so which of them are read.
type Judge interface {
	// Wants lists the types of attestations that may take part in the decision.
	Wants() []string
	// Enough reports whether these signatures satisfy the judge.
	Enough(ctx context.Context, img osimage.Image, found []osimage.Signature) bool
}

// Name is what was asked for, for people.
func (r Ref) Name() string { return r.name }

// Digest is what the name meant when it was resolved.
func (r Ref) Digest() digest.Digest { return r.desc.Digest }

// For is the same reference, whose Signatures reads what the judge wants, and
// stops when he has enough: that saves requests. He is asked after Describe.
func (r Ref) For(j Judge) Ref {
	if j != nil {
		r.judge, r.image = j, new(osimage.Image)
	}
	return r
}

// source is where a Ref was resolved.
type source interface {
	opener
	// tagged reads the manifest that another tag of the same place leads to;
	// osimage.ErrNoDocument says that there is no such tag.
	tagged(ctx context.Context, tag string) (ocispec.Descriptor, []byte, error)
	// referrers finds the manifests whose subject is the image.
	referrers(ctx context.Context, image digest.Digest) ([]ocispec.Descriptor, error)
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
	if r.image != nil {
		*r.image = img
	}
	return img, nil
}

// Signatures reads the cosign signatures that lie beside the image: sigstore bundles,
// then classic ones, and no more once the judge has enough. Attestations are read only
// for a judge who wants them, for they can be long. An image without any of these has
// an empty list.
func (r Ref) Signatures(ctx context.Context) ([]osimage.Signature, error) {
	if r.source == nil {
		return nil, errUnresolved
	}
	e := evidence{source: r.source}
	if r.judge != nil {
		e.wanted = r.judge.Wants()
	}
	var withheld, failed error // what is elsewhere may be enough
	for _, place := range r.places(e.wanted) {
		err := place(ctx, &e)
		switch {
		case err == nil:
		case errors.Is(err, errWithheld):
			withheld = err
		case r.judge == nil || ctx.Err() != nil:
			return nil, fmt.Errorf("reading the signatures of %s: %w", r.name, err)
		case failed == nil:
			failed = err
		}
		if r.judge != nil && len(e.found) > 0 && r.judge.Enough(ctx, *r.image, e.found) {
			return e.found, nil
		}
	}
	if failed != nil {
		return nil, fmt.Errorf("reading the signatures of %s: %w", r.name, failed)
	}
	if withheld != nil && !r.suffice(e.found, withheld) {
		return nil, fmt.Errorf("looking for signatures of %s: %w", r.name, withheld)
	}
	return e.found, nil
}

// suffice reports whether the signatures that were found have to do although a registry
// withholds a list of more. Some say 403 of an API that they do not have, so that alone
// does not hide who signed; where nothing was found, or a later attempt may bring what
// the judge misses, the registry's answer is the reason to give.
func (r Ref) suffice(found []osimage.Signature, withheld error) bool {
	return len(found) > 0 && (r.judge == nil || errors.Is(withheld, ErrDenied))
}

// places are where cosign puts signatures. Bundles come first: to find that there are
// none takes two requests at most and a classic signature two more, so one signature
// never takes more than four, in whichever form and whether or not the registry has the
// referrers API.
func (r Ref) places(wanted []string) []func(context.Context, *evidence) error {
	tagged := func(tag string) func(context.Context, *evidence) error {
		return func(ctx context.Context, e *evidence) error {
			_, raw, err := r.source.tagged(ctx, tag)
			if errors.Is(err, osimage.ErrNoDocument) {
				return nil
			}
			if err != nil {
				return err
			}
			return e.add(ctx, raw)
		}
	}
	list := []func(context.Context, *evidence) error{r.bundles, tagged(osimage.SignatureTag(r.desc.Digest))}
	if len(wanted) > 0 {
		list = append(list, tagged(osimage.AttestationTag(r.desc.Digest)))
	}
	return list
}

// bundles reads the sigstore bundles that refer to the image.
func (r Ref) bundles(ctx context.Context, e *evidence) error {
	found, err := r.source.referrers(ctx, r.desc.Digest)
	if err != nil {
		return err
	}
	manifests, err := osimage.BundleManifests(found, e.wanted)
	if err != nil {
		return err
	}
	for _, desc := range manifests {
		raw, err := readSmall(ctx, r.source, desc, osimage.MaxManifest)
		if err != nil {
			return err
		}
		if err := e.add(ctx, raw); err != nil {
			return err
		}
	}
	return nil
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

// evidence collects signatures within the limits on all of them together.
type evidence struct {
	source opener
	wanted []string
	found  []osimage.Signature
	total  int64
}

// add reads the signatures of one manifest.
func (e *evidence) add(ctx context.Context, raw []byte) error {
	layers, err := osimage.SignatureLayers(raw, e.wanted)
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if len(e.found) == osimage.MaxSignatures {
			return fmt.Errorf("%w: more than %d signatures", osimage.ErrInvalid, osimage.MaxSignatures)
		}
		s := osimage.Signature{Form: layer.Form, Base64: layer.Annotations[osimage.SignatureAnnotation], Annotations: layer.Annotations}
		if layer.Oversize {
			s.Oversize = layer.Size
			e.found = append(e.found, s)
			continue
		}
		e.total += layer.Size
		for name, value := range layer.Annotations {
			e.total += int64(len(name) + len(value))
		}
		if e.total > osimage.MaxEvidence {
			return fmt.Errorf("%w: more than %d bytes of signatures and attestations", osimage.ErrInvalid, osimage.MaxEvidence)
		}
		if s.Payload, err = readSmall(ctx, e.source, layer.Descriptor, osimage.MaxAttestation); err != nil {
			return err
		}
		e.found = append(e.found, s)
	}
	return nil
}
