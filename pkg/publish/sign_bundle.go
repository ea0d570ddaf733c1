package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	cosignbundle "github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/sigstore/pkg/signature/dsse"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// Names of the in-toto and bundle specifications for what cosign sign
// --new-bundle-format makes.
const (
	mediaTypeBundle   = "application/vnd.dev.sigstore.bundle.v0.3+json"
	payloadTypeInToto = "application/vnd.in-toto+json"
	statementType     = "https://in-toto.io/Statement/v1"
)

// statement is an in-toto statement that signs and says nothing more.
type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
}

type subject struct {
	Digest map[string]string `json:"digest"`
}

// of reports whether the statement is a signature of an image.
func (s statement) of(d digest.Digest) bool {
	return s.PredicateType == osimage.PredicateSignature && slices.ContainsFunc(s.Subject, func(s subject) bool { return s.Digest["sha256"] == d.Encoded() })
}

// bundle signs the digest of an image in the form of a sigstore bundle. The manifest
// around it names the image as its subject.
func (k *Key) bundle(ctx context.Context, image ocispec.Descriptor, o Options) (manifest osimage.Blob, blobs []osimage.Blob, err error) {
	payload, err := json.Marshal(statement{
		Type: statementType, Subject: []subject{{map[string]string{"sha256": image.Digest.Encoded()}}}, PredicateType: osimage.PredicateSignature,
	})
	if err != nil {
		return manifest, nil, fmt.Errorf("encoding the statement: %w", err)
	}
	envelope, err := dsse.WrapSigner(k.signer, payloadTypeInToto).SignMessage(bytes.NewReader(payload), options.WithContext(ctx))
	if err != nil {
		return manifest, nil, fmt.Errorf("signing: %w", err)
	}
	raw, err := k.pack(ctx, payload, envelope, o)
	if err != nil {
		return manifest, nil, err
	}
	blob := func(mediaType string, content []byte) osimage.Blob {
		return osimage.Blob{Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}, Content: content}
	}
	config, layer := blob(ocispec.MediaTypeEmptyJSON, []byte("{}")), blob(mediaTypeBundle, raw)
	raw, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: mediaTypeBundle,
		Config: config.Descriptor, Layers: []ocispec.Descriptor{layer.Descriptor},
		Subject:     &ocispec.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size},
		Annotations: map[string]string{"dev.sigstore.bundle.content": "dsse-envelope", osimage.PredicateAnnotation: osimage.PredicateSignature},
	})
	if err != nil {
		return manifest, nil, fmt.Errorf("encoding the manifest of the bundle: %w", err)
	}
	manifest = blob(ocispec.MediaTypeImageManifest, raw)
	manifest.Descriptor.ArtifactType = mediaTypeBundle
	return manifest, []osimage.Blob{config, layer}, nil
}

// pack puts an envelope into a bundle, with its certificate and timestamp.
func (k *Key) pack(ctx context.Context, payload, envelope []byte, o Options) ([]byte, error) {
	public, err := k.signer.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	var text, stamp []byte
	if o.Certificate != nil {
		sig, err := cosign.GetDSSESigBytes(envelope)
		if err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		if stamp, err = o.timestamp(ctx, sig); err != nil {
			return nil, err
		}
		text = o.Certificate.text
	}
	raw, err := cosignbundle.MakeNewBundle(public, nil, payload, envelope, text, stamp)
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle: %w", err)
	}
	return raw, nil
}

// made reports whether a bundle is a signature of an image by this key.
func (k *Key) made(bundle []byte, image digest.Digest) bool {
	var b struct {
		Envelope json.RawMessage `json:"dsseEnvelope"`
	}
	if json.Unmarshal(bundle, &b) != nil || dsse.WrapVerifier(k.signer).VerifySignature(bytes.NewReader(b.Envelope), nil) != nil {
		return false
	}
	var envelope struct{ Payload []byte }
	var s statement
	return json.Unmarshal(b.Envelope, &envelope) == nil && json.Unmarshal(envelope.Payload, &s) == nil && s.of(image)
}

// madeOne reports whether one of the bundles of a manifest is, with the proofs that the
// options ask for. open reads a blob.
func (k *Key) madeOne(manifest []byte, image digest.Digest, o Options, open func(digest.Digest, int64) ([]byte, error)) (bool, error) {
	layers, err := osimage.SignatureLayers(manifest, nil)
	if err != nil {
		return false, nil // no manifest that a machine would read
	}
	for _, l := range layers {
		if l.Form != osimage.Bundle || l.Oversize {
			continue
		}
		raw, err := open(l.Digest, l.Size)
		if err != nil {
			return false, err
		}
		if k.made(raw, image) && o.proven(raw) {
			return true, nil
		}
	}
	return false, nil
}

// bundleRemote adds a bundle beside an image in a registry, and says which manifest
// has it.
func (k *Key) bundleRemote(ctx context.Context, repo name.Repository, image ocispec.Descriptor, o Options) (at digest.Digest, existing bool, err error) {
	doing := fmt.Sprintf("reading the signatures of %s@%s", repo, image.Digest)
	found, err := remote.Referrers(repo.Digest(image.Digest.String()), o.remote(ctx)...)
	if err != nil {
		return "", false, registryError(doing, err)
	}
	list, err := found.IndexManifest()
	if err != nil {
		return "", false, registryError(doing, err)
	}
	var refer []ocispec.Descriptor
	for _, r := range list.Manifests {
		refer = append(refer, ocispec.Descriptor{ArtifactType: r.ArtifactType, Digest: digest.Digest(r.Digest.String()), Annotations: r.Annotations})
	}
	if refer, err = osimage.BundleManifests(refer, nil); err == nil && len(refer) == osimage.MaxSignatures {
		err = fmt.Errorf("there are %d, and machines look at no more", len(refer))
	}
	if err != nil {
		return "", false, fmt.Errorf("%s: %w", doing, err)
	}
	open := func(d digest.Digest, size int64) ([]byte, error) {
		return readLayer(ctx, repo.Digest(d.String()), size, o)
	}
	for _, r := range refer {
		desc, err := remote.Get(repo.Digest(r.Digest.String()), o.remote(ctx)...)
		if err != nil {
			return "", false, registryError(doing, err)
		}
		if existing, err := k.madeOne(desc.Manifest, image.Digest, o, open); existing || err != nil {
			return r.Digest, existing, err
		}
	}
	manifest, blobs, err := k.bundle(ctx, image, o)
	if err != nil {
		return "", false, err
	}
	return manifest.Descriptor.Digest, false, putReferrer(ctx, repo, manifest, blobs, o)
}

func readLayer(ctx context.Context, ref name.Digest, size int64, o Options) ([]byte, error) {
	doing := "reading " + ref.String()
	l, err := remote.Layer(ref, o.remote(ctx)...)
	if err != nil {
		return nil, registryError(doing, err)
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, registryError(doing, err)
	}
	defer rc.Close() //nolint:errcheck // read only
	raw, err := io.ReadAll(io.LimitReader(rc, size))
	if err != nil {
		return nil, registryError(doing, err)
	}
	return raw, nil
}

// putReferrer uploads a small artifact that refers to another. The library keeps the
// list under the fallback tag where a registry has no referrers API.
func putReferrer(ctx context.Context, repo name.Repository, manifest osimage.Blob, blobs []osimage.Blob, o Options) error {
	at := repo.Digest(manifest.Descriptor.Digest.String())
	pusher, err := remote.NewPusher(o.remote(ctx)...)
	if err != nil {
		return fmt.Errorf("preparing the push to %s: %w", at, err)
	}
	for _, b := range blobs {
		if err := pusher.Upload(ctx, repo, v1.Layer(static.NewLayer(b.Content, types.MediaType(b.Descriptor.MediaType)))); err != nil {
			return registryError("pushing the signature to "+at.String(), err)
		}
	}
	if err := pusher.Put(ctx, at, rawManifest(manifest.Content)); err != nil {
		return registryError("pushing the signature to "+at.String(), err)
	}
	return nil
}

// bundleLayout adds a bundle beside the image of a layout. The index changes last.
func (k *Key) bundleLayout(ctx context.Context, l layout, o Options) (at digest.Digest, existing bool, err error) {
	image := l.image.Descriptor()
	for _, d := range l.index.Manifests {
		if !l.refersTo(d, image.Digest) {
			continue
		}
		raw, err := l.readBlob(d.Digest, osimage.MaxManifest)
		if err == nil {
			existing, err = k.madeOne(raw, image.Digest, o, l.readBlob)
		}
		if existing || err != nil {
			return d.Digest, existing, err
		}
	}
	manifest, blobs, err := k.bundle(ctx, image, o)
	if err != nil {
		return "", false, err
	}
	for _, b := range append(blobs, manifest) {
		if err := replaceFile(l.blobPath(b.Descriptor.Digest), b.Content); err != nil {
			return "", false, fmt.Errorf("writing the signature into %s: %w", l.dir, err)
		}
	}
	index := l.index
	index.Manifests = append(slices.Clone(index.Manifests), manifest.Descriptor)
	raw, err := json.Marshal(index)
	if err == nil {
		err = replaceFile(l.path(ocispec.ImageIndexFile), raw)
	}
	if err != nil {
		return "", false, fmt.Errorf("writing the signature into %s: %w", l.dir, err)
	}
	return manifest.Descriptor.Digest, false, nil
}
