package osimage

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Form is how a signature is written down.
type Form string

const (
	// Classic is cosign's first form: a payload under the tag of SignatureTag, and
	// the signature over it in an annotation.
	Classic Form = ""
	// Bundle is a sigstore bundle (protobuf, as JSON) that refers to the image. It
	// holds a signature or an attestation.
	Bundle Form = "bundle"
	// Envelope is an attestation in a DSSE envelope, under the tag of AttestationTag.
	Envelope Form = "envelope"
)

// Signature is one signature or attestation as it was found beside an image:
// nobody has verified it yet.
type Signature struct {
	Form Form
	// Payload is, by form, the signed "simple signing" JSON, the bundle or the
	// envelope.
	Payload []byte
	// Base64 is the signature over Payload; of the classic form only.
	Base64 string
	// Annotations are those of the layer that carried the payload.
	Annotations map[string]string
	// Oversize is the size in bytes of a payload that was left unread because it is
	// over its limit; 0 if it was read.
	Oversize int64
}

// Limits on signatures, which are read before anything is trusted.
const (
	// MaxSignatures is the number of signatures and attestations that are looked at,
	// of all forms together.
	MaxSignatures = 100
	// MaxPayload is the largest signed payload, and the largest bundle of a
	// signature, in bytes.
	MaxPayload = 64 << 10
	// MaxAttestation is the largest attestation in bytes: a list of contents is long.
	MaxAttestation = 16 << 20
	// MaxEvidence bounds in bytes the payloads of all forms together, with their
	// annotations.
	MaxEvidence = 32 << 20
)

// Names of cosign's (v2, pkg/types and pkg/oci/remote) for what it puts beside an
// image, and of the bundle specification of sigstore.
const (
	// SignatureAnnotation names the base64 signature.
	SignatureAnnotation = "dev.cosignproject.cosign/signature"
	// MediaTypeSignature is the media type of a signed payload.
	MediaTypeSignature = "application/vnd.dev.cosign.simplesigning.v1+json"
	// MediaTypeEnvelope is the media type of a classic attestation.
	MediaTypeEnvelope = "application/vnd.dsse.envelope.v1+json"
	// PredicateAnnotation is, on the manifest of a bundle, the type of what it says.
	PredicateAnnotation = "dev.sigstore.bundle.predicateType"

	bundlePrefix      = "application/vnd.dev.sigstore.bundle"
	envelopePredicate = "predicateType" // on the layer of an envelope
)

// Types of what a signed statement (in-toto) says of an image.
const (
	// PredicateSignature is a signature and nothing more.
	PredicateSignature = "https://sigstore.dev/cosign/sign/v1"
	// PredicateProvenance and PredicateProvenance02 say how the image was built.
	PredicateProvenance   = "https://slsa.dev/provenance/v1"
	PredicateProvenance02 = "https://slsa.dev/provenance/v0.2"
	// PredicateSPDX and PredicateCycloneDX list what is in the image.
	PredicateSPDX      = "https://spdx.dev/Document"
	PredicateCycloneDX = "https://cyclonedx.org/bom"
)

// Attestations are the types of statements that osctl knows beside signatures.
func Attestations() []string {
	return []string{PredicateProvenance, PredicateProvenance02, PredicateSPDX, PredicateCycloneDX}
}

// SignatureTag is the tag under which cosign keeps the classic signatures of a
// digest: sha256-<hex>.sig in the same repository.
func SignatureTag(d digest.Digest) string { return ReferrersTag(d) + ".sig" }

// AttestationTag is the tag of its classic attestations: sha256-<hex>.att.
func AttestationTag(d digest.Digest) string { return ReferrersTag(d) + ".att" }

// ReferrersTag is the tag of the index that stands in for the referrers API where
// a registry has none (OCI distribution specification 1.1): sha256-<hex>.
func ReferrersTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) }

// Referrer says what a manifest is about.
type Referrer struct {
	// Subject is the image; empty if the manifest names none.
	Subject digest.Digest
	// Bundles says that it carries sigstore bundles.
	Bundles bool
}

// ParseReferrer reads that from a manifest; what is no manifest refers to nothing.
func ParseReferrer(manifest []byte) Referrer {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil || m.Subject == nil {
		return Referrer{}
	}
	return Referrer{m.Subject.Digest, slices.ContainsFunc(m.Layers, isBundle)}
}

func isBundle(layer ocispec.Descriptor) bool { return strings.HasPrefix(layer.MediaType, bundlePrefix) }

// BundleManifests picks the manifests of a list of referrers that may hold
// signatures, or statements of a wanted type. What a list says of a manifest is
// a hint that saves requests: the manifest itself says it again. Lists that were
// put together by a client (the tag of ReferrersTag) often say nothing.
func BundleManifests(list []ocispec.Descriptor, wanted []string) ([]ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	for _, d := range list {
		plain := d.ArtifactType == "" || d.ArtifactType == ocispec.MediaTypeEmptyJSON
		if !plain && !strings.HasPrefix(d.ArtifactType, bundlePrefix) || checkDigest(d.Digest) != nil || !isWanted(d.Annotations[PredicateAnnotation], wanted) {
			continue
		}
		if len(found) == MaxSignatures {
			return nil, fmt.Errorf("%w: more than %d signatures", ErrInvalid, MaxSignatures)
		}
		found = append(found, d)
	}
	return found, nil
}

// isWanted takes a statement of unknown type for a signature.
func isWanted(predicate string, wanted []string) bool {
	return predicate == "" || predicate == PredicateSignature || slices.Contains(wanted, predicate)
}

// SignatureLayer is a layer that holds a signature or an attestation.
type SignatureLayer struct {
	ocispec.Descriptor
	Form Form
	// Oversize says that it is larger than such a thing may be.
	Oversize bool
}

// SignatureLayers lists the layers of a manifest that hold signatures, or
// statements of a wanted type: at most MaxSignatures of them. Layers of other kinds
// are passed over.
func SignatureLayers(manifest []byte, wanted []string) ([]SignatureLayer, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("%w: signature manifest: %w", ErrInvalid, err)
	}
	var layers []SignatureLayer
	for _, d := range m.Layers {
		layer := SignatureLayer{Descriptor: d}
		predicate := PredicateSignature
		switch {
		case d.MediaType == MediaTypeSignature:
		case d.MediaType == MediaTypeEnvelope:
			layer.Form, predicate = Envelope, d.Annotations[envelopePredicate]
		case isBundle(d):
			layer.Form, predicate = Bundle, m.Annotations[PredicateAnnotation]
		default:
			continue
		}
		if !isWanted(predicate, wanted) || checkDigest(d.Digest) != nil {
			continue
		}
		limit := int64(MaxPayload)
		if predicate != "" && predicate != PredicateSignature {
			limit = MaxAttestation
		}
		layer.Oversize = d.Size < 0 || d.Size > limit
		if len(layers) == MaxSignatures {
			return nil, fmt.Errorf("%w: more than %d signatures", ErrInvalid, MaxSignatures)
		}
		layers = append(layers, layer)
	}
	return layers, nil
}
