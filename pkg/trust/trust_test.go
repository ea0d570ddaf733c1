package trust_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore/pkg/signature"
)

// image returns a valid artifact of one segment; versions give digests.
func image(t testing.TB, version string) osimage.Image {
	t.Helper()
	config, err := json.Marshal(osimage.Config{
		Product: "gateway", Version: version, Architecture: "amd64", Created: time.Unix(0, 0).UTC(), Kernel: "/boot/vmlinuz",
		Rootfs: osimage.Rootfs{
			Size: osimage.SegmentSize, Filesystem: "ext4", Digest: digest.FromString("raw"), SegmentSize: osimage.SegmentSize,
			SegmentDigests: make([]byte, sha256.Size), PackSegments: []int{1},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, desc, err := osimage.Manifest(
		ocispec.Descriptor{MediaType: osimage.MediaTypeConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		[]ocispec.Descriptor{{MediaType: osimage.MediaTypePack, Digest: digest.FromString("pack"), Size: 4}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := osimage.Parse(desc, raw, config)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pair is a key pair of a test.
type pair struct {
	signature.Signer
	pem []byte
}

func newPair(t testing.TB, private crypto.Signer) pair {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := signature.LoadSigner(private, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return pair{signer, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

func ecdsaKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecdsaPair(t testing.TB) pair { return newPair(t, ecdsaKey(t, elliptic.P256())) }

func rsaPair(t testing.TB, bits int) pair {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, k)
}

func ed25519Key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// payloadFor is what cosign signs, written out so that a change of the library
// that reads it shows.
func payloadFor(d digest.Digest) []byte {
	return []byte(`{"critical":{"identity":{"docker-reference":"registry.example.com/os"},"image":{"docker-manifest-digest":"` +
		d.String() + `"},"type":"cosign container image signature"},"optional":null}`)
}

// twice names one digest more in a payload.
func twice(payload []byte, d digest.Digest) []byte {
	return []byte(strings.Replace(string(payload), `"},"type"`, `","docker-manifest-digest":"`+d.String()+`"},"type"`, 1))
}

func (p pair) sign(t testing.TB, payload []byte) osimage.Signature {
	t.Helper()
	raw, err := p.SignMessage(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString(raw)
	return osimage.Signature{Payload: payload, Base64: b64, Annotations: map[string]string{osimage.SignatureAnnotation: b64}}
}

func verifier(t testing.TB, pairs ...pair) *trust.Verifier {
	t.Helper()
	var p trust.Policy
	for i, pair := range pairs {
		p.Keys = append(p.Keys, trust.Key{Name: string(rune('a'+i)) + "-key", PEM: pair.pem})
	}
	v, err := trust.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// refused checks that err is a complete refusal by the rule and returns it.
func refused(t *testing.T, got trust.Verified, err error, rule trust.Rule) *trust.Refusal {
	t.Helper()
	var r *trust.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("error = %v, want a refusal by rule %q", err, rule)
	}
	if r.Rule != rule || r.Image == "" || r.Have == "" || r.Want == "" || r.Next == "" {
		t.Errorf("refusal = %+v, want rule %q with all its facts", r, rule)
	}
	if got.Valid() || got.KeyName() != "" || got.Image().Valid() {
		t.Errorf("a refusal came with the value %+v", got)
	}
	for _, fact := range []string{string(r.Image), r.Have, r.Want, r.Next} {
		if !strings.Contains(r.Error(), fact) {
			t.Errorf("the message %q lacks %q", r, fact)
		}
	}
	return r
}

func TestVerifyAcceptsEachKindOfKey(t *testing.T) {
	img := image(t, "1.1")
	edKey := ed25519Key(t)
	ed := newPair(t, edKey)
	prehashed, err := signature.LoadED25519phSigner(edKey)
	if err != nil {
		t.Fatal(err)
	}
	stranger := ecdsaPair(t)
	for name, p := range map[string]pair{
		"ECDSA P-256": ecdsaPair(t), "RSA 2048": rsaPair(t, 2048), "RSA 4096": rsaPair(t, 4096),
		"Ed25519": ed, "Ed25519ph, as cosign sign makes it": {prehashed, ed.pem},
	} {
		t.Run(name, func(t *testing.T) {
			sig := p.sign(t, payloadFor(img.Digest()))
			got, err := verifier(t, stranger, p).Verify(t.Context(), img, []osimage.Signature{sig})
			if err != nil {
				t.Fatal(err)
			}
			if !got.Valid() || got.KeyName() != "b-key" || got.Image().Digest() != img.Digest() {
				t.Errorf("verified = %+v", got)
			}
			got, err = verifier(t, stranger).Verify(t.Context(), img, []osimage.Signature{sig})
			refused(t, got, err, trust.UnknownKey)
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	img, other := image(t, "1.1"), image(t, "1.2")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	good := ours.sign(t, payloadFor(img.Digest()))
	altered := good
	altered.Payload = append(slices.Clone(good.Payload), ' ')
	noBase64 := osimage.Signature{Payload: good.Payload, Base64: "%%%"}
	attestation := []byte(strings.Replace(string(good.Payload), "cosign container image signature", "something else", 1))
	for _, tt := range []struct {
		name string
		sigs []osimage.Signature
		rule trust.Rule
		have string
	}{
		{"unsigned", nil, trust.Unsigned, "no signature"},
		{"a stranger's key", []osimage.Signature{stranger.sign(t, good.Payload)}, trust.UnknownKey, "1 signature by no key"},
		{"a payload altered after signing", []osimage.Signature{altered}, trust.UnknownKey, "1 signature by no key"},
		{"a signature of another digest", []osimage.Signature{ours.sign(t, payloadFor(other.Digest()))}, trust.OtherImage, other.Digest().String()},
		{"another digest between strangers", []osimage.Signature{noBase64, stranger.sign(t, good.Payload), ours.sign(t, payloadFor(other.Digest()))}, trust.OtherImage, "1 signature by no key"},
		{"no digest in the payload", []osimage.Signature{ours.sign(t, payloadFor(""))}, trust.Malformed, "names no image"},
		{"a digest in other letters", []osimage.Signature{ours.sign(t, payloadFor(digest.Digest(strings.ToUpper(img.Digest().String()))))}, trust.OtherImage, "SHA256"},
		{"a payload that is no JSON", []osimage.Signature{ours.sign(t, []byte("not JSON"))}, trust.Malformed, "invalid character"},
		{"a payload with a tail", []osimage.Signature{ours.sign(t, append(slices.Clone(good.Payload), "{}"...))}, trust.Malformed, "after top-level value"},
		{"a payload of two digests, ours last", []osimage.Signature{ours.sign(t, twice(payloadFor(other.Digest()), img.Digest()))}, trust.Malformed, "twice"},
		{"a payload of a digest in capitals", []osimage.Signature{ours.sign(t, []byte(strings.Replace(string(good.Payload), "docker-manifest", "Docker-Manifest", 1)))}, trust.Malformed, "is written"},
		{"a payload of another type", []osimage.Signature{ours.sign(t, attestation)}, trust.Malformed, "something else"},
		{"no base64", []osimage.Signature{noBase64}, trust.Malformed, "no base64"},
		{"an empty signature", []osimage.Signature{{Payload: good.Payload}}, trust.Malformed, "no base64"},
		{"a payload over the limit", []osimage.Signature{ours.sign(t, pad(good.Payload, osimage.MaxPayload+1))}, trust.Malformed, "65537 bytes"},
		{"a signature over the limit", []osimage.Signature{{Payload: good.Payload, Base64: strings.Repeat("A", 4<<10+4)}}, trust.Malformed, "4100 bytes"},
		{"10,000 signatures, one of them good", slices.Repeat([]osimage.Signature{good}, 10000), trust.TooMany, "10000 signatures"},
		{"one more than allowed", slices.Repeat([]osimage.Signature{good}, osimage.MaxSignatures+1), trust.TooMany, "101 signatures"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := verifier(t, ours).Verify(t.Context(), img, tt.sigs)
			if r := refused(t, got, err, tt.rule); !strings.Contains(r.Have, tt.have) || !strings.Contains(r.Error(), "a-key (sha256:") && tt.rule != trust.TooMany {
				t.Errorf("refusal %q does not say %q", r, tt.have)
			}
		})
	}
}

// pad lengthens JSON with white space, which changes nothing that it says.
func pad(payload []byte, size int) []byte {
	return append(slices.Clone(payload), bytes.Repeat([]byte(" "), size-len(payload))...)
}

func TestVerifyAtTheLimits(t *testing.T) {
	img := image(t, "1.1")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	sigs := slices.Repeat([]osimage.Signature{stranger.sign(t, payloadFor(img.Digest()))}, osimage.MaxSignatures)
	sigs[len(sigs)-1] = ours.sign(t, pad(payloadFor(img.Digest()), osimage.MaxPayload))
	got, err := verifier(t, ours).Verify(t.Context(), img, sigs)
	if err != nil || !got.Valid() {
		t.Errorf("the last of %d signatures with the largest payload: %v", len(sigs), err)
	}
}

// A registry may add whatever it likes beside a good signature; that is at most
// noise.
func TestVerifyStepsOverWhatDoesNotCount(t *testing.T) {
	img, other := image(t, "1.1"), image(t, "1.2")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	got, err := verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{
		{Base64: "%"}, stranger.sign(t, payloadFor(img.Digest())), ours.sign(t, payloadFor(other.Digest())),
		ours.sign(t, []byte("not JSON")), ours.sign(t, payloadFor(img.Digest())),
	})
	if err != nil || got.KeyName() != "a-key" {
		t.Errorf("verified = %+v, %v", got, err)
	}
}

// The known accidents of cosign (CVE-2022-36056, CVE-2026-22703 and
// GHSA-fx35-mq7g-6g98) let material inside a bundle stand in for the verifier's
// own key. Here that material is not read.
func TestKeysBesideASignatureAreIgnored(t *testing.T) {
	img := image(t, "1.1")
	ours, key := ecdsaPair(t), ecdsaKey(t, elliptic.P256())
	stranger := newPair(t, key)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"}, NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	annotate := func(s osimage.Signature) osimage.Signature {
		for name, value := range map[string]string{
			"dev.sigstore.cosign/certificate": cert, "dev.sigstore.cosign/chain": cert,
			"dev.sigstore.cosign/bundle":           `{"SignedEntryTimestamp":"AA==","Payload":{"body":7,"integratedTime":1,"logIndex":1,"logID":"00"}}`,
			"dev.sigstore.cosign/rfc3161timestamp": `{"SignedRFC3161Timestamp":"AA=="}`,
			"dev.sigstore.cosign/publicKey":        string(stranger.pem),
		} {
			s.Annotations[name] = value
		}
		return s
	}
	got, err := verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{annotate(stranger.sign(t, payloadFor(img.Digest())))})
	refused(t, got, err, trust.UnknownKey)

	// Nor do they spoil a good signature: the certificate has expired.
	got, err = verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{annotate(ours.sign(t, payloadFor(img.Digest())))})
	if err != nil || got.KeyName() != "a-key" {
		t.Errorf("a good signature with odd annotations: %+v, %v", got, err)
	}
}

// The repository in the payload is what the signer called the image. A mirror
// has another name, and the claim is no protection: the digest is.
func TestIdentityClaimIsNotTrusted(t *testing.T) {
	img := image(t, "1.1")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	elsewhere := []byte(strings.Replace(string(payloadFor(img.Digest())), "registry.example.com/os", "elsewhere.example.com/x", 1))
	if _, err := verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{ours.sign(t, elsewhere)}); err != nil {
		t.Errorf("an image from a mirror: %v", err)
	}
	got, err := verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{stranger.sign(t, payloadFor(img.Digest()))})
	refused(t, got, err, trust.UnknownKey)
}

func TestZeroValuesRefuse(t *testing.T) {
	img := image(t, "1.1")
	ours := ecdsaPair(t)
	sigs := []osimage.Signature{ours.sign(t, payloadFor(img.Digest()))}
	if (trust.Verified{}).Valid() {
		t.Error("the zero Verified is valid")
	}
	for name, v := range map[string]*trust.Verifier{"nil": nil, "zero": {}} {
		if got, err := v.Verify(t.Context(), img, sigs); !errors.Is(err, trust.ErrPolicy) || got.Valid() {
			t.Errorf("%s verifier: %+v, %v", name, got, err)
		}
	}
	if got, err := verifier(t, ours).Verify(t.Context(), osimage.Image{}, sigs); err == nil || !strings.Contains(err.Error(), "there is no image") || got.Valid() {
		t.Errorf("zero image: %+v, %v", got, err)
	}
}

func TestVerifyStopsWhenAsked(t *testing.T) {
	img := image(t, "1.1")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := verifier(t, ours).Verify(ctx, img, []osimage.Signature{stranger.sign(t, payloadFor(img.Digest()))})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
}

// osctl owns its command line: the signing libraries that this package links
// must not add flags to the process.
func TestLinkingAddsNoFlags(t *testing.T) {
	flag.VisitAll(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") {
			t.Errorf("flag -%s (%s) was registered at start", f.Name, f.Usage)
		}
	})
}

func FuzzVerify(f *testing.F) {
	img := image(f, "1.1")
	ours := ecdsaPair(f)
	v := verifier(f, ours)
	good := ours.sign(f, payloadFor(img.Digest()))
	f.Add(good.Payload, good.Base64)
	f.Add([]byte(`{"critical":{"image":{"docker-manifest-digest":7}}}`), good.Base64)
	f.Add(good.Payload, "")
	f.Fuzz(func(t *testing.T, payload []byte, b64 string) {
		got, err := v.Verify(t.Context(), img, []osimage.Signature{{Payload: payload, Base64: b64}})
		if err == nil && !bytes.Equal(payload, good.Payload) {
			t.Errorf("accepted %+v for a payload that was never signed: %q", got, payload)
		}
		var r *trust.Refusal
		if err != nil && !errors.As(err, &r) {
			t.Errorf("neither accepted nor refused: %v", err)
		}
	})
}
