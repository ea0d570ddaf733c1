// Package artifact builds the OS artifact: a root file system becomes an OCI
// image layout of packs, config and manifest (docs/artifact-format.md).
//
// It promises that equal inputs give equal digests, on another day and on
// another machine with the same version of osctl (and of e2fsprogs, where a
// directory or a tar becomes ext4). It signs nothing and talks to no registry.
package artifact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options says what to build and of what.
type Options struct {
	// Rootfs is an ext4 or squashfs image, a directory, or a tar archive
	// (compressed or not).
	Rootfs string
	// Output is the folder of the OCI layout. It must not exist, or be empty.
	Output string

	Product string
	Version string
	// Epoch 0 means what the tree says of itself (OSCTL_EPOCH in its os-release).
	Epoch      uint32
	MinVersion string
	// Architecture is a GOARCH name; empty means this machine's.
	Architecture string
	// Kernel and Initrd are paths in the root file system.
	Kernel, Initrd string
	// Created is the time of the release. Zero means the newest time in the
	// root file system: of its files, or of its superblock for a ready image.
	Created time.Time
	// Size is the size of the ext4 that is made of a directory or a tar, in
	// bytes; zero means as small as it fits. Ready images keep their size.
	Size int64

	Progress progress.Sink
}

// Result describes what Build made.
type Result struct {
	Descriptor ocispec.Descriptor
	Config     osimage.Config
	// Packs is the number of packs, Compressed their total size in bytes.
	Packs      int
	Compressed int64
}

// ErrOutput says that the output folder is not free.
var ErrOutput = errors.New("the output folder is not empty")

// OptionError is a value in Options that no image can have.
type OptionError struct{ Err error }

func (e *OptionError) Error() string { return e.Err.Error() }

// Unwrap is the reason.
func (e *OptionError) Unwrap() error { return e.Err }

// Plausible reports whether a release can have this time: superblocks count seconds
// from 1970 in 32 bits.
func Plausible(t time.Time) bool { return t.Unix() >= 0 && t.Unix() <= math.MaxUint32 }

// Build makes the layout. On an error the output folder is not created.
func Build(ctx context.Context, o Options) (Result, error) {
	if o.Architecture == "" {
		o.Architecture = runtime.GOARCH
	}
	if err := o.check(); err != nil {
		return Result{}, err
	}
	work, err := os.MkdirTemp(filepath.Dir(filepath.Clean(o.Output)), ".osctl-build-*")
	if err != nil {
		return Result{}, fmt.Errorf("building: %w", err)
	}
	r, err := build(ctx, o, work)
	if removeErr := os.RemoveAll(work); err == nil && removeErr != nil {
		err = fmt.Errorf("cleaning up the build: %w", removeErr)
	}
	return r, err
}

// check refuses what would otherwise be found after minutes of work.
func (o Options) check() error {
	c := osimage.Config{
		Product: o.Product, Version: o.Version, MinVersion: o.MinVersion, Architecture: o.Architecture, Kernel: o.Kernel, Initrd: o.Initrd,
	}
	if err := c.ValidateNames(); err != nil {
		return &OptionError{err}
	}
	if !o.Created.IsZero() && !Plausible(o.Created) {
		return &OptionError{fmt.Errorf("created %s: expected is a time from 1970 to 2106", o.Created)}
	}
	entries, err := os.ReadDir(o.Output)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("building: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("building into %s: %w; remove it or name another", o.Output, ErrOutput)
	}
	return nil
}

func build(ctx context.Context, o Options, work string) (Result, error) {
	raw, err := prepare(ctx, o, work)
	if err != nil {
		return Result{}, fmt.Errorf("preparing the root file system %s: %w", o.Rootfs, err)
	}
	l := layout{dir: filepath.Join(work, "layout")}
	if err := l.create(); err != nil {
		return Result{}, fmt.Errorf("creating the layout: %w", err)
	}
	packed, err := pack(ctx, raw.path, l, o.Progress)
	if err != nil {
		return Result{}, fmt.Errorf("packing the root file system: %w", err)
	}
	config := osimage.Config{
		Product: o.Product, Version: o.Version, Epoch: raw.epoch, MinVersion: o.MinVersion,
		Architecture: o.Architecture, Created: raw.created.UTC().Truncate(time.Second),
		Rootfs: packed.rootfs, Kernel: o.Kernel, Initrd: o.Initrd, Packages: raw.packages,
	}
	config.Rootfs.Filesystem = raw.filesystem
	desc, err := l.finish(config, packed.descriptors)
	if err != nil {
		return Result{}, fmt.Errorf("finishing the layout: %w", err)
	}
	// The output folder may exist when it is empty.
	if err := os.Remove(o.Output); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Result{}, fmt.Errorf("building: %w", err)
	}
	if err := os.Rename(l.dir, o.Output); err != nil {
		return Result{}, fmt.Errorf("building: %w", err)
	}
	r := Result{Descriptor: desc, Config: config, Packs: len(packed.descriptors)}
	for _, d := range packed.descriptors {
		r.Compressed += d.Size
	}
	return r, nil
}

// layout writes an OCI image layout.
type layout struct{ dir string }

func (l layout) create() error {
	return os.MkdirAll(filepath.Join(l.dir, ocispec.ImageBlobsDir, "sha256"), 0o755)
}

func (l layout) blob(mediaType string, data []byte) (ocispec.Descriptor, error) {
	d := digest.FromBytes(data)
	err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageBlobsDir, "sha256", d.Encoded()), data, 0o644)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
}

// finish adds config, manifest, index and marker, and checks the whole with the
// parser that the machines use.
func (l layout) finish(c osimage.Config, packs []ocispec.Descriptor) (ocispec.Descriptor, error) {
	none := ocispec.Descriptor{}
	rawConfig, err := json.Marshal(c)
	if err != nil {
		return none, err
	}
	config, err := l.blob(osimage.MediaTypeConfig, rawConfig)
	if err != nil {
		return none, err
	}
	annotations := map[string]string{
		ocispec.AnnotationTitle:   c.Product,
		ocispec.AnnotationVersion: c.Version,
		ocispec.AnnotationCreated: c.Created.Format(time.RFC3339),
	}
	manifest, desc, err := osimage.Manifest(config, packs, annotations)
	if err != nil {
		return none, err
	}
	if _, err := osimage.Parse(desc, manifest, rawConfig); err != nil {
		return none, err
	}
	if _, err := l.blob(desc.MediaType, manifest); err != nil {
		return none, err
	}
	entry := desc
	entry.Annotations = map[string]string{ocispec.AnnotationRefName: c.Version}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{entry},
	})
	if err != nil {
		return none, err
	}
	if err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), index, 0o644); err != nil {
		return none, err
	}
	marker := []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
	return desc, os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), marker, 0o644)
}
