package publish

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
)

// ErrExists says that a bundle would overwrite a file.
var ErrExists = errors.New("there is such a file; remove it or name another")

// companionTags are what cosign keeps beside a digest: signatures, attestations, and
// lists of contents (sha256-<hex>.sig, .att, .sbom).
func companionTags(d digest.Digest) []string {
	base := strings.TrimSuffix(osimage.SignatureTag(d), ".sig")
	return []string{base + ".sig", base + ".att", base + ".sbom"}
}

// Bundled says what a bundle holds.
type Bundled struct {
	Digest digest.Digest // of the image
	// Companions are the manifests beside the image: signatures, attestations,
	// statements, by either way of finding them.
	Companions int
	Size       int64 // of the archive, in bytes
}

// Bundle writes the image of ref, and everything that vouches for it, into one OCI
// archive: an uncompressed tar of an OCI layout, which appears when it is complete.
// What lies beside the image is taken along by both ways of finding it, cosign's tags
// and the referrers, and if ref is a tag, the statement of that channel as well.
// Nothing is verified but digests.
//
// The error wraps ErrReference, ErrRegistry, osimage.ErrNotOS or ErrExists.
func Bundle(ctx context.Context, ref, file string, o Options) (Bundled, error) {
	target, err := o.parse(ref)
	if err != nil {
		return Bundled{}, err
	}
	if _, err := os.Lstat(file); err == nil {
		return Bundled{}, fmt.Errorf("bundling into %s: %w", file, ErrExists)
	}
	img, err := readRemote(ctx, target, o)
	if err != nil {
		return Bundled{}, err
	}
	b := &bundle{options: o.remote(ctx), repo: target.Context(), seen: map[digest.Digest]bool{}}
	title := img.Config().Version
	tag, isTag := target.(name.Tag)
	if isTag {
		title = tag.TagStr()
	}
	if err := b.add(img.RawManifest(), title); err != nil {
		return Bundled{}, err
	}
	if err := b.companions(img.Digest()); err != nil {
		return Bundled{}, err
	}
	if isTag {
		statement, err := b.tagged(osimage.ChannelTag(tag.TagStr()))
		if err == nil && statement != "" {
			err = b.companions(statement)
		}
		if err != nil {
			return Bundled{}, err
		}
	}
	size, err := b.write(file, progress.NewCounter(o.Progress, progress.Fetch, b.total))
	return Bundled{img.Digest(), len(b.index.Manifests) - 1, size}, err
}

// bundle is an archive on its way.
type bundle struct {
	options []remote.Option
	repo    name.Repository
	index   ocispec.Index
	seen    map[digest.Digest]bool
	small   []osimage.Blob       // manifests
	blobs   []ocispec.Descriptor // what they name
	total   int64                // bytes of blobs
}

// companions adds what lies beside a digest.
func (b *bundle) companions(d digest.Digest) error {
	for _, tag := range companionTags(d) {
		if _, err := b.tagged(tag); err != nil {
			return err
		}
	}
	doing := fmt.Sprintf("looking for what refers to %s", d)
	list, err := remote.Referrers(b.repo.Digest(d.String()), b.options...)
	if err != nil {
		return registryError(doing, err)
	}
	m, err := list.IndexManifest()
	if err != nil {
		return registryError(doing, err)
	}
	// Each registry has its own order.
	slices.SortFunc(m.Manifests, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	for _, r := range m.Manifests {
		desc, err := remote.Get(b.repo.Digest(r.Digest.String()), b.options...)
		if err != nil {
			return registryError(doing, err)
		}
		if err := b.add(desc.Manifest, ""); err != nil {
			return err
		}
	}
	return nil
}

// tagged adds what a tag leads to, and returns its digest; nothing if there is no such
// tag.
func (b *bundle) tagged(tag string) (digest.Digest, error) {
	desc, err := remote.Get(b.repo.Tag(tag), b.options...)
	if answer := (*transport.Error)(nil); errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return "", nil
	}
	if err != nil {
		return "", registryError("reading "+b.repo.Tag(tag).String(), err)
	}
	return digest.Digest(desc.Digest.String()), b.add(desc.Manifest, tag)
}

// add enters a manifest and the blobs that it names.
func (b *bundle) add(raw []byte, title string) error {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("reading a manifest for the bundle: %w: %w", ErrRegistry, err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: m.ArtifactType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if desc.MediaType == "" {
		desc.MediaType = ocispec.MediaTypeImageManifest
	}
	if desc.ArtifactType == "" && m.Subject != nil {
		desc.ArtifactType = m.Config.MediaType // image-spec 1.1 on referrers
	}
	if title != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: title}
	}
	if title == "" && b.seen[desc.Digest] {
		return nil // it is there under its tag
	}
	b.index.Manifests = append(b.index.Manifests, desc)
	if b.seen[desc.Digest] {
		return nil
	}
	b.seen[desc.Digest] = true
	b.small = append(b.small, osimage.Blob{Descriptor: desc, Content: raw})
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if d.Digest == "" || b.seen[d.Digest] {
			continue
		}
		if err := d.Digest.Validate(); err != nil || d.Size < 0 {
			return fmt.Errorf("reading the manifest %s for the bundle: %w: it names %q of %d bytes", desc.Digest, ErrRegistry, d.Digest, d.Size)
		}
		b.seen[d.Digest] = true
		b.blobs = append(b.blobs, d)
		b.total += d.Size
	}
	return nil
}

// write makes the archive by way of a temporary file beside it.
func (b *bundle) write(file string, counter *progress.Counter) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".osctl-bundle-*")
	if err != nil {
		return 0, fmt.Errorf("bundling: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	tw := tar.NewWriter(f)
	if err := b.content(tw, counter); err != nil {
		return 0, err
	}
	err = errors.Join(tw.Close(), f.Chmod(0o644), f.Sync())
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return 0, fmt.Errorf("bundling into %s: %w", file, err)
	}
	return size, f.Close()
}

// content writes the members: equal contents of a repository give equal archives.
func (b *bundle) content(tw *tar.Writer, counter *progress.Counter) error {
	b.index.Versioned, b.index.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageIndex
	index, err := json.Marshal(b.index)
	if err != nil {
		return fmt.Errorf("bundling: %w", err)
	}
	marker := []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
	if err := errors.Join(member(tw, ocispec.ImageLayoutFile, marker), member(tw, ocispec.ImageIndexFile, index)); err != nil {
		return err
	}
	for _, s := range b.small {
		if err := member(tw, blobName(s.Descriptor.Digest), s.Content); err != nil {
			return err
		}
	}
	for _, d := range b.blobs {
		if err := b.copy(tw, d, counter); err != nil {
			return err
		}
	}
	return nil
}

// copy streams a blob from the registry, which checks its digest on the way.
func (b *bundle) copy(tw *tar.Writer, d ocispec.Descriptor, counter *progress.Counter) (err error) {
	doing := "fetching " + d.Digest.String()
	layer, err := remote.Layer(b.repo.Digest(d.Digest.String()), b.options...)
	if err != nil {
		return registryError(doing, err)
	}
	rc, err := layer.Compressed()
	if err != nil {
		return registryError(doing, err)
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	if err := tw.WriteHeader(header(blobName(d.Digest), d.Size)); err != nil {
		return fmt.Errorf("bundling: %w", err)
	}
	n, err := io.Copy(tw, progress.Reader(io.LimitReader(rc, d.Size+1), counter.Add))
	if err == nil && n < d.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return registryError(doing, err)
	}
	return nil
}

func member(tw *tar.Writer, name string, content []byte) error {
	if err := tw.WriteHeader(header(name, int64(len(content)))); err != nil {
		return fmt.Errorf("bundling: %w", err)
	}
	if _, err := tw.Write(content); err != nil {
		return fmt.Errorf("bundling: %w", err)
	}
	return nil
}

func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatPAX}
}

// pushCompanions uploads what a layout has beside its image, apart from the classic
// signatures and attestations, which are added to those that are there: lists under a
// tag of cosign's, and what refers to the image. The statement of a channel goes only to
// the tag that it is about, after what vouches for it.
func (l layout) pushCompanions(ctx context.Context, pusher *remote.Pusher, target name.Reference) error {
	repo := target.Context()
	if err := l.pushBeside(ctx, pusher, repo, l.image.Digest()); err != nil {
		return err
	}
	tag, ok := target.(name.Tag)
	if !ok {
		return nil
	}
	title := osimage.ChannelTag(tag.TagStr())
	for _, d := range l.index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != title {
			continue
		}
		if err := l.pushBeside(ctx, pusher, repo, d.Digest); err != nil {
			return err
		}
		return l.pushStored(ctx, pusher, repo.Tag(title), d)
	}
	return nil
}

// pushBeside uploads what lies beside one digest.
func (l layout) pushBeside(ctx context.Context, pusher *remote.Pusher, repo name.Repository, of digest.Digest) error {
	for _, d := range l.index.Manifests {
		title := d.Annotations[ocispec.AnnotationRefName]
		switch {
		case slices.Contains(l.signatureTags(), title) || d.MediaType == ocispec.MediaTypeImageIndex:
		case title == "" && l.refersTo(d, of):
			if err := l.pushStored(ctx, pusher, repo.Digest(d.Digest.String()), d); err != nil {
				return err
			}
		case slices.Contains(companionTags(of), title):
			if err := l.pushStored(ctx, pusher, repo.Tag(title), d); err != nil {
				return err
			}
		}
	}
	return nil
}

// refersTo reports whether a manifest of the layout has a digest for its subject.
func (l layout) refersTo(d ocispec.Descriptor, of digest.Digest) bool {
	raw, err := l.readBlob(d.Digest, osimage.MaxManifest)
	var m ocispec.Manifest
	return err == nil && json.Unmarshal(raw, &m) == nil && m.Subject != nil && m.Subject.Digest == of
}

// pushStored uploads a small artifact.
func (l layout) pushStored(ctx context.Context, pusher *remote.Pusher, at name.Reference, d ocispec.Descriptor) error {
	hash, err := v1.NewHash(d.Digest.String())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	img, err := l.stored(hash)
	if err != nil {
		return fmt.Errorf("%w: %s beside the image: %w", ErrLayout, d.Digest, err)
	}
	if err := pusher.Push(ctx, at, img); err != nil {
		return registryError("pushing "+at.String(), err)
	}
	return nil
}
