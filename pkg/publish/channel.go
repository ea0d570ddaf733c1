package publish

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

// Channel says what to state about a channel.
type Channel struct {
	// Head is the digest to state, in the same repository; empty is what the tag has
	// now. The tag is moved to it, after the statement.
	Head digest.Digest
	// Issued is the present, Lasts how long the statement counts.
	Issued time.Time
	Lasts  time.Duration
}

// PublishChannel states which image is at the head of a channel, signs the statement
// and puts both beside the tag, under osimage.ChannelTag. ref is repository and tag.
// The image must be there, and it is read to learn its product and version; whether it
// is signed is not looked at. The statement appears after its signature.
//
// The error wraps ErrReference, ErrRegistry, ErrKey or osimage.ErrNotOS.
func PublishChannel(ctx context.Context, ref string, c Channel, key *Key, o Options) (osimage.Statement, error) {
	none := osimage.Statement{}
	if key == nil || key.signer == nil {
		return none, fmt.Errorf("%w: there is none", ErrKey)
	}
	target, err := o.parse(ref)
	if err != nil {
		return none, err
	}
	tag, ok := target.(name.Tag)
	if !ok {
		return none, fmt.Errorf("%w %q: a channel is a tag", ErrReference, ref)
	}
	if c.Head != "" {
		target = tag.Digest(c.Head.String())
	}
	img, err := readRemote(ctx, target, o)
	if err != nil {
		return none, err
	}
	s := osimage.Statement{
		Channel: tag.TagStr(), Product: img.Config().Product, Digest: img.Digest(), Version: img.Config().Version,
		Issued: c.Issued.UTC().Truncate(time.Second), Expires: c.Issued.Add(c.Lasts).UTC().Truncate(time.Second),
	}
	manifest, blobs, err := s.Encode()
	if err != nil {
		return none, err
	}
	if err := pushStatement(ctx, tag, manifest, blobs, key, o); err != nil {
		return none, err
	}
	if c.Head != "" {
		if err := remote.Put(tag, rawManifest(img.RawManifest()), o.remote(ctx)...); err != nil {
			return none, registryError("moving the tag "+tag.String(), err)
		}
	}
	return s, nil
}

// readRemote reads manifest and config of an image.
func readRemote(ctx context.Context, target name.Reference, o Options) (osimage.Image, error) {
	doing := "reading " + target.String()
	desc, err := remote.Get(target, o.remote(ctx)...)
	if err != nil {
		return osimage.Image{}, registryError(doing, err)
	}
	d := ocispec.Descriptor{MediaType: string(desc.MediaType), Digest: digest.Digest(desc.Digest.String()), Size: desc.Size}
	if _, err := osimage.ParseManifest(d, desc.Manifest); err != nil {
		return osimage.Image{}, fmt.Errorf("%s: %w", doing, err)
	}
	image, err := desc.Image()
	if err != nil {
		return osimage.Image{}, registryError(doing, err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return osimage.Image{}, registryError(doing, err)
	}
	img, err := osimage.Parse(d, desc.Manifest, config)
	if err != nil {
		return osimage.Image{}, fmt.Errorf("%s: %w", doing, err)
	}
	return img, nil
}

// pushStatement uploads a statement, its signature, and then the tag that leads to it.
func pushStatement(ctx context.Context, tag name.Tag, manifest osimage.Blob, blobs []osimage.Blob, key *Key, o Options) error {
	repo := tag.Context()
	at := repo.Tag(osimage.ChannelTag(tag.TagStr()))
	doing := "pushing the statement " + at.String()
	pusher, err := remote.NewPusher(o.remote(ctx)...)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	for _, b := range blobs {
		if err := pusher.Upload(ctx, repo, static.NewLayer(b.Content, types.MediaType(b.Descriptor.MediaType))); err != nil {
			return registryError(doing, err)
		}
	}
	d := repo.Digest(manifest.Descriptor.Digest.String())
	if err := pusher.Put(ctx, d, rawManifest(manifest.Content)); err != nil {
		return registryError(doing, err)
	}
	sig, err := key.sign(ctx, payload.Cosign{Image: d})
	if err != nil {
		return err
	}
	sigTag := signatureTag(repo, manifest.Descriptor.Digest)
	base, err := remoteSignatures(ctx, sigTag, o)
	if err != nil {
		return err
	}
	set, existing, err := o.attach(ctx, base, sig, key)
	if err != nil {
		return fmt.Errorf("signing the statement: %w", err)
	}
	if !existing {
		if err := remote.Write(sigTag, set, o.remote(ctx)...); err != nil {
			return registryError("pushing the signature to "+sigTag.String(), err)
		}
	}
	if err := pusher.Put(ctx, at, rawManifest(manifest.Content)); err != nil {
		return registryError(doing, err)
	}
	return nil
}
