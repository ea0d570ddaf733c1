package trust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/cryptoutils/goodkey"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

// maxBase64 bounds a signature in base64. A 4096-bit RSA signature takes 684
// bytes, the longest of the accepted kinds.
const maxBase64 = 4 << 10

// key is one public key of the policy.
type key struct {
	name        string
	fingerprint string // SHA-256 of the DER form, in hex
	notBefore   time.Time
	notAfter    time.Time
	verifiers   []signature.Verifier
}

// String names a key for a report: its name and the start of its fingerprint,
// by which two machines' policies can be compared.
func (k key) String() string { return fmt.Sprintf("%s (sha256:%.12s)", k.name, k.fingerprint) }

// outOfTime says why a key with a time range does not count, or nothing if it
// does. created is when the image says it was made.
func (k key) outOfTime(now, created time.Time) string {
	const day = "2006-01-02 15:04 UTC"
	text := func(t time.Time) string { return t.UTC().Format(day) }
	switch {
	case k.notBefore.IsZero() && k.notAfter.IsZero():
		return ""
	case now.IsZero():
		return "limited in time, and nothing says what time it is"
	case now.Before(k.notBefore):
		return fmt.Sprintf("not valid before %s; it is %s, if the clock is right", text(k.notBefore), text(now))
	case k.notAfter.IsZero():
		return ""
	case now.After(k.notAfter):
		return fmt.Sprintf("expired at %s; it is %s, if the clock is right", text(k.notAfter), text(now))
	case created.After(k.notAfter):
		return fmt.Sprintf("expired at %s; the image was created at %s", text(k.notAfter), text(created))
	}
	return ""
}

// parseKey accepts exactly one PEM block and a key of a kind and strength that
// both osctl and cosign verify in the same way.
func parseKey(k Key) (key, error) {
	text := bytes.TrimSpace(k.PEM)
	if len(text) == 0 {
		return key{}, errors.New("it is empty; expected the content of a cosign.pub file")
	}
	block, rest := pem.Decode(text)
	if block == nil || !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return key{}, errors.New("it is no PEM; expected the content of a cosign.pub file")
	}
	// pem.Decode steps over a damaged block to the next good one.
	if len(bytes.TrimSpace(rest)) > 0 || bytes.Count(text, []byte("-----BEGIN ")) > 1 {
		return key{}, errors.New("there is more than one PEM block; give each key an entry of its own")
	}
	switch {
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return key{}, errors.New("it is a private key; keep that off the machine and give its public half (cosign public-key --key FILE)")
	case block.Type == "CERTIFICATE":
		return key{}, errors.New("it is a certificate; expected a bare public key (openssl x509 -pubkey -noout -in FILE)")
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		return key{}, err
	}
	verifiers, err := newVerifiers(pub)
	if err != nil {
		return key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(der)
	return key{k.Name, hex.EncodeToString(sum[:]), k.NotBefore, k.NotAfter, verifiers}, nil
}

// newVerifiers returns every way in which cosign signs with such a key.
func newVerifiers(pub crypto.PublicKey) ([]signature.Verifier, error) {
	if err := goodkey.ValidatePubKey(pub); err != nil {
		return nil, fmt.Errorf("weak or unknown key: %w", err)
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, fmt.Errorf("ECDSA on %s; known is P-256", pub.Curve.Params().Name)
		}
	case ed25519.PublicKey:
		// cosign sign uses Ed25519ph where cosign verify expects plain Ed25519
		// (docs/decisions/0031). RFC 8032 separates the two, so a signature of
		// one kind is never one of the other.
		plain, err := signature.LoadED25519Verifier(pub)
		if err != nil {
			return nil, err
		}
		prehashed, err := signature.LoadED25519phVerifier(pub)
		if err != nil {
			return nil, err
		}
		return []signature.Verifier{plain, prehashed}, nil
	case *rsa.PublicKey:
	default:
		return nil, fmt.Errorf("key of type %T; known are ECDSA P-256, RSA and Ed25519", pub)
	}
	verifier, err := signature.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return []signature.Verifier{verifier}, nil
}

// matchKey is match for an exhibit of any form.
func (x exhibit) matchKey(ctx context.Context, hash v1.Hash, keys []key, annotations map[string]any) (key, error) {
	if x.classic != nil {
		return match(ctx, x.classic, hash, keys, annotations)
	}
	k, _, err := x.byKey(ctx, keys, digest.Digest(hash.String()), osimage.PredicateSignature)
	if err == nil {
		err = lacksAnnotations(k.name, annotations)
	}
	return k, err
}

// lacksAnnotations refuses a bundle where a rule asks for annotations: cosign puts
// none into a bundle.
func lacksAnnotations(who string, annotations map[string]any) error {
	if len(annotations) == 0 {
		return nil
	}
	return &claimError{key: who, lacks: true, err: errors.New("a bundle carries no annotations")}
}

// claimBy says whose claim does not hold.
func claimBy(err error, who string) error {
	if claim := (*claimError)(nil); errors.As(err, &claim) {
		claim.key = who
	}
	return err
}

// match returns the key that made sig over hash. Otherwise the error is a
// *claimError, with the key, if one of the keys made it over something else, and
// errUnknownKey if none made it.
func match(ctx context.Context, sig oci.Signature, hash v1.Hash, keys []key, annotations map[string]any) (key, error) {
	for _, k := range keys {
		for _, verifier := range k.verifiers {
			_, err := cosign.VerifyImageSignature(ctx, sig, hash, &cosign.CheckOpts{
				SigVerifier:   verifier,
				ClaimVerifier: verifyClaim,
				Annotations:   annotations,
				IgnoreTlog:    true,
				Offline:       true,
			})
			if err == nil {
				return k, nil
			}
			if claim := (*claimError)(nil); errors.As(err, &claim) {
				claim.key = k.name
				return k, claim
			}
		}
	}
	return key{}, errUnknownKey
}

var errUnknownKey = errors.New("made by no key of the policy")

// claimError says that a key of the policy signed, but not this image.
type claimError struct {
	key    string
	digest string // what was signed, if the payload names it and it is another
	lacks  bool   // it is about this image, without the annotations asked for
	err    error
}

func (e *claimError) Error() string { return fmt.Sprintf("signed by %s: %v", e.key, e.err) }
func (e *claimError) Unwrap() error { return e.err }

// verifyClaim binds a good signature to the image. cosign's library calls it
// after the cryptographic check and skips the binding altogether when it is
// given no such function. The type is checked here because the library does
// not, and a key may sign other things in the same shape.
func verifyClaim(sig oci.Signature, hash v1.Hash, annotations map[string]any) error {
	raw, err := sig.Payload()
	if err != nil {
		return &claimError{err: err}
	}
	var claim payload.SimpleContainerImage
	if err := osimage.Unmarshal(raw, &claim); err != nil {
		return &claimError{err: fmt.Errorf("reading the payload: %w", err)}
	}
	if claim.Critical.Type != payload.CosignSignatureType {
		return &claimError{err: fmt.Errorf("the payload has type %q, expected %q", claim.Critical.Type, payload.CosignSignatureType)}
	}
	if err := cosign.SimpleClaimVerifier(sig, hash, nil); err != nil {
		return &claimError{digest: claim.Critical.Image.DockerManifestDigest, err: err}
	}
	if err := cosign.SimpleClaimVerifier(sig, hash, annotations); err != nil {
		return &claimError{lacks: true, err: err}
	}
	return nil
}
