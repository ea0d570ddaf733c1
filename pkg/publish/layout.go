package publish

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// IsLayout reports whether a path is the directory of an OCI layout, by the
// marker file that the image specification requires in it.
func IsLayout(path string) bool {
	_, err := os.Stat(filepath.Join(path, ocispec.ImageLayoutFile))
	return err == nil
}

// layout is an OCI layout that holds exactly one OS image, with or without
// signatures: a directory, or an uncompressed tar archive, which is read in place.
type layout struct {
	dir   string // or the archive
	files files
	index ocispec.Index
	image osimage.Image
}

// openLayout reads everything but the packs.
func openLayout(dir string) (layout, error) {
	l := layout{dir: dir}
	if info, err := os.Stat(dir); err == nil && info.Mode().IsRegular() {
		if l.files, err = openArchive(dir); err != nil {
			return l, fmt.Errorf("%w: %w", ErrLayout, err)
		}
	} else if l.files = folder(dir); !IsLayout(dir) {
		return l, fmt.Errorf("%w: %s has no file %s; osctl build -o DIR makes a layout", ErrLayout, dir, ocispec.ImageLayoutFile)
	}
	raw, err := l.read(ocispec.ImageIndexFile, osimage.MaxManifest)
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	if err := json.Unmarshal(raw, &l.index); err != nil {
		return l, fmt.Errorf("%w: reading %s: %w", ErrLayout, filepath.Join(dir, ocispec.ImageIndexFile), err)
	}
	foreign := osimage.ErrNotOS // what the last foreign entry was
	for _, desc := range l.index.Manifests {
		img, err := l.readImage(desc)
		switch {
		case errors.Is(err, osimage.ErrNotOS):
			foreign = err
		case err != nil:
			return l, fmt.Errorf("%w: %s: %w", ErrLayout, dir, err)
		case l.image.Valid():
			return l, fmt.Errorf("%w: %s holds two OS images, %s and %s; expected one", ErrLayout, dir, l.image.Digest(), img.Digest())
		default:
			l.image = img
		}
	}
	if !l.image.Valid() {
		return l, fmt.Errorf("%w: %s holds no OS image: %w", ErrLayout, dir, foreign)
	}
	return l, nil
}

// readImage parses the image that an entry of the index leads to.
func (l layout) readImage(desc ocispec.Descriptor) (osimage.Image, error) {
	raw, err := l.readBlob(desc.Digest, osimage.MaxManifest)
	if err != nil {
		return osimage.Image{}, err
	}
	m, err := osimage.ParseManifest(desc, raw)
	if err != nil {
		return osimage.Image{}, err
	}
	config, err := l.readBlob(m.Config.Digest, osimage.MaxConfig)
	if err != nil {
		return osimage.Image{}, err
	}
	return osimage.Parse(desc, raw, config)
}

// signatureTags are those of the image's classic signatures and attestations.
func (l layout) signatureTags() []string {
	return []string{osimage.SignatureTag(l.image.Digest()), osimage.AttestationTag(l.image.Digest())}
}

// signatures returns the set of signatures that the layout carries for its image
// under a tag, or nil.
func (l layout) signatures(tag string) (*signatureSet, error) {
	i := slices.IndexFunc(l.index.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == tag })
	if i < 0 {
		return nil, nil
	}
	hash, err := v1.NewHash(l.index.Manifests[i].Digest.String())
	if err != nil {
		return nil, fmt.Errorf("%w: signatures in %s: %w", ErrLayout, l.dir, err)
	}
	img, err := l.stored(hash)
	if err != nil {
		return nil, fmt.Errorf("%w: signatures in %s: %w", ErrLayout, l.dir, err)
	}
	set := &signatureSet{img}
	if err := set.check(); err != nil {
		return nil, fmt.Errorf("%w: signatures in %s: %w", ErrLayout, l.dir, err)
	}
	return set, nil
}

func (l layout) isSignature(d ocispec.Descriptor) bool {
	return d.Annotations[ocispec.AnnotationRefName] == osimage.SignatureTag(l.image.Digest())
}

// replaceSignatures makes set the signatures of the image. The index changes
// last and at once, so that a layout is never half signed.
func (l layout) replaceSignatures(set *signatureSet) error {
	manifest, err := set.RawManifest()
	if err != nil {
		return err
	}
	config, err := set.RawConfigFile()
	if err != nil {
		return err
	}
	blobs := [][]byte{config, manifest}
	layers, err := set.Get()
	if err != nil {
		return err
	}
	for _, s := range layers {
		payload, err := s.Payload()
		if err != nil {
			return err
		}
		blobs = append(blobs, payload)
	}
	for _, b := range blobs {
		path := l.blobPath(digest.FromBytes(b))
		if there, err := readLimited(path, int64(len(b))); err == nil && bytes.Equal(there, b) {
			continue
		}
		if err := replaceFile(path, b); err != nil {
			return err
		}
	}
	index := l.index
	index.Manifests = append(slices.DeleteFunc(slices.Clone(index.Manifests), l.isSignature), ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		Annotations: map[string]string{ocispec.AnnotationRefName: osimage.SignatureTag(l.image.Digest())},
	})
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return replaceFile(l.path(ocispec.ImageIndexFile), raw)
}

func (l layout) path(name string) string { return filepath.Join(l.dir, name) }

func (l layout) blobPath(d digest.Digest) string {
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// readBlob reads a small blob; its digest is for the caller to check.
func (l layout) readBlob(d digest.Digest, limit int64) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return l.read(blobName(d), limit)
}

// read reads a small file of the layout.
func (l layout) read(name string, limit int64) ([]byte, error) {
	f, _, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return readAll(f, name, limit)
}

// blobName is the name of a blob within a layout.
func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path, limit)
}

func readAll(r io.Reader, name string, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return raw, err
}

// replaceFile writes a small file by way of a temporary one.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".osctl-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// verifyingReader ends with an error instead of io.EOF when the bytes that came
// through do not have the digest.
type verifyingReader struct {
	io.ReadCloser
	path   string
	want   digest.Digest
	verify digest.Verifier
}

func newVerifyingReader(f io.ReadCloser, name string, want digest.Digest) *verifyingReader {
	return &verifyingReader{f, name, want, want.Verifier()}
}

func (r *verifyingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.verify.Write(p[:n])
	if err == io.EOF && !r.verify.Verified() {
		err = fmt.Errorf("%w: %s does not have the digest that it is named by; build the image again", ErrLayout, r.path)
	}
	return n, err
}
