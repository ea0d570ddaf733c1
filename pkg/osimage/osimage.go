// Package osimage is the model of the OS artifact: its media types, its config,
// its versions, and the checks that make bytes from a registry into an Image.
//
// It moves no bytes and trusts nothing: an Image says only that the manifest and
// the config are well formed and have the digests that they were asked for by.
// Whether somebody vouches for it is package trust's question, whether it fits
// this machine is package admit's. The format is specified in
// docs/artifact-format.md.
package osimage

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of the artifact (docs/artifact-format.md). Index and delta are
// reserved: machines ignore layers of these types when they do not know them.
const (
	ArtifactType    = "application/vnd.kapernikov.osctl.image.v1"
	MediaTypeConfig = "application/vnd.kapernikov.osctl.config.v1+json"
	MediaTypePack   = "application/vnd.kapernikov.osctl.pack.v1+zstd"
	MediaTypeIndex  = "application/vnd.kapernikov.osctl.index.v1"
	MediaTypeDelta  = "application/vnd.kapernikov.osctl.delta.v1"
)

// Limits on what is accepted from outside, in bytes.
const (
	// SegmentSize is the unit of verification: 1 MiB of the raw image.
	SegmentSize = 1 << 20
	// MaxManifest is the size that the distribution specification lets
	// registries refuse from: 4 MiB.
	MaxManifest = 4 << 20
	// MaxConfig bounds the config. 16 MiB holds the segment digests of an image
	// of more than 300 GiB.
	MaxConfig = 16 << 20
	// MaxPack bounds one pack. Builders aim at 4 MiB; one zstd frame of
	// incompressible data is slightly larger than its segment.
	MaxPack = 64 << 20
	// MaxImage bounds the raw image: 256 GiB.
	MaxImage = 256 << 30
)

// ErrNotOS says that a reference leads to something else than an OS artifact.
// Callers use it to tell "not ours" from "ours, but broken" (ErrInvalid).
var ErrNotOS = errors.New("not an osctl OS artifact")

// ErrInvalid says that an OS artifact breaks its own format.
var ErrInvalid = errors.New("invalid OS artifact")

// Config is the signed description of an OS image: everything a machine decides
// on. Field by field it is specified in docs/artifact-format.md.
type Config struct {
	// Product is the kind of machine the image is for, compared exactly.
	Product string `json:"product"`
	// Version is the release, ordered by CompareVersions.
	Version string `json:"version"`
	// Epoch is the anti-rollback generation: an image below the machine's
	// epoch is refused whatever its version says.
	Epoch uint32 `json:"epoch"`
	// Architecture is a GOARCH name, for example "amd64".
	Architecture string `json:"architecture"`
	// MinVersion, when set, is the oldest version that may upgrade to this one.
	MinVersion string `json:"minVersion,omitempty"`
	// Created is the time of the build (SOURCE_DATE_EPOCH), in UTC.
	Created time.Time `json:"created"`
	// Rootfs describes the raw image.
	Rootfs Rootfs `json:"rootfs"`
	// Kernel and Initrd are paths inside the root file system.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd,omitempty"`
	// Packages lists what the builder knew of the content; may be empty.
	Packages []Package `json:"packages,omitempty"`
}

// Rootfs describes the raw image that a slot receives.
type Rootfs struct {
	// Size is the length of the raw image in bytes.
	Size int64 `json:"size"`
	// Filesystem is the name that mount(8) knows it by: ext4 or squashfs.
	Filesystem string `json:"filesystem"`
	// Digest is the SHA-256 of the whole raw image.
	Digest digest.Digest `json:"digest"`
	// SegmentSize is the length of a segment in bytes; 1 MiB in version 1.
	// The last segment may be shorter.
	SegmentSize int64 `json:"segmentSize"`
	// SegmentDigests is the concatenation of the raw 32-byte SHA-256 digests of
	// all segments in order (base64 in JSON).
	SegmentDigests []byte `json:"segmentDigests"`
	// PackSegments says how many segments each pack layer holds, in order.
	PackSegments []int `json:"packSegments"`
}

// Package is one installed package as the builder's package manager names it.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Segments is the number of segments of the image.
func (r Rootfs) Segments() int { return int((r.Size + SegmentSize - 1) / SegmentSize) }

// SegmentDigest returns the SHA-256 of segment i.
func (r Rootfs) SegmentDigest(i int) [sha256.Size]byte {
	return [sha256.Size]byte(r.SegmentDigests[i*sha256.Size : (i+1)*sha256.Size])
}

// SegmentLength is the length of segment i in bytes: SegmentSize, or less for
// the last one.
func (r Rootfs) SegmentLength(i int) int {
	return int(min(SegmentSize, r.Size-int64(i)*SegmentSize))
}

// Image is an OS artifact whose manifest and config were checked against their
// digests and against the format. The zero value is invalid.
type Image struct {
	manifest    ocispec.Descriptor
	raw         []byte
	rawConfig   []byte
	configBlob  ocispec.Descriptor
	config      Config
	packs       []ocispec.Descriptor
	annotations map[string]string
}

// Parse checks the bytes of a manifest and returns the descriptor of its config
// and, once config is given, the Image. manifest carries the digest that the
// bytes must have. Errors wrap ErrNotOS or ErrInvalid.
func Parse(manifest ocispec.Descriptor, manifestBytes, configBytes []byte) (Image, error) {
	m, err := ParseManifest(manifest, manifestBytes)
	if err != nil {
		return Image{}, err
	}
	if err := checkDigest(m.Config.Digest); err != nil {
		return Image{}, fmt.Errorf("%w: config: %w", ErrInvalid, err)
	}
	if got := digest.FromBytes(configBytes); got != m.Config.Digest {
		return Image{}, fmt.Errorf("%w: the config has digest %s, the manifest names %s", ErrInvalid, got, m.Config.Digest)
	}
	img := Image{
		manifest: manifest, raw: manifestBytes, rawConfig: configBytes,
		configBlob: m.Config, annotations: m.Annotations,
	}
	if err := Unmarshal(configBytes, &img.config); err != nil {
		return Image{}, fmt.Errorf("%w: config: %w", ErrInvalid, err)
	}
	for _, layer := range m.Layers {
		if layer.MediaType == MediaTypePack {
			img.packs = append(img.packs, layer)
		}
	}
	if err := img.validate(); err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return img, nil
}

// ParseManifest checks the bytes of a manifest against its descriptor and says
// what it is instead when it is not an OS artifact. A caller uses it to learn
// the config's descriptor before it fetches the config.
func ParseManifest(desc ocispec.Descriptor, raw []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if len(raw) > MaxManifest {
		return m, fmt.Errorf("%w: the manifest has %d bytes, the limit is %d", ErrInvalid, len(raw), MaxManifest)
	}
	if err := checkDigest(desc.Digest); err != nil {
		return m, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	if got := digest.FromBytes(raw); got != desc.Digest {
		return m, fmt.Errorf("%w: the manifest has digest %s, asked for was %s", ErrInvalid, got, desc.Digest)
	}
	if err := Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	if m.ArtifactType != ArtifactType || m.MediaType != ocispec.MediaTypeImageManifest {
		return m, fmt.Errorf("%w: it is %s", ErrNotOS, kind(m, desc))
	}
	if m.SchemaVersion != 2 {
		return m, fmt.Errorf("%w: schemaVersion %d, known is 2", ErrInvalid, m.SchemaVersion)
	}
	if m.Config.MediaType != MediaTypeConfig {
		return m, fmt.Errorf("%w: config has media type %q, known is %q", ErrInvalid, m.Config.MediaType, MediaTypeConfig)
	}
	if m.Config.Size <= 0 || m.Config.Size > MaxConfig {
		return m, fmt.Errorf("%w: config of %d bytes, the limit is %d", ErrInvalid, m.Config.Size, MaxConfig)
	}
	return m, nil
}

// kind names a foreign artifact for a person.
func kind(m ocispec.Manifest, desc ocispec.Descriptor) string {
	mediaType := m.MediaType
	if mediaType == "" {
		mediaType = desc.MediaType
	}
	switch {
	case m.ArtifactType != "":
		return fmt.Sprintf("an artifact of type %q", m.ArtifactType)
	case mediaType == ocispec.MediaTypeImageIndex, mediaType == "application/vnd.docker.distribution.manifest.list.v2+json":
		return "an image index (a list of images), and an OS artifact is one image"
	case m.Config.MediaType == ocispec.MediaTypeImageConfig, m.Config.MediaType == "application/vnd.docker.container.image.v1+json":
		return "an ordinary container image, to be run with nerdctl"
	case m.Config.MediaType != "":
		return fmt.Sprintf("an artifact with config %q", m.Config.MediaType)
	}
	return fmt.Sprintf("a %q", mediaType)
}

// Manifest builds the manifest of an OS artifact, its canonical bytes and its
// descriptor. Equal arguments give equal bytes.
func Manifest(config ocispec.Descriptor, layers []ocispec.Descriptor, annotations map[string]string) ([]byte, ocispec.Descriptor, error) {
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType, Config: config, Layers: layers, Annotations: annotations,
	})
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("encoding the manifest: %w", err)
	}
	if len(raw) > MaxManifest {
		return nil, ocispec.Descriptor{}, fmt.Errorf("%w: the manifest has %d bytes, the limit is %d", ErrInvalid, len(raw), MaxManifest)
	}
	return raw, ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType,
		Digest: digest.FromBytes(raw), Size: int64(len(raw)),
	}, nil
}

// Valid reports whether the image came from Parse.
func (i Image) Valid() bool { return i.manifest.Digest != "" }

// Digest is the digest of the manifest: the identity of the release.
func (i Image) Digest() digest.Digest { return i.manifest.Digest }

// Descriptor is the manifest's descriptor.
func (i Image) Descriptor() ocispec.Descriptor { return i.manifest }

// ConfigDescriptor is the config's descriptor.
func (i Image) ConfigDescriptor() ocispec.Descriptor { return i.configBlob }

// RawManifest and RawConfig are the bytes that the digests were checked on.
func (i Image) RawManifest() []byte { return i.raw }

// RawConfig returns the bytes of the config.
func (i Image) RawConfig() []byte { return i.rawConfig }

// Config is the signed description.
func (i Image) Config() Config { return i.config }

// Packs are the pack layers in the order of the image.
func (i Image) Packs() []ocispec.Descriptor { return i.packs }

// Annotations are for people; nothing is decided on them.
func (i Image) Annotations() map[string]string { return i.annotations }

// Blobs brings the packs of an image. It is used by several goroutines at once.
type Blobs interface {
	// Expect announces how many bytes of packs will be opened or kept.
	Expect(total int64)
	// Open opens a pack, which includes fetching it unless it was kept.
	Open(ctx context.Context, pack ocispec.Descriptor) (io.ReadCloser, error)
	// Keep makes sure that a pack is on this machine, also after an interruption.
	Keep(ctx context.Context, pack ocispec.Descriptor) error
}

// CompressedSize is the sum of all packs in bytes.
func (i Image) CompressedSize() int64 {
	var n int64
	for _, p := range i.packs {
		n += p.Size
	}
	return n
}
