package trust

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/in-toto/attestation/go/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	cosignbundle "github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	bundlev1 "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonv1 "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssev1 "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorv1 "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// exhibit is a signature or an attestation that could be read. Nothing of it has
// been verified: what it says only chooses by which way it is.
type exhibit struct {
	// classic is a payload with a bare signature; nil for the other forms.
	classic oci.Signature
	payload []byte // of classic
	// entity is the exhibit as a sigstore bundle; nil for a classic signature without
	// a certificate.
	entity *bundle.Bundle
	// certified says that a certificate lies beside the signature, damage why the
	// one beside a classic signature cannot be read.
	certified bool
	damage    error
	// predicate is the type of its statement; empty for a classic signature.
	predicate string
	// subject is the first digest that its statement names, for reports.
	subject string
}

// signs reports whether the exhibit may be a signature; else it is an attestation.
func (x exhibit) signs() bool {
	return x.classic != nil || x.predicate == osimage.PredicateSignature
}

// readExhibit parses what a registry said, within the limits.
func readExhibit(s osimage.Signature) (exhibit, error) {
	limit := osimage.MaxAttestation
	if s.Form == osimage.Classic {
		limit = osimage.MaxPayload
	}
	switch {
	case s.Oversize != 0:
		return exhibit{}, fmt.Errorf("one of %d bytes, which is over the limit", s.Oversize)
	case len(s.Payload) > limit:
		return exhibit{}, fmt.Errorf("a payload of %d bytes, the limit is %d", len(s.Payload), limit)
	}
	switch s.Form {
	case osimage.Classic:
		return readClassic(s)
	case osimage.Envelope:
		return readEnvelope(s)
	case osimage.Bundle:
		return readBundle(s.Payload)
	}
	return exhibit{}, fmt.Errorf("one of the form %q, which is unknown", s.Form)
}

func readClassic(s osimage.Signature) (exhibit, error) {
	if len(s.Base64) > maxBase64 {
		return exhibit{}, fmt.Errorf("a signature of %d bytes, the limit is %d", len(s.Base64), maxBase64)
	}
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) == 0 {
		return exhibit{}, errors.New("a signature that is no base64")
	}
	// The annotations stay behind: what they carry must not take part when a key
	// decides.
	classic, err := static.NewSignature(s.Payload, s.Base64)
	if err != nil {
		return exhibit{}, err
	}
	x := exhibit{classic: classic, payload: s.Payload}
	if s.Annotations[static.CertificateAnnotationKey] == "" {
		return x, nil
	}
	sum := sha256.Sum256(s.Payload)
	x.entity, err = assemble(s.Annotations, &bundlev1.Bundle{Content: &bundlev1.Bundle_MessageSignature{MessageSignature: &commonv1.MessageSignature{
		MessageDigest: &commonv1.HashOutput{Algorithm: commonv1.HashAlgorithm_SHA2_256, Digest: sum[:]}, Signature: raw,
	}}})
	// That does not spoil what a key may have signed.
	x.certified, x.damage = err == nil, err
	return x, nil
}

func readEnvelope(s osimage.Signature) (exhibit, error) {
	var e dsse.Envelope
	if err := json.Unmarshal(s.Payload, &e); err != nil {
		return exhibit{}, fmt.Errorf("an attestation that is no DSSE envelope (%.100v)", err)
	}
	payload, err := e.DecodeB64Payload()
	if err != nil {
		return exhibit{}, errors.New("an attestation whose payload is no base64")
	}
	content := &dssev1.Envelope{Payload: payload, PayloadType: e.PayloadType}
	for _, sig := range e.Signatures {
		raw, err := base64.StdEncoding.DecodeString(sig.Sig)
		if err != nil {
			return exhibit{}, errors.New("an attestation whose signature is no base64")
		}
		content.Signatures = append(content.Signatures, &dssev1.Signature{Sig: raw})
	}
	b, err := assemble(s.Annotations, &bundlev1.Bundle{Content: &bundlev1.Bundle_DsseEnvelope{DsseEnvelope: content}})
	if err != nil {
		return exhibit{}, fmt.Errorf("an attestation that cannot be read (%.100v)", err)
	}
	return stated(b)
}

func readBundle(raw []byte) (exhibit, error) {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return exhibit{}, fmt.Errorf("a bundle that cannot be read (%.100v)", err)
	}
	return stated(&b)
}

// stated is the exhibit of a bundle with a statement. A bundle may also sign bytes,
// as cosign sign-blob makes it; that is no statement about an image.
func stated(b *bundle.Bundle) (exhibit, error) {
	envelope, err := b.Envelope()
	if err != nil {
		return exhibit{}, errors.New("a bundle that is no statement about an image")
	}
	s, err := envelope.Statement()
	if err != nil {
		return exhibit{}, fmt.Errorf("a bundle with no in-toto statement (%.100v)", err)
	}
	material, err := b.VerificationContent()
	if err != nil {
		return exhibit{}, fmt.Errorf("a bundle that cannot be read (%.100v)", err)
	}
	return exhibit{entity: b, certified: material.Certificate() != nil, predicate: s.PredicateType, subject: subjectOf(s)}, nil
}

func subjectOf(s *v1.Statement) string {
	for _, subject := range s.GetSubject() {
		if hex := subject.GetDigest()["sha256"]; hex != "" {
			return "sha256:" + hex
		}
	}
	return "nothing"
}

// assemble gives content the proofs that cosign's classic form has in annotations.
func assemble(annotations map[string]string, content *bundlev1.Bundle) (*bundle.Bundle, error) {
	// Version 0.1 is the one whose log entries have promises instead of proofs, as
	// those of the classic form.
	content.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	m := &bundlev1.VerificationMaterial{Content: &bundlev1.VerificationMaterial_PublicKey{PublicKey: &commonv1.PublicKeyIdentifier{}}}
	content.VerificationMaterial = m
	text := annotations[static.CertificateAnnotationKey]
	if text == "" {
		return bundle.NewBundle(content)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("its certificate is no PEM")
	}
	m.Content = &bundlev1.VerificationMaterial_Certificate{Certificate: &commonv1.X509Certificate{RawBytes: block.Bytes}}
	if text := annotations[static.BundleAnnotationKey]; text != "" {
		entry, err := logEntry(text)
		if err != nil {
			return nil, err
		}
		m.TlogEntries = []*rekorv1.TransparencyLogEntry{entry}
	}
	if text := annotations[static.RFC3161TimestampAnnotationKey]; text != "" {
		var stamp cosignbundle.RFC3161Timestamp
		if err := json.Unmarshal([]byte(text), &stamp); err != nil {
			return nil, fmt.Errorf("its timestamp: %w", err)
		}
		m.TimestampVerificationData = &bundlev1.TimestampVerificationData{
			Rfc3161Timestamps: []*commonv1.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}},
		}
	}
	return bundle.NewBundle(content)
}

// logEntry reads the annotation in which cosign keeps an entry of the log.
func logEntry(text string) (*rekorv1.TransparencyLogEntry, error) {
	var promised struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal([]byte(text), &promised); err != nil {
		return nil, fmt.Errorf("its log entry: %w", err)
	}
	p := promised.Payload
	var kind struct{ Kind, APIVersion string }
	if err := json.Unmarshal(p.Body, &kind); err != nil {
		return nil, fmt.Errorf("its log entry: %w", err)
	}
	id, err := hex.DecodeString(p.LogID)
	if err != nil {
		return nil, fmt.Errorf("its log entry: %w", err)
	}
	return &rekorv1.TransparencyLogEntry{
		LogIndex: p.LogIndex, LogId: &commonv1.LogId{KeyId: id}, IntegratedTime: p.IntegratedTime, CanonicalizedBody: p.Body,
		KindVersion:      &rekorv1.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		InclusionPromise: &rekorv1.InclusionPromise{SignedEntryTimestamp: promised.SignedEntryTimestamp},
	}, nil
}

// artifact is what the signature has to be over: the image, or the payload that
// names it.
func (x exhibit) artifact(image digest.Digest) (verify.ArtifactPolicyOption, error) {
	if x.classic != nil {
		sum := sha256.Sum256(x.payload)
		return verify.WithArtifactDigest("sha256", sum[:]), nil
	}
	raw, err := hex.DecodeString(image.Encoded())
	return verify.WithArtifactDigest("sha256", raw), err
}

// byKey finds the key that signed the statement, which is of this image and of one
// of the types. Errors are those of match.
func (x exhibit) byKey(ctx context.Context, keys []key, image digest.Digest, types ...string) (key, *v1.Statement, error) {
	if x.entity == nil || x.certified {
		return key{}, nil, errUnknownKey
	}
	about, err := x.artifact(image)
	if err != nil {
		return key{}, nil, err
	}
	for _, k := range keys {
		for _, verifier := range k.verifiers {
			if ctx.Err() != nil {
				return key{}, nil, ctx.Err()
			}
			// When a key counts is decided by sortKeys: a bundle by key has no time.
			bound := root.NewExpiringKey(verifier, time.Time{}, time.Time{})
			material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return bound, nil })
			v, err := verify.NewVerifier(material, verify.WithNoObserverTimestamps())
			if err != nil {
				return key{}, nil, err
			}
			if result, err := v.Verify(x.entity, verify.NewPolicy(about, verify.WithKey())); err == nil {
				return k, result.Statement, checkStatement(k.name, result.Statement, types)
			}
			if _, err := v.Verify(x.entity, verify.NewPolicy(verify.WithoutArtifactUnsafe(), verify.WithKey())); err == nil {
				return k, nil, &claimError{key: k.name, digest: x.subject, err: errors.New("it is of another image")}
			}
		}
	}
	return key{}, nil, errUnknownKey
}

// checkStatement holds what a statement says of itself against what was asked: an
// attestation is no signature, however well it is signed.
func checkStatement(who string, s *v1.Statement, types []string) error {
	const old = "https://in-toto.io/Statement/v0.1" // what cosign attest writes without a bundle
	switch {
	case s == nil:
		return &claimError{key: who, err: errors.New("there is no statement")}
	case s.GetType() != v1.StatementTypeUri && s.GetType() != old:
		return &claimError{key: who, err: fmt.Errorf("the statement has the type %q", s.GetType())}
	case !slices.Contains(types, s.GetPredicateType()):
		return &claimError{key: who, err: fmt.Errorf("the statement says %q, expected is %q", s.GetPredicateType(), types)}
	}
	return nil
}
