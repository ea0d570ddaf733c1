package trust_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/authority"
)

// signing is when the certificates of these tests were valid, for ten minutes: long
// before anybody verifies.
var signing = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const workflow = "https://git.example.com/os/.github/workflows/release.yml@refs/heads/main"

func releaser(a *authority.Authority) trust.Identity {
	return trust.Identity{Name: "releaser", Subject: workflow, Issuer: authority.Issuer, TrustedRoot: a.TrustedRoot()}
}

func identityVerifier(t testing.TB, ids ...trust.Identity) *trust.Verifier {
	t.Helper()
	v, err := trust.New(trust.Policy{Identities: ids})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// bundled signs an image with a bundle.
func bundled(s authority.Signer, img osimage.Image, c authority.Choice) osimage.Signature {
	return osimage.Signature{Form: osimage.Bundle, Payload: s.Bundle(authority.Statement(osimage.PredicateSignature, img.Digest().String(), ""), c)}
}

// noted signs it in the classic form.
func noted(s authority.Signer, img osimage.Image, c authority.Choice) osimage.Signature {
	payload := payloadFor(img.Digest())
	b64, annotations := s.Classic(payload, c)
	return osimage.Signature{Payload: payload, Base64: b64, Annotations: annotations}
}

var ways = map[string]func(authority.Signer, osimage.Image, authority.Choice) osimage.Signature{"bundle": bundled, "classic": noted}

// A certificate that expired years ago counts, for it was valid when it signed.
func TestIdentityAccepts(t *testing.T) {
	a, img := authority.New(t), image(t, "1.1")
	s := a.Certify(workflow, authority.Issuer, signing)
	for way, sign := range ways {
		for name, c := range map[string]authority.Choice{"with all proofs": {}, "timed by the log alone": {WithoutStamp: true}} {
			got, err := identityVerifier(t, releaser(a)).Verify(t.Context(), img, []osimage.Signature{sign(s, img, c)})
			if err != nil || got.KeyName() != "releaser" || got.Image().Digest() != img.Digest() {
				t.Errorf("%s, %s: %+v, %v", way, name, got, err)
			}
		}
	}
}

// Every part of the proof is needed.
func TestIdentityRefuses(t *testing.T) {
	a, img, other := authority.New(t), image(t, "1.1"), image(t, "1.2")
	s := a.Certify(workflow, authority.Issuer, signing)
	stranger := a.Certify("mallory@example.com", authority.Issuer, signing)
	elsewhere := a.Certify(workflow, "https://other.example.com", signing)
	forged := authority.New(t).Certify(workflow, authority.Issuer, signing)
	for _, tt := range []struct {
		name   string
		signer authority.Signer
		about  osimage.Image
		choice authority.Choice
		rule   trust.Rule
		have   string
	}{
		{"somebody else", stranger, img, authority.Choice{}, trust.UnknownIdentity, "mallory@example.com"},
		{"another issuer", elsewhere, img, authority.Choice{}, trust.UnknownIdentity, "https://other.example.com"},
		{"another authority", forged, img, authority.Choice{}, trust.Unproven, "proves nothing"},
		{"no log entry", s, img, authority.Choice{WithoutLog: true}, trust.Unproven, "log"},
		{"the log entry of another signature", s, img, authority.Choice{OtherEntry: true}, trust.Unproven, "signature"},
		{"an altered time in the log", s, img, authority.Choice{DamagedPromise: true}, trust.Unproven, "log"},
		{"a log that nobody named", s, img, authority.Choice{OtherLog: true, WithoutStamp: true}, trust.Unproven, ""},
		{"signed after the certificate expired", s, img, authority.Choice{At: signing.Add(time.Hour)}, trust.Unproven, "validity"},
		{"signed before it began", s, img, authority.Choice{At: signing.Add(-time.Hour)}, trust.Unproven, "validity"},
		{"another image", s, other, authority.Choice{}, trust.OtherImage, other.Digest().String()},
	} {
		for way, sign := range ways {
			t.Run(way+": "+tt.name, func(t *testing.T) {
				got, err := identityVerifier(t, releaser(a)).Verify(t.Context(), img, []osimage.Signature{sign(tt.signer, tt.about, tt.choice)})
				if r := refused(t, got, err, tt.rule); !strings.Contains(r.Have, tt.have) || !strings.Contains(r.Want, "releaser ("+workflow) {
					t.Errorf("refusal %q does not say %q", r, tt.have)
				}
			})
		}
	}
	// What the classic form does not have.
	got, err := identityVerifier(t, releaser(a)).Verify(t.Context(), img, []osimage.Signature{bundled(s, img, authority.Choice{DamagedProof: true})})
	refused(t, got, err, trust.Unproven)
}

// The time may come from a timestamp service: then it has to be one that the root
// names. A log that promises nothing proves that it has the entry, and no time.
func TestIdentityTimestamp(t *testing.T) {
	a, img := authority.New(t), image(t, "1.1")
	s := a.Certify(workflow, authority.Issuer, signing)
	for name, tt := range map[string]struct {
		choice authority.Choice
		ok     bool
	}{
		"by the service":        {authority.Choice{WithoutPromise: true}, true},
		"by nobody":             {authority.Choice{WithoutPromise: true, WithoutStamp: true}, false},
		"by an unknown service": {authority.Choice{WithoutPromise: true, OtherStamp: true}, false},
		"outside the validity":  {authority.Choice{WithoutPromise: true, At: signing.Add(time.Hour)}, false},
		"of another signature":  {authority.Choice{WithoutPromise: true, DamagedStamp: true}, false},
	} {
		got, err := identityVerifier(t, releaser(a)).Verify(t.Context(), img, []osimage.Signature{bundled(s, img, tt.choice)})
		if !tt.ok {
			refused(t, got, err, trust.Unproven)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Where the root has no log, the time is told by its timestamp service and by nobody else.
func TestIdentityWithoutLog(t *testing.T) {
	a, img := authority.New(t), image(t, "1.1")
	s, id := a.Certify(workflow, authority.Issuer, signing), releaser(a)
	id.TrustedRoot = a.TrustedRoot("tlogs")
	for name, tt := range map[string]struct {
		choice authority.Choice
		ok     bool
	}{
		"by the service":          {authority.Choice{WithoutLog: true}, true},
		"with an entry beside it": {authority.Choice{}, true},
		"by nobody":               {authority.Choice{WithoutLog: true, WithoutStamp: true}, false},
		"by a log":                {authority.Choice{WithoutStamp: true}, false},
		"by an unknown service":   {authority.Choice{WithoutLog: true, OtherStamp: true}, false},
		"outside the validity":    {authority.Choice{WithoutLog: true, At: signing.Add(time.Hour)}, false},
		"of another signature":    {authority.Choice{WithoutLog: true, DamagedStamp: true}, false},
	} {
		for way, sign := range ways {
			got, err := identityVerifier(t, id).Verify(t.Context(), img, []osimage.Signature{sign(s, img, tt.choice)})
			if !tt.ok {
				refused(t, got, err, trust.Unproven)
			} else if err != nil {
				t.Errorf("%s, %s: %v", way, name, err)
			}
		}
	}
}

// Where the root has a log of certificates, its mark is needed.
func TestIdentityCertificateLog(t *testing.T) {
	a, b, img := authority.New(t), authority.New(t), image(t, "1.1")
	foreign := releaser(a)
	foreign.TrustedRoot = a.TrustedRootWith("ctlogs", b)
	got, err := identityVerifier(t, foreign).Verify(t.Context(), img, []osimage.Signature{bundled(a.Certify(workflow, authority.Issuer, signing), img, authority.Choice{})})
	refused(t, got, err, trust.Unproven)
	without := releaser(a)
	without.TrustedRoot = a.TrustedRoot("ctlogs")
	if _, err := identityVerifier(t, without).Verify(t.Context(), img, []osimage.Signature{bundled(a.Certify(workflow, authority.Issuer, signing), img, authority.Choice{})}); err != nil {
		t.Errorf("a root without a log of certificates: %v", err)
	}
}

// A pattern is for the whole name.
func TestIdentityPatterns(t *testing.T) {
	a, img := authority.New(t), image(t, "1.1")
	sig := []osimage.Signature{bundled(a.Certify(workflow, authority.Issuer, signing), img, authority.Choice{})}
	for pattern, ok := range map[string]bool{
		`https://git\.example\.com/os/.+`:           true,
		`https://git\.example\.com/os/`:             false,
		`.+/release\.yml`:                           false,
		`release`:                                   false,
		`x|https://git\.example\.com/os/.+@refs/.+`: true,
		`https://git\.example\.com/os/.+|x`:         true,
	} {
		id := releaser(a)
		id.Subject, id.SubjectPattern = "", pattern
		got, err := identityVerifier(t, id).Verify(t.Context(), img, sig)
		if ok != (err == nil) {
			t.Errorf("%s: %+v, %v", pattern, got, err)
		}
		id = releaser(a)
		id.Issuer, id.IssuerPattern = "", "https://issuer"
		got, err = identityVerifier(t, id).Verify(t.Context(), img, sig)
		refused(t, got, err, trust.UnknownIdentity)
	}
}

// One person who fits two identities counts once, and a key beside him for another.
func TestIdentityThreshold(t *testing.T) {
	a, img, ours := authority.New(t), image(t, "1.1"), ecdsaPair(t)
	second := releaser(a)
	second.Name, second.Subject, second.SubjectPattern = "anybody", "", "https://.+"
	v, err := trust.New(trust.Policy{
		Keys: []trust.Key{{Name: "key", PEM: ours.pem}}, Identities: []trust.Identity{releaser(a), second},
		Rules: []trust.PolicyRule{{Name: "two", Keys: []string{"key"}, Identities: []string{"releaser", "anybody"}, Threshold: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := a.Certify(workflow, authority.Issuer, signing)
	sigs := []osimage.Signature{bundled(s, img, authority.Choice{}), bundled(a.Certify(workflow, authority.Issuer, signing), img, authority.Choice{}), noted(s, img, authority.Choice{})}
	got, err := v.Verify(t.Context(), img, sigs)
	refused(t, got, err, trust.Threshold)
	got, err = v.Verify(t.Context(), img, append(sigs, ours.sign(t, payloadFor(img.Digest()))))
	if err != nil || got.KeyName() != "releaser, key" {
		t.Errorf("%+v, %v", got, err)
	}
}

// A key that was certified is still one key: it does not count for itself as well.
func TestIdentityOfAKeyOfThePolicy(t *testing.T) {
	a, img, other := authority.New(t), image(t, "1.1"), ecdsaPair(t)
	s := a.Certify(workflow, authority.Issuer, signing)
	v, err := trust.New(trust.Policy{
		Keys:       []trust.Key{{Name: "key", PEM: s.PublicKey()}, {Name: "other", PEM: other.pem}},
		Identities: []trust.Identity{releaser(a)},
		Rules:      []trust.PolicyRule{{Name: "two", Keys: []string{"key", "other"}, Identities: []string{"releaser"}, Threshold: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	bare := noted(s, img, authority.Choice{})
	bare.Annotations = nil
	for _, sigs := range [][]osimage.Signature{{bundled(s, img, authority.Choice{}), bare}, {bare, bundled(s, img, authority.Choice{})}} {
		got, err := v.Verify(t.Context(), img, sigs)
		refused(t, got, err, trust.Threshold)
		if _, err := v.Verify(t.Context(), img, append(sigs, other.sign(t, payloadFor(img.Digest())))); err != nil {
			t.Errorf("with another key: %v", err)
		}
	}
}

func TestIdentityPolicies(t *testing.T) {
	a := authority.New(t)
	for want, change := range map[string]func(*trust.Identity){
		"names no transparency log":      func(i *trust.Identity) { i.TrustedRoot = a.TrustedRoot("tlogs", "timestampAuthorities") },
		"names no certificate authority": func(i *trust.Identity) { i.TrustedRoot = a.TrustedRoot("certificateAuthorities") },
		"the trusted root":               func(i *trust.Identity) { i.TrustedRoot = []byte("{}") },
		"the limit is 1048576":           func(i *trust.Identity) { i.TrustedRoot = make([]byte, 1<<20+1) },
		"subject: expected is either":    func(i *trust.Identity) { i.SubjectPattern = "x" },
		"issuer: expected is either":     func(i *trust.Identity) { i.Issuer = "" },
		"fits everything or nothing":     func(i *trust.Identity) { i.Subject, i.SubjectPattern = "", ".*" },
		"missing closing )":              func(i *trust.Identity) { i.Subject, i.SubjectPattern = "", "(" },
		"unexpected )":                   func(i *trust.Identity) { i.Subject, i.SubjectPattern = "", "a)|(?:b" },
		"there twice":                    func(i *trust.Identity) { i.Name = "key" },
		"identity 1: name":               func(i *trust.Identity) { i.Name = "" },
	} {
		id := releaser(a)
		change(&id)
		_, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "key", PEM: ecdsaPair(t).pem}}, Identities: []trust.Identity{id}})
		if at := (*trust.PolicyError)(nil); !errors.As(err, &at) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(at.Field, "identities[0]") {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
}

// A revoked key is revoked in a certificate too.
func TestIdentityWithARevokedKey(t *testing.T) {
	a, img := authority.New(t), image(t, "1.1")
	s := a.Certify(workflow, authority.Issuer, signing)
	for key, ok := range map[string]bool{string(s.PublicKey()): false, string(ecdsaPair(t).pem): true} {
		v, err := trust.New(trust.Policy{
			Identities: []trust.Identity{releaser(a)}, Revoked: trust.Revoked{Keys: []trust.Key{{Name: "lost", PEM: []byte(key)}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Verify(t.Context(), img, []osimage.Signature{bundled(s, img, authority.Choice{})})
		if ok && err != nil {
			t.Errorf("another key is revoked: %v", err)
		} else if !ok {
			if r := refused(t, got, err, trust.Unproven); !strings.Contains(r.Have, "revoked as lost") {
				t.Errorf("refusal %q", r)
			}
		}
	}
}
