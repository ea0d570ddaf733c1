package publish

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
)

// files opens the members of a layout by their slash-separated names.
type files interface {
	open(name string) (rc io.ReadCloser, size int64, err error)
	Close() error
}

// folder is a layout in a directory.
type folder string

func (f folder) open(name string) (io.ReadCloser, int64, error) {
	file, err := os.Open(filepath.Join(string(f), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

func (folder) Close() error { return nil }

// archive is a layout in an uncompressed tar, read in place.
type archive struct {
	file    *os.File
	members map[string]*io.SectionReader
}

func openArchive(name string) (*archive, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archive{file: file, members: map[string]*io.SectionReader{}}
	tr := tar.NewReader(file) // an os.File is seekable: contents are skipped
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: an OCI archive is an uncompressed tar: %w", name, err), file.Close())
		}
		at, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		if h.Typeflag == tar.TypeReg {
			a.members[path.Clean(h.Name)] = io.NewSectionReader(file, at, h.Size)
		}
	}
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	m, ok := a.members[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: a.file.Name() + ":" + name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(m, 0, m.Size())), m.Size(), nil
}

func (a *archive) Close() error { return a.file.Close() }

// stored is a small artifact of a layout in the form that the registry library takes.
func (l layout) stored(hash v1.Hash) (v1.Image, error) {
	raw, err := l.readBlob(digest.Digest(hash.String()), osimage.MaxManifest)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(raw).String() != hash.String() {
		return nil, fmt.Errorf("%s has other content", hash)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(storedImage{l, raw, m})
}

// storedImage implements partial.CompressedImageCore.
type storedImage struct {
	layout   layout
	raw      []byte
	manifest *v1.Manifest
}

// MediaType is what the manifest says.
func (s storedImage) MediaType() (types.MediaType, error) {
	if s.manifest.MediaType == "" {
		return types.OCIManifestSchema1, nil
	}
	return s.manifest.MediaType, nil
}

// RawManifest returns the bytes as they are stored.
func (s storedImage) RawManifest() ([]byte, error) { return s.raw, nil }

// RawConfigFile returns the bytes of the config.
func (s storedImage) RawConfigFile() ([]byte, error) {
	return s.layout.readBlob(digest.Digest(s.manifest.Config.Digest.String()), osimage.MaxConfig)
}

// LayerByDigest opens a blob that the manifest names.
func (s storedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range append(s.manifest.Layers, s.manifest.Config) {
		if d.Digest == h {
			return storedLayer{s.layout, d}, nil
		}
	}
	return nil, fmt.Errorf("the manifest names no %s", h)
}

// storedLayer implements partial.CompressedLayer.
type storedLayer struct {
	layout layout
	desc   v1.Descriptor
}

// Digest is the one in the manifest.
func (s storedLayer) Digest() (v1.Hash, error) { return s.desc.Digest, nil }

// Size is the size in the manifest, in bytes.
func (s storedLayer) Size() (int64, error) { return s.desc.Size, nil }

// MediaType is the one in the manifest.
func (s storedLayer) MediaType() (types.MediaType, error) { return s.desc.MediaType, nil }

// Compressed opens the blob; its digest is checked while it is read.
func (s storedLayer) Compressed() (io.ReadCloser, error) {
	d := digest.Digest(s.desc.Digest.String())
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	f, _, err := s.layout.files.open(blobName(d))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	return newVerifyingReader(f, s.layout.blobPath(d), d), nil
}
