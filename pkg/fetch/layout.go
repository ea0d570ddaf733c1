package fetch

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
)

// Layout is a source on this machine: an OCI layout in a folder or in an
// uncompressed tar archive. It works without network and without containerd.
type Layout struct {
	name  string
	files files
	index ocispec.Index
	// subjects are what the manifests of the index refer to, as far as they were read:
	// an index may name one many times.
	subjects map[digest.Digest]digest.Digest
}

// Limits on what a carried layout makes this machine read and remember before anything
// of it is verified.
const (
	// maxEntries is the number of manifests in the index.
	maxEntries = 1000
	// maxMembers is the number of blobs in an archive. A manifest of 4 MiB names less
	// than half as many.
	maxMembers = 1 << 16
)

// files opens the members of a layout by their slash-separated names.
type files interface {
	member(name string) (io.ReadCloser, error)
	io.Closer
}

// OpenLayout opens a folder or an archive.
func OpenLayout(name string) (*Layout, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("opening layout: %w", err)
	}
	l := &Layout{name: name, files: folder(name), subjects: map[digest.Digest]digest.Digest{}}
	if !info.IsDir() {
		if l.files, err = openArchive(name); err != nil {
			return nil, fmt.Errorf("opening layout %s: %w", name, err)
		}
	}
	if err := l.readIndex(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening layout %s: %w", name, err), l.Close())
	}
	return l, nil
}

func (l *Layout) readIndex() error {
	rc, err := l.files.member(ocispec.ImageIndexFile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	raw, err := io.ReadAll(io.LimitReader(rc, osimage.MaxManifest))
	if err := errors.Join(err, rc.Close()); err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	if err := json.Unmarshal(raw, &l.index); err != nil {
		return fmt.Errorf("%w: index.json: %w", ErrLayout, err)
	}
	if n := len(l.index.Manifests); n > maxEntries {
		return fmt.Errorf("%w: index.json: %d manifests, the limit is %d", ErrLayout, n, maxEntries)
	}
	return nil
}

// Close closes the archive.
func (l *Layout) Close() error { return l.files.Close() }

// Resolve finds the OS artifact of the layout: the one with the given digest, or
// the only one when want is empty.
func (l *Layout) Resolve(ctx context.Context, want string) (Ref, error) {
	var found []ocispec.Descriptor
	for _, d := range l.index.Manifests {
		// Under two names it is there twice, and still one image.
		same := func(f ocispec.Descriptor) bool { return f.Digest == d.Digest && f.Size == d.Size }
		if !beside(d) && (want == "" || d.Digest.String() == want) && l.subject(ctx, d) == "" && !slices.ContainsFunc(found, same) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return Ref{name: l.name, desc: found[0], source: l}, nil
	case 0:
		return Ref{}, fmt.Errorf("%w: %s holds no image %s", ErrLayout, l.name, want)
	}
	return Ref{}, fmt.Errorf("%w: %s holds %d images; name one with --digest", ErrLayout, l.name, len(found))
}

// beside reports whether an entry is what a bundle carries beside its image: what
// cosign keeps under tags made of a digest, the statement of a channel, or something
// else that says so.
func beside(d ocispec.Descriptor) bool {
	name := d.Annotations[ocispec.AnnotationRefName]
	return strings.HasPrefix(name, "sha256-") || strings.HasSuffix(name, osimage.ChannelTag("")) ||
		d.ArtifactType != "" && d.ArtifactType != osimage.ArtifactType
}

// referrers finds them where tools put them: in the layout's own index, by their
// subject, and in an index under the tag that stands in for the referrers API.
func (l *Layout) referrers(ctx context.Context, image digest.Digest) ([]ocispec.Descriptor, error) {
	var list []ocispec.Descriptor
	for _, d := range l.index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != osimage.ReferrersTag(image) {
			if l.subject(ctx, d) == image {
				list = append(list, d)
			}
			continue
		}
		raw, err := readSmall(ctx, l, d, osimage.MaxManifest)
		if err != nil {
			return nil, err
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, fmt.Errorf("%w: the list of referrers of %s: %w", ErrLayout, image, err)
		}
		list = append(list, index.Manifests...)
	}
	seen := map[digest.Digest]bool{}
	return slices.DeleteFunc(list, func(d ocispec.Descriptor) bool {
		twice := seen[d.Digest]
		seen[d.Digest] = true
		return twice
	}), nil
}

// subject is what a manifest of the layout's index refers to; empty for an image.
func (l *Layout) subject(ctx context.Context, d ocispec.Descriptor) digest.Digest {
	if known, ok := l.subjects[d.Digest]; ok {
		return known
	}
	raw, err := readSmall(ctx, l, d, osimage.MaxManifest)
	if err != nil {
		return "" // who needs the manifest finds out why
	}
	l.subjects[d.Digest] = osimage.ParseReferrer(raw).Subject
	return l.subjects[d.Digest]
}

// blobs reads in place; nothing is copied and nothing needs releasing.
func (l *Layout) blobs(_ context.Context, _ digest.Digest, sink progress.Sink) (osimage.Blobs, error) {
	return &layoutBlobs{layout: l, sink: sink}, nil
}

func (l *Layout) release(context.Context) error { return nil }

type layoutBlobs struct {
	layout  *Layout
	sink    progress.Sink
	counter *progress.Counter
}

func (b *layoutBlobs) Expect(total int64) {
	b.counter = progress.NewCounter(b.sink, progress.Fetch, total)
}

func (b *layoutBlobs) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := b.layout.open(ctx, desc)
	if err == nil && b.counter != nil {
		b.counter.Add(desc.Size)
	}
	return rc, err
}

// Keep finds out whether the layout has the pack.
func (b *layoutBlobs) Keep(ctx context.Context, desc ocispec.Descriptor) error {
	rc, err := b.Open(ctx, desc)
	if err != nil {
		return err
	}
	return rc.Close()
}

func (l *Layout) open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil || desc.Digest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("%w: %q is no sha256 digest", ErrLayout, desc.Digest)
	}
	rc, err := l.files.member(path.Join(ocispec.ImageBlobsDir, "sha256", desc.Digest.Encoded()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	return rc, nil
}

type folder string

func (f folder) member(name string) (io.ReadCloser, error) {
	return openRegular(filepath.Join(string(f), filepath.FromSlash(name)))
}

// openRegular opens a file that is one: to open a pipe may take for ever, and to open a
// device may do something. Links are followed, as some tools make layouts of them.
func openRegular(name string) (*os.File, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("it is no regular file")}
	}
	// What was put in its place since then is not waited for either.
	return os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

func (folder) Close() error { return nil }

// archive is an uncompressed tar: its members are read in place.
type archive struct {
	file    *os.File
	members map[string][2]int64 // offset, size
}

func openArchive(name string) (*archive, error) {
	file, err := openRegular(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	a := &archive{file: file, members: map[string][2]int64{}}
	if err := a.scan(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return a, nil
}

func (a *archive) scan() error {
	tr := tar.NewReader(a.file) // an os.File is seekable: contents are skipped
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: an OCI archive is an uncompressed tar: %w", ErrLayout, err)
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !isMember(name) {
			continue
		}
		// Of two, another tool may take the other one.
		if _, twice := a.members[name]; twice {
			return fmt.Errorf("%w: %s is there twice", ErrLayout, name)
		}
		if len(a.members) == maxMembers {
			return fmt.Errorf("%w: more than %d blobs", ErrLayout, maxMembers)
		}
		off, err := a.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		a.members[name] = [2]int64{off, h.Size}
	}
}

// isMember reports whether a file belongs to a layout and is ever asked for.
func isMember(name string) bool {
	blob, ok := strings.CutPrefix(name, ocispec.ImageBlobsDir+"/sha256/")
	return name == ocispec.ImageIndexFile || ok && digest.NewDigestFromEncoded(digest.SHA256, blob).Validate() == nil
}

func (a *archive) member(name string) (io.ReadCloser, error) {
	m, ok := a.members[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: a.file.Name() + ":" + name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(a.file, m[0], m[1])), nil
}

func (a *archive) Close() error { return a.file.Close() }
