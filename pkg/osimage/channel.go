package osimage

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of the statement of a channel (docs/channels.md).
const (
	ArtifactTypeChannel = "application/vnd.kapernikov.osctl.channel.v1"
	MediaTypeChannel    = "application/vnd.kapernikov.osctl.channel.v1+json"
)

// MaxStatement bounds a statement and its manifest, each, in bytes.
const MaxStatement = 64 << 10

// Statement says which image is at the head of a channel, and until when that may be
// believed. Its manifest is signed as that of an image is.
type Statement struct {
	// Channel is the tag that machines ask for, for example "stable".
	Channel string `json:"channel"`
	// Product is that of the image.
	Product string `json:"product"`
	// Digest is that of the image's manifest; Version is for people.
	Digest  digest.Digest `json:"digest"`
	Version string        `json:"version"`
	// Issued orders the statements of a channel; Expires is after it. Both have whole
	// seconds, in UTC.
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
}

// ChannelTag is the tag under which the statement of a channel is kept, in the same
// repository: <channel>.channel.
func ChannelTag(channel string) string { return channel + ".channel" }

// Validate checks a statement by itself.
func (s Statement) Validate() error {
	if err := CheckName("channel", s.Channel); err != nil {
		return err
	}
	if err := CheckName("product", s.Product); err != nil {
		return err
	}
	if err := checkDigest(s.Digest); err != nil {
		return err
	}
	if s.Issued.IsZero() || !s.Expires.After(s.Issued) {
		return fmt.Errorf("issued %s and expires %s: the second must come after the first", s.Issued.Format(time.RFC3339), s.Expires.Format(time.RFC3339))
	}
	return nil
}

// Blob is a small piece of an artifact with its descriptor.
type Blob struct {
	Descriptor ocispec.Descriptor
	Content    []byte
}

// Encode makes the artifact of a statement: its manifest, and the blobs that this
// names. Equal statements give equal bytes.
func (s Statement) Encode() (manifest Blob, blobs []Blob, err error) {
	if err := s.Validate(); err != nil {
		return Blob{}, nil, fmt.Errorf("encoding the statement of a channel: %w", err)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return Blob{}, nil, fmt.Errorf("encoding the statement of a channel: %w", err)
	}
	config := newBlob(MediaTypeChannel, raw)
	// A manifest without layers is not portable (image-spec 1.1, guidance for
	// artifacts).
	empty := newBlob(ocispec.MediaTypeEmptyJSON, []byte("{}"))
	raw, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactTypeChannel,
		Config: config.Descriptor, Layers: []ocispec.Descriptor{empty.Descriptor},
		Annotations: map[string]string{ocispec.AnnotationTitle: s.Channel, ocispec.AnnotationVersion: s.Version},
	})
	if err != nil {
		return Blob{}, nil, fmt.Errorf("encoding the statement of a channel: %w", err)
	}
	manifest = newBlob(ocispec.MediaTypeImageManifest, raw)
	manifest.Descriptor.ArtifactType = ArtifactTypeChannel
	return manifest, []Blob{config, empty}, nil
}

func newBlob(mediaType string, content []byte) Blob {
	return Blob{ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}, content}
}

// StatementConfig is the descriptor of the statement within its manifest. Errors wrap
// ErrInvalid.
func StatementConfig(manifest []byte) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if len(manifest) > MaxStatement {
		return m.Config, fmt.Errorf("%w: the manifest of a statement has %d bytes, the limit is %d", ErrInvalid, len(manifest), MaxStatement)
	}
	if err := Unmarshal(manifest, &m); err != nil {
		return m.Config, fmt.Errorf("%w: manifest of a statement: %w", ErrInvalid, err)
	}
	if m.ArtifactType != ArtifactTypeChannel || m.Config.MediaType != MediaTypeChannel {
		return m.Config, fmt.Errorf("%w: no statement of a channel: artifact type %q, config %q", ErrInvalid, m.ArtifactType, m.Config.MediaType)
	}
	if err := checkDigest(m.Config.Digest); err != nil || m.Config.Size <= 0 || m.Config.Size > MaxStatement {
		return m.Config, fmt.Errorf("%w: the statement %s has %d bytes, allowed are 1 to %d", ErrInvalid, m.Config.Digest, m.Config.Size, MaxStatement)
	}
	return m.Config, nil
}

// ParseStatement reads a statement. Errors wrap ErrInvalid. Nobody has verified it.
func ParseStatement(raw []byte) (Statement, error) {
	var s Statement
	if len(raw) > MaxStatement {
		return s, fmt.Errorf("%w: a statement of %d bytes, the limit is %d", ErrInvalid, len(raw), MaxStatement)
	}
	if err := Unmarshal(raw, &s); err != nil {
		return Statement{}, fmt.Errorf("%w: statement of a channel: %w", ErrInvalid, err)
	}
	if err := s.Validate(); err != nil {
		return Statement{}, fmt.Errorf("%w: statement of a channel: %w", ErrInvalid, err)
	}
	return s, nil
}

// ErrNoDocument says that there is nothing under the tag that was asked for.
var ErrNoDocument = errors.New("there is no such document")

// Document is a small artifact as it was found under a tag, with its digests checked,
// and the signatures beside it. Nobody has verified it.
type Document struct {
	Digest     digest.Digest // of the manifest: what is signed
	Config     []byte
	Signatures []Signature
}
