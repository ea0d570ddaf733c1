package osimage

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Signature is one cosign signature as it was found beside an image: nobody has
// verified it yet.
type Signature struct {
	// Payload is the signed "simple signing" JSON.
	Payload []byte
	// Base64 is the signature over Payload.
	Base64 string
	// Annotations are those of the layer that carried the payload.
	Annotations map[string]string
}

// Limits on signatures, which are read before anything is trusted.
const (
	// MaxSignatures is the number of signatures that are looked at.
	MaxSignatures = 100
	// MaxPayload is the largest signed payload in bytes.
	MaxPayload = 64 << 10
	// SignatureAnnotation is cosign's name for the base64 signature.
	SignatureAnnotation = "dev.cosignproject.cosign/signature"
	// MediaTypeSignature is cosign's media type of a signed payload.
	MediaTypeSignature = "application/vnd.dev.cosign.simplesigning.v1+json"
)

// SignatureTag is the tag under which cosign keeps the classic signatures of a
// digest: sha256-<hex>.sig in the same repository.
func SignatureTag(d digest.Digest) string {
	return strings.Replace(d.String(), ":", "-", 1) + ".sig"
}

// SignatureLayers lists the payload layers of a cosign signature manifest, at
// most MaxSignatures of them. Layers of other kinds are passed over.
func SignatureLayers(manifest []byte) ([]ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("%w: signature manifest: %w", ErrInvalid, err)
	}
	var layers []ocispec.Descriptor
	for _, layer := range m.Layers {
		if layer.MediaType != MediaTypeSignature || layer.Size < 0 || layer.Size > MaxPayload || checkDigest(layer.Digest) != nil {
			continue
		}
		if len(layers) == MaxSignatures {
			return nil, fmt.Errorf("%w: more than %d signatures", ErrInvalid, MaxSignatures)
		}
		layers = append(layers, layer)
	}
	return layers, nil
}
