package publish

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Push copies the OS image of the layout in dir, a directory or an archive, and the
// signatures, attestations and statements that the layout carries for it, to ref, and returns the digest of the image. Blobs
// that the registry has already are not sent; the tag moves last. Pushing again
// after an interruption continues.
//
// The error wraps ErrReference, ErrLayout or ErrRegistry.
func Push(ctx context.Context, dir, ref string, o Options) (digest.Digest, error) {
	target, err := o.parse(ref)
	if err != nil {
		return "", err
	}
	l, err := openLayout(dir)
	if err != nil {
		return "", err
	}
	defer l.files.Close() //nolint:errcheck // read only
	d := l.image.Digest()
	if want, ok := target.(name.Digest); ok && want.DigestStr() != d.String() {
		return "", fmt.Errorf("%w %q: the image in %s has the digest %s", ErrReference, ref, dir, d)
	}
	blobs, total, err := l.blobs()
	if err != nil {
		return "", err
	}
	pusher, err := remote.NewPusher(o.remote(ctx)...)
	if err != nil {
		return "", fmt.Errorf("preparing the push to %s: %w", ref, err)
	}
	repo := target.Context()
	doing := "pushing to " + ref
	if err := upload(ctx, pusher, repo, blobs, progress.NewCounter(o.Progress, progress.Push, total), o.jobs()); err != nil {
		return "", registryError(doing, err)
	}
	manifest := rawManifest(l.image.RawManifest())
	if err := pusher.Put(ctx, repo.Digest(d.String()), manifest); err != nil {
		return "", registryError(doing, err)
	}
	for _, tag := range l.signatureTags() {
		if err := l.pushSignatures(ctx, pusher, repo.Tag(tag), o); err != nil {
			return "", err
		}
	}
	if err := l.pushReferrers(ctx, pusher, repo); err != nil {
		return "", err
	}
	if err := l.pushCompanions(ctx, pusher, target); err != nil {
		return "", err
	}
	if _, ok := target.(name.Tag); ok {
		if err := pusher.Put(ctx, target, manifest); err != nil {
			return "", registryError(doing, err)
		}
	}
	return d, nil
}

// blobs lists what the manifest names, each digest once, and the sum of the
// sizes. What is missing or has another size is found out here, before the
// first request.
func (l layout) blobs() ([]*blob, int64, error) {
	m, err := osimage.ParseManifest(l.image.Descriptor(), l.image.RawManifest())
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	var list []*blob
	var total int64
	seen := map[digest.Digest]bool{}
	for _, desc := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		hash, err := v1.NewHash(desc.Digest.String())
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrLayout, err)
		}
		f, size, err := l.files.open(blobName(desc.Digest))
		if err != nil {
			return nil, 0, fmt.Errorf("%w: a blob of the image is missing: %w", ErrLayout, err)
		}
		f.Close() //nolint:errcheck // nothing was read
		if size != desc.Size {
			return nil, 0, fmt.Errorf("%w: %s has %d bytes, the manifest says %d; build the image again", ErrLayout, l.blobPath(desc.Digest), size, desc.Size)
		}
		list = append(list, &blob{layout: l, desc: desc, hash: hash})
		total += desc.Size
	}
	return list, total, nil
}

// upload sends blobs side by side. A blob counts as done when the registry has
// it, whether or not bytes had to travel.
func upload(ctx context.Context, pusher *remote.Pusher, repo name.Repository, blobs []*blob, counter *progress.Counter, jobs int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	for _, b := range blobs {
		b.add = counter.Add
		g.Go(func() error {
			if err := pusher.Upload(ctx, repo, b); err != nil {
				return err
			}
			b.begin(b.desc.Size)
			return nil
		})
	}
	return g.Wait()
}

// blob is a file of the layout in the form that the registry library uploads.
type blob struct {
	layout layout
	desc   ocispec.Descriptor
	hash   v1.Hash
	add    func(n int64) // the progress

	mu      sync.Mutex
	attempt int
	sent    int64 // bytes that the progress knows of
}

var _ v1.Layer = (*blob)(nil)

// begin starts an attempt with so many bytes done and returns the function that
// counts its further ones. A request that failed may read on for a while; what
// it still counts is dropped.
func (b *blob) begin(done int64) (count func(n int64)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempt++
	attempt := b.attempt
	b.add(done - b.sent)
	b.sent = done
	return func(n int64) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if attempt == b.attempt {
			b.sent += n
			b.add(n)
		}
	}
}

// Compressed opens the file anew; each attempt starts at its beginning, and the
// progress with it.
func (b *blob) Compressed() (io.ReadCloser, error) {
	f, _, err := b.layout.files.open(blobName(b.desc.Digest))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	verified := newVerifyingReader(f, b.layout.blobPath(b.desc.Digest), b.desc.Digest)
	return struct {
		io.Reader
		io.Closer
	}{progress.Reader(verified, b.begin(0)), verified}, nil
}

// The remaining methods are what v1.Layer asks for; packs are no file system
// layers, so there is no other form than the stored one.
func (b *blob) Uncompressed() (io.ReadCloser, error) { return b.Compressed() }

// Digest is the digest of the file.
func (b *blob) Digest() (v1.Hash, error) { return b.hash, nil }

// DiffID equals Digest.
func (b *blob) DiffID() (v1.Hash, error) { return b.hash, nil }

// Size is the size of the file in bytes.
func (b *blob) Size() (int64, error) { return b.desc.Size, nil }

// MediaType is the one in the manifest.
func (b *blob) MediaType() (types.MediaType, error) { return types.MediaType(b.desc.MediaType), nil }

// rawManifest is a manifest that is sent as it is, so that its digest holds.
type rawManifest []byte

// RawManifest returns the bytes.
func (m rawManifest) RawManifest() ([]byte, error) { return m, nil }

// MediaType is that of an OCI image manifest.
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
