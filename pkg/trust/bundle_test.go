package trust_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/authority"
	"github.com/sigstore/sigstore/pkg/signature"
)

const inToto = "application/vnd.in-toto+json"

// envelope signs a statement as DSSE does (the protocol's PAE, written out).
func (p pair) envelope(t testing.TB, statement []byte) json.RawMessage {
	t.Helper()
	raw, err := p.SignMessage(strings.NewReader(fmt.Sprintf("DSSEv1 %d %s %d %s", len(inToto), inToto, len(statement), statement)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(map[string]any{
		"payloadType": inToto, "payload": base64.StdEncoding.EncodeToString(statement),
		"signatures": []any{map[string]any{"sig": base64.StdEncoding.EncodeToString(raw)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bundle is what cosign sign --key --new-bundle-format writes.
func (p pair) bundle(t testing.TB, statement []byte) osimage.Signature {
	t.Helper()
	return osimage.Signature{Form: osimage.Bundle, Payload: []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",` +
		`"verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":` + string(p.envelope(t, statement)) + `}`)}
}

func (p pair) signBundle(t testing.TB, img osimage.Image) osimage.Signature {
	t.Helper()
	return p.bundle(t, authority.Statement(osimage.PredicateSignature, img.Digest().String(), ""))
}

func TestBundleByEachKindOfKey(t *testing.T) {
	img, edKey := image(t, "1.1"), ed25519Key(t)
	ed := newPair(t, edKey)
	prehashed, err := signature.LoadED25519phSigner(edKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]pair{"ECDSA P-256": ecdsaPair(t), "RSA 2048": rsaPair(t, 2048), "Ed25519": ed, "Ed25519ph": {prehashed, ed.pem}} {
		sigs := []osimage.Signature{p.signBundle(t, img)}
		got, err := verifier(t, ecdsaPair(t), p).Verify(t.Context(), img, sigs)
		if err != nil || got.KeyName() != "b-key" || got.Image().Digest() != img.Digest() {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		got, err = verifier(t, ecdsaPair(t)).Verify(t.Context(), img, sigs)
		refused(t, got, err, trust.UnknownKey)
	}
}

func TestBundleRefused(t *testing.T) {
	img, other := image(t, "1.1"), image(t, "1.2")
	ours, stranger := ecdsaPair(t), ecdsaPair(t)
	good := ours.signBundle(t, img)
	text := func(old, new string) osimage.Signature {
		changed := good
		changed.Payload = bytes.Replace(good.Payload, []byte(old), []byte(new), 1)
		if bytes.Equal(changed.Payload, good.Payload) {
			t.Fatalf("%q is not in %s", old, good.Payload)
		}
		return changed
	}
	statement := authority.Statement(osimage.PredicateSignature, img.Digest().String(), "")
	for _, tt := range []struct {
		name string
		sig  osimage.Signature
		rule trust.Rule
		have string
	}{
		{"a stranger's key", stranger.signBundle(t, img), trust.UnknownKey, "1 signature by no key"},
		{"another image", ours.signBundle(t, other), trust.OtherImage, other.Digest().String()},
		{"an attestation", ours.bundle(t, authority.Statement(osimage.PredicateProvenance, img.Digest().String(), "{}")), trust.Unsigned, "attestations, which are no signatures"},
		{"a statement of another kind", ours.bundle(t, bytes.Replace(statement, []byte("Statement/v1"), []byte("Statement/v9"), 1)), trust.Malformed, "Statement/v9"},
		{"a statement about nothing", ours.bundle(t, []byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"`+osimage.PredicateSignature+`"}`)), trust.OtherImage, "nothing"},
		{"a subject in another hash", ours.bundle(t, bytes.Replace(statement, []byte("sha256"), []byte("sha512"), 1)), trust.OtherImage, "nothing"},
		{"no statement", ours.bundle(t, []byte("hello")), trust.Malformed, "no in-toto statement"},
		{"no bundle", osimage.Signature{Form: osimage.Bundle, Payload: []byte("{}")}, trust.Malformed, "a bundle that cannot be read"},
		{"garbage", osimage.Signature{Form: osimage.Bundle, Payload: []byte("\x00\xff")}, trust.Malformed, "a bundle that cannot be read"},
		{"a later version", text("v0.3", "v0.9"), trust.Malformed, "not yet supported"},
		{"no key and no certificate", text(`"publicKey":{"hint":"x"}`, ``), trust.Malformed, "a bundle that cannot be read"},
		{"an altered signature", text(`"sig":"ME`, `"sig":"MF`), trust.UnknownKey, "no key of the policy"},
		{"two signatures", text(`"signatures":[`, `"signatures":[{"sig":"AAAA"},`), trust.UnknownKey, "no key of the policy"},
		{"no signature in it", text(string(good.Payload[bytes.Index(good.Payload, []byte(`"signatures":`)):]), `"signatures":[]}}`), trust.UnknownKey, "no key of the policy"},
		{"one that was too large to read", osimage.Signature{Form: osimage.Bundle, Oversize: 1 << 30}, trust.Malformed, "1073741824 bytes"},
		{"one over the limit", osimage.Signature{Form: osimage.Bundle, Payload: make([]byte, osimage.MaxAttestation+1)}, trust.Malformed, "the limit is"},
		{"an unknown form", osimage.Signature{Form: "x", Payload: good.Payload}, trust.Malformed, "unknown"},
		{"bytes that were signed", osimage.Signature{Form: osimage.Bundle, Payload: []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}},` +
			`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"AAAA"},"signature":"AAAA"}}`)}, trust.Malformed, "no statement about an image"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{tt.sig})
			if r := refused(t, got, err, tt.rule); !strings.Contains(r.Have, tt.have) {
				t.Errorf("refusal %q does not say %q", r, tt.have)
			}
			// It spoils nothing either.
			if _, err := verifier(t, ours).Verify(t.Context(), img, []osimage.Signature{tt.sig, good}); err != nil {
				t.Errorf("with a good one beside it: %v", err)
			}
		})
	}
}

// The limit on the number holds for all forms together.
func TestBundlesAreCounted(t *testing.T) {
	img, ours := image(t, "1.1"), ecdsaPair(t)
	many := append(slices.Repeat([]osimage.Signature{ours.signBundle(t, img)}, 60), slices.Repeat([]osimage.Signature{ours.sign(t, payloadFor(img.Digest()))}, 41)...)
	got, err := verifier(t, ours).Verify(t.Context(), img, many)
	refused(t, got, err, trust.TooMany)
}

// A key is the same key in both forms: two forms are no two signatures, and what is
// revoked or out of its time is so in a bundle as well.
func TestBundleRules(t *testing.T) {
	img, a, b := image(t, "1.1"), ecdsaPair(t), ecdsaPair(t)
	p := trust.Policy{
		Keys:  []trust.Key{{Name: "a", PEM: a.pem}, {Name: "b", PEM: b.pem}},
		Rules: []trust.PolicyRule{{Name: "two", Keys: []string{"a", "b"}, Threshold: 2}},
	}
	decide := func(p trust.Policy, sigs ...osimage.Signature) (trust.Verified, error) {
		v, err := trust.New(p)
		if err != nil {
			t.Fatal(err)
		}
		return v.Under(trust.Circumstances{Now: signing}).Verify(t.Context(), img, sigs)
	}
	got, err := decide(p, a.signBundle(t, img), a.sign(t, payloadFor(img.Digest())))
	refused(t, got, err, trust.Threshold)
	if got, err := decide(p, a.signBundle(t, img), b.sign(t, payloadFor(img.Digest()))); err != nil || got.KeyName() != "a, b" {
		t.Errorf("one of each form: %+v, %v", got, err)
	}
	revoked := trust.Policy{Keys: p.Keys, Revoked: trust.Revoked{Keys: []trust.Key{{Name: "lost", PEM: a.pem}}}}
	got, err = decide(revoked, a.signBundle(t, img))
	refused(t, got, err, trust.RevokedKey)
	expired := trust.Policy{Keys: []trust.Key{{Name: "a", PEM: a.pem, NotAfter: signing.AddDate(-1, 0, 0)}}}
	got, err = decide(expired, a.signBundle(t, img))
	refused(t, got, err, trust.OutOfTime)
	annotated := trust.Policy{Keys: p.Keys, Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"a"}, Annotations: []string{"stage=released"}}}}
	got, err = decide(annotated, a.signBundle(t, img))
	refused(t, got, err, trust.Annotation)
}

// A certificate in a bundle is no key of the policy, whatever its key is.
func TestBundleWithACertificateIsByNoKey(t *testing.T) {
	auth, img := authority.New(t), image(t, "1.1")
	s := auth.Certify(workflow, authority.Issuer, signing)
	got, err := verifier(t, ecdsaPair(t)).Verify(t.Context(), img, []osimage.Signature{bundled(s, img, authority.Choice{})})
	refused(t, got, err, trust.UnknownKey)
}

// What was accepted is told by policy, rule and signers; the policy by all it says.
func TestBasis(t *testing.T) {
	img, ours := image(t, "1.1"), ecdsaPair(t)
	p := trust.Policy{Keys: []trust.Key{{Name: "a", PEM: ours.pem}}}
	digests := map[string]bool{}
	for _, change := range []func(){func() {}, func() { p.Keys[0].NotAfter = signing.AddDate(1, 0, 0) }, func() { p.Rules = []trust.PolicyRule{{Name: "r", Keys: []string{"a"}}} }} {
		change()
		v, err := trust.New(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Under(trust.Circumstances{Now: signing}).Verify(t.Context(), img, []osimage.Signature{ours.signBundle(t, img)})
		if err != nil {
			t.Fatal(err)
		}
		b := got.Basis()
		if b.Policy.Validate() != nil || b.Policy != v.Digest() || b.Rule != got.RuleName() || !slices.Equal(b.Signers, []string{"a"}) {
			t.Errorf("basis %+v", b)
		}
		digests[b.Policy.String()] = true
	}
	if len(digests) != 3 {
		t.Errorf("three policies have %d digests", len(digests))
	}
}

func provenance(builder string) string {
	return `{"buildDefinition":{},"runDetails":{"builder":{"id":"` + builder + `"}}}`
}

// attestationPolicy asks for provenance and a list of contents, and lets another key
// sign the first.
func attestationPolicy(t *testing.T, ours, build pair) *trust.Verifier {
	t.Helper()
	v, err := trust.New(trust.Policy{
		Keys: []trust.Key{{Name: "release", PEM: ours.pem}, {Name: "build", PEM: build.pem}},
		Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"release"}, Attestations: []trust.PolicyAttestation{
			{Type: trust.Provenance, Builder: "https://builder.example.com", Keys: []string{"build"}}, {Type: trust.SBOM},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAttestations(t *testing.T) {
	img, other := image(t, "1.1"), image(t, "1.2")
	ours, build, stranger := ecdsaPair(t), ecdsaPair(t), ecdsaPair(t)
	v := attestationPolicy(t, ours, build)
	about := func(img osimage.Image, kind, predicate string) []byte {
		return authority.Statement(kind, img.Digest().String(), predicate)
	}
	classic := func(p pair, statement []byte) osimage.Signature {
		return osimage.Signature{Form: osimage.Envelope, Payload: p.envelope(t, statement)}
	}
	made := about(img, osimage.PredicateProvenance, provenance("https://builder.example.com"))
	spdx := about(img, osimage.PredicateSPDX, `{"spdxVersion":"SPDX-2.3","packages":[{},{}]}`)
	signed := ours.sign(t, payloadFor(img.Digest()))
	for name, sigs := range map[string][]osimage.Signature{
		"bundles":              {signed, build.bundle(t, made), ours.bundle(t, spdx)},
		"classic":              {classic(build, made), signed, classic(ours, spdx)},
		"both, all in bundles": {ours.bundle(t, spdx), classic(build, made), ours.signBundle(t, img)},
		"SLSA 0.2, CycloneDX": {signed, build.bundle(t, about(img, osimage.PredicateProvenance02, `{"builder":{"id":"https://builder.example.com"}}`)),
			ours.bundle(t, about(img, osimage.PredicateCycloneDX, `{"bomFormat":"CycloneDX","components":[]}`))},
	} {
		if got, err := v.Verify(t.Context(), img, sigs); err != nil || got.KeyName() != "release" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, tt := range map[string]struct {
		sigs []osimage.Signature
		have string
	}{
		"none":                      {nil, "none"},
		"by the wrong key":          {[]osimage.Signature{ours.bundle(t, made)}, "nobody of these"},
		"by a stranger":             {[]osimage.Signature{classic(stranger, made)}, "nobody of these"},
		"another builder":           {[]osimage.Signature{build.bundle(t, about(img, osimage.PredicateProvenance, provenance("https://evil.example.com")))}, "https://evil.example.com"},
		"no builder":                {[]osimage.Signature{build.bundle(t, about(img, osimage.PredicateProvenance, "{}"))}, `the builder ""`},
		"of another image":          {[]osimage.Signature{build.bundle(t, about(other, osimage.PredicateProvenance, provenance("https://builder.example.com")))}, "another image"},
		"of another image, classic": {[]osimage.Signature{classic(build, about(other, osimage.PredicateProvenance, provenance("https://builder.example.com")))}, "another image"},
		"a signature is none":       {[]osimage.Signature{build.signBundle(t, img)}, "none"},
		"an SBOM is none":           {[]osimage.Signature{build.bundle(t, spdx)}, "none"},
	} {
		got, err := v.Verify(t.Context(), img, append(tt.sigs, signed, ours.bundle(t, spdx)))
		if r := refused(t, got, err, trust.Attestation); !strings.Contains(r.Have, tt.have) || !strings.Contains(r.Want, "provenance by the builder https://builder.example.com signed by build (rule r)") {
			t.Errorf("%s: %q", name, r)
		}
	}
	got, err := v.Verify(t.Context(), img, []osimage.Signature{signed, build.bundle(t, made), ours.bundle(t, about(img, osimage.PredicateSPDX, `{}`))})
	if r := refused(t, got, err, trust.Attestation); !strings.Contains(r.Have, "lists nothing") {
		t.Errorf("an empty list: %q", r)
	}
	// Attestations do not stand in for the signature.
	got, err = v.Verify(t.Context(), img, []osimage.Signature{build.bundle(t, made), ours.bundle(t, spdx)})
	refused(t, got, err, trust.Unsigned)
	want := []string{osimage.PredicateCycloneDX, osimage.PredicateProvenance02, osimage.PredicateProvenance, osimage.PredicateSPDX}
	slices.Sort(want)
	if !slices.Equal(v.Wants(), want) || verifier(t, ours).Wants() != nil {
		t.Errorf("wants %q", v.Wants())
	}
}

// An identity attests as a key does, in both forms.
func TestAttestationByIdentity(t *testing.T) {
	a, img, ours := authority.New(t), image(t, "1.1"), ecdsaPair(t)
	v, err := trust.New(trust.Policy{
		Keys: []trust.Key{{Name: "release", PEM: ours.pem}}, Identities: []trust.Identity{releaser(a)},
		Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"release"}, Attestations: []trust.PolicyAttestation{
			{Type: trust.Provenance, Builder: "b", Identities: []string{"releaser"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	made := authority.Statement(osimage.PredicateProvenance, img.Digest().String(), provenance("b"))
	for subject, ok := range map[string]bool{workflow: true, "mallory@example.com": false} {
		s := a.Certify(subject, authority.Issuer, signing)
		got, err := v.Verify(t.Context(), img, []osimage.Signature{ours.signBundle(t, img), {Form: osimage.Bundle, Payload: s.Bundle(made, authority.Choice{})}})
		if ok && err != nil {
			t.Errorf("%s: %v", subject, err)
		} else if !ok {
			refused(t, got, err, trust.Attestation)
		}
	}
}

func TestAttestationPolicies(t *testing.T) {
	ours := ecdsaPair(t)
	for want, a := range map[string]trust.PolicyAttestation{
		"by which builder":             {Type: trust.Provenance},
		"builder is for provenance":    {Type: trust.SBOM, Builder: "x"},
		"format is for an sbom":        {Type: trust.Provenance, Builder: "x", Format: "spdx"},
		`format "x"`:                   {Type: trust.SBOM, Format: "x"},
		`type "x"`:                     {Type: "x"},
		`no key is named "other"`:      {Type: trust.SBOM, Keys: []string{"other"}},
		`no identity is named "other"`: {Type: trust.SBOM, Identities: []string{"other"}},
		`"a" is there twice`:           {Type: trust.SBOM, Keys: []string{"a", "a"}},
	} {
		_, err := trust.New(trust.Policy{
			Keys:  []trust.Key{{Name: "a", PEM: ours.pem}},
			Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"a"}, Attestations: []trust.PolicyAttestation{a}}},
		})
		if at := (*trust.PolicyError)(nil); !errors.As(err, &at) || at.Field != "rules[0].attestations[0]" || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
}

func TestDescribe(t *testing.T) {
	img, ours := image(t, "1.1"), ecdsaPair(t)
	about := func(kind, predicate string) osimage.Signature {
		return ours.bundle(t, authority.Statement(kind, img.Digest().String(), predicate))
	}
	a := authority.New(t)
	for _, tt := range []struct {
		sig  osimage.Signature
		want trust.Description
	}{
		{ours.sign(t, payloadFor(img.Digest())), trust.Description{}},
		{ours.signBundle(t, img), trust.Description{Form: osimage.Bundle, Type: osimage.PredicateSignature}},
		{bundled(a.Certify(workflow, authority.Issuer, signing), img, authority.Choice{}), trust.Description{Form: osimage.Bundle, Type: osimage.PredicateSignature, Certified: true}},
		{about(osimage.PredicateProvenance, provenance("b")), trust.Description{Form: osimage.Bundle, Type: osimage.PredicateProvenance, Builder: "b"}},
		{about(osimage.PredicateSPDX, `{"packages":[{},{}]}`), trust.Description{Form: osimage.Bundle, Type: osimage.PredicateSPDX, Packages: 2}},
	} {
		if got, err := trust.Describe(tt.sig); err != nil || got != tt.want {
			t.Errorf("%+v, %v, want %+v", got, err, tt.want)
		}
	}
	if _, err := trust.Describe(osimage.Signature{Form: osimage.Bundle}); err == nil {
		t.Error("nothing was described")
	}
}

func FuzzBundle(f *testing.F) {
	img, ours := image(f, "1.1"), ecdsaPair(f)
	v := verifier(f, ours)
	good := ours.signBundle(f, img)
	f.Add(string(osimage.Bundle), good.Payload)
	f.Add(string(osimage.Envelope), []byte(ours.envelope(f, authority.Statement(osimage.PredicateSPDX, img.Digest().String(), "{}"))))
	f.Add(string(osimage.Bundle), bundled(authority.New(f).Certify(workflow, authority.Issuer, signing), img, authority.Choice{}).Payload)
	f.Add(string(osimage.Bundle), []byte(`{"mediaType":7}`))
	f.Fuzz(func(t *testing.T, form string, payload []byte) {
		if _, err := v.Verify(t.Context(), img, []osimage.Signature{{Form: osimage.Form(form), Payload: payload}}); err == nil {
			return // white space in JSON may change freely; what is signed may not
		} else if !errors.As(err, new(*trust.Refusal)) {
			t.Errorf("neither accepted nor refused: %v", err)
		}
	})
}
