package publish

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/authority"
	"github.com/kapernikov/osctl/test/daemon"
)

// file keeps a text in the tool's home.
func (c tool) file(t testing.TB, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(c.home, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// onMachine asks as a machine does: it fetches what lies beside the image through
// containerd's resolver and decides by the policy.
func onMachine(t testing.TB, ref string, p trust.Policy) (trust.Verified, []osimage.Signature, error) {
	t.Helper()
	v, err := trust.New(p)
	if err != nil {
		t.Fatal(err)
	}
	store, err := fetch.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	offer, err := fetch.NewRegistry(t.Context(), store, t.TempDir()).Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	offer = offer.For(v)
	img, err := offer.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := offer.Signatures(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(t.Context(), img, sigs)
	return got, sigs, err
}

func byKey(t testing.TB, public string) trust.Policy {
	return trust.Policy{Keys: []trust.Key{{Name: "key", PEM: read(t, public)}}}
}

// kindsOfRegistry are those that machines meet: with the referrers API, without it,
// and one of another make, which has never heard of it.
func kindsOfRegistry(t *testing.T) map[string]string {
	return map[string]string{
		"referrers API":   newRegistry(t, registry.WithReferrersSupport(true)).ref(""),
		"fallback tag":    newRegistry(t).ref(""),
		"docker-registry": daemon.StartRegistry(t).Addr + "/os",
	}
}

// What the tool signs in the form of a bundle, a machine accepts.
func TestInteropOfBundles(t *testing.T) {
	c := newCosign(t)
	empty := c.file(t, "root.json", []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`))
	_, stranger := c.keyPair(t, "stranger", "")
	for place, repo := range kindsOfRegistry(t) {
		for _, kind := range []string{"", "RSA", "Ed25519"} {
			dir, name := testLayout(t, "1.1", []byte(place+kind)), "key"+kind
			d, err := Push(t.Context(), dir, repo+":1.1", quick())
			if err != nil {
				t.Fatal(err)
			}
			private, public := c.keyPair(t, strings.ReplaceAll(place, " ", "")+name, kind)
			c.must(t, "sign", "--key", private, "--tlog-upload=false", "--new-bundle-format", repo+"@"+d.String())
			got, sigs, err := onMachine(t, repo+":1.1", byKey(t, public))
			if err != nil || got.Image().Digest() != d || len(sigs) != 1 || sigs[0].Form != osimage.Bundle {
				t.Errorf("%s, key %q: %+v, %v", place, kind, sigs, err)
			}
			if _, _, err := onMachine(t, repo+":1.1", byKey(t, stranger)); err == nil || !strings.Contains(err.Error(), "no key of the policy") {
				t.Errorf("%s, a stranger's key: %v", place, err)
			}
			out, err := c.run(t, "verify", "--key", public, "--insecure-ignore-tlog=true", "--new-bundle-format", "--trusted-root", empty, repo+"@"+d.String())
			if (err == nil) != (kind != "Ed25519") { // as with the classic form (docs/decisions/0031)
				t.Errorf("cosign verify of its own bundle, key %q: %v\n%s", kind, err, out)
			}
		}
	}
}

// What osctl signs in the form of a bundle, the tool verifies, for each kind of key and
// of registry; and the tool's own bundle of the same key is recognised.
func TestInteropOfBundlesByOsctl(t *testing.T) {
	c := newCosign(t)
	empty := c.file(t, "root.json", []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`))
	_, stranger := c.keyPair(t, "stranger", "")
	o := quick()
	o.Bundle = true
	for place, repo := range kindsOfRegistry(t) {
		for _, kind := range []string{"", "RSA", "Ed25519"} {
			d, err := Push(t.Context(), testLayout(t, "1.1", []byte("ours"+place+kind)), repo+":1.1", quick())
			if err != nil {
				t.Fatal(err)
			}
			ref := repo + "@" + d.String()
			private, public := c.keyPair(t, "ours"+strings.ReplaceAll(place, " ", "")+kind, kind)
			signed, err := Sign(t.Context(), ref, openKey(t, private), o)
			if err != nil || signed.Existing {
				t.Fatalf("%+v, %v", signed, err)
			}
			for key, ok := range map[string]bool{public: true, stranger: false} {
				out, err := c.run(t, "verify", "--key", key, "--insecure-ignore-tlog=true", "--new-bundle-format", "--trusted-root", empty, ref)
				if (err == nil) != ok || ok && !strings.Contains(out, d.Encoded()) {
					t.Errorf("%s, key %q: cosign verify with %s: %v\n%s", place, kind, filepath.Base(key), err, out)
				}
			}
			if _, _, err := onMachine(t, repo+":1.1", byKey(t, public)); err != nil {
				t.Errorf("%s, key %q: a machine: %v", place, kind, err)
			}
		}
		d, err := Push(t.Context(), testLayout(t, "1.1", []byte("theirs"+place)), repo+":1.1", quick())
		if err != nil {
			t.Fatal(err)
		}
		private, _ := c.keyPair(t, "theirs"+strings.ReplaceAll(place, " ", ""), "")
		c.must(t, "sign", "--key", private, "--tlog-upload=false", "--new-bundle-format", repo+"@"+d.String())
		if signed, err := Sign(t.Context(), repo+":1.1", openKey(t, private), o); err != nil || !signed.Existing {
			t.Errorf("%s: the tool's bundle is not recognised: %+v, %v", place, signed, err)
		}
	}
}

const (
	spdx      = `{"spdxVersion":"SPDX-2.3","name":"os","packages":[{"name":"a"},{"name":"b"}]}`
	cyclonedx = `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[{"name":"a"}]}`
	slsa      = `{"buildDefinition":{"buildType":"https://builder.example.com/type","externalParameters":{}},"runDetails":{"builder":{"id":"https://builder.example.com"},"metadata":{"invocationId":"1"}}}`
)

// Attestations by the tool satisfy a rule, in both forms; pushed on from a layout is
// tested in TestInteropKeyless.
func TestInteropOfAttestations(t *testing.T) {
	c := newCosign(t)
	private, public := c.keyPair(t, "ours", "")
	made, list := c.file(t, "slsa.json", []byte(slsa)), c.file(t, "spdx.json", []byte(spdx))
	components := c.file(t, "cyclonedx.json", []byte(cyclonedx))
	for place, repo := range kindsOfRegistry(t) {
		for _, form := range []string{"--new-bundle-format=true", "--new-bundle-format=false"} {
			d, err := Push(t.Context(), testLayout(t, "1.1", []byte(place+form)), repo+":1.1", quick())
			if err != nil {
				t.Fatal(err)
			}
			ref := repo + "@" + d.String()
			c.sign(t, private, ref)
			attest := func(kind, file string) {
				t.Helper()
				c.must(t, "attest", "--key", private, "--tlog-upload=false", form, "--type", kind, "--predicate", file, ref)
			}
			p := byKey(t, public)
			rule := func(format, builder string) trust.Policy {
				p.Rules = []trust.PolicyRule{{Name: "r", Keys: []string{"key"}, Attestations: []trust.PolicyAttestation{
					{Type: trust.Provenance, Builder: builder}, {Type: trust.SBOM, Format: format},
				}}}
				return p
			}
			want := func(p trust.Policy, text string) {
				t.Helper()
				_, _, err := onMachine(t, repo+":1.1", p)
				if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
					t.Errorf("%s, %s: %v, want %q", place, form, err, text)
				}
			}
			want(p, "")
			want(rule("spdx", "https://builder.example.com"), "provenance by the builder")
			attest("slsaprovenance1", made)
			want(rule("spdx", "https://builder.example.com"), "a list of contents (SPDX)")
			attest("spdxjson", list)
			want(rule("spdx", "https://builder.example.com"), "")
			want(rule("spdx", "https://other.example.com"), `the builder "https://builder.example.com"`)
			want(rule("cyclonedx", "https://builder.example.com"), "a list of contents (CycloneDX)")
			attest("cyclonedx", components)
			want(rule("cyclonedx", "https://builder.example.com"), "")
		}
	}
}

const workflow = "https://git.example.com/os/release.yml@refs/heads/main"

// Keyless signatures of the authority of the test, pushed from a layout: machine and
// tool agree about each, and about who is not asked for.
func TestInteropKeyless(t *testing.T) {
	c := newCosign(t)
	a := authority.New(t)
	s := a.Certify(workflow, authority.Issuer, time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC))
	root := c.file(t, "root.json", a.TrustedRoot())
	ca := c.file(t, "ca.pem", a.CAs())
	for name, key := range map[string][]byte{"rekor.pub": a.LogKey(), "ct.pub": a.CertificateLogKey()} {
		c.file(t, name, key)
	}
	c.env = []string{"SIGSTORE_REKOR_PUBLIC_KEY=" + filepath.Join(c.home, "rekor.pub"), "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=" + filepath.Join(c.home, "ct.pub")}
	for place, repo := range kindsOfRegistry(t) {
		for _, form := range []string{"bundle", "classic"} {
			dir := testLayout(t, "1.1", []byte(place+form))
			l, err := openLayout(dir)
			if err != nil {
				t.Fatal(err)
			}
			d := l.image.Digest()
			args := []string{"verify", "--offline", "--certificate-oidc-issuer", authority.Issuer}
			if form == "bundle" {
				authority.Attach(t, dir, osimage.PredicateSignature, s.Bundle(authority.Statement(osimage.PredicateSignature, d.String(), ""), authority.Choice{}))
				args = append(args, "--new-bundle-format", "--trusted-root", root)
			} else {
				payload := []byte(`{"critical":{"identity":{"docker-reference":"os"},"image":{"docker-manifest-digest":"` + d.String() + `"},"type":"cosign container image signature"},"optional":null}`)
				_, annotations := s.Classic(payload, authority.Choice{WithoutStamp: true})
				authority.AttachClassic(t, dir, osimage.SignatureTag(d), osimage.MediaTypeSignature, payload, annotations)
				args = append(args, "--ca-roots", ca)
			}
			for range 2 { // the second finds everything there
				if _, err := Push(t.Context(), dir, repo+":1.1", quick()); err != nil {
					t.Fatal(err)
				}
			}
			for subject, ok := range map[string]bool{workflow: true, "https://git.example.com/os/release.yml": false} {
				p := trust.Policy{Identities: []trust.Identity{{Name: "who", Subject: subject, Issuer: authority.Issuer, TrustedRoot: a.TrustedRoot()}}}
				got, _, err := onMachine(t, repo+":1.1", p)
				if ok != (err == nil) || ok && got.Image().Digest() != d || !ok && !strings.Contains(err.Error(), workflow) {
					t.Errorf("%s, %s, a machine's verdict on %s: %v", place, form, subject, err)
				}
				out, err := c.run(t, append(args, "--certificate-identity", subject, repo+"@"+d.String())...)
				if ok != (err == nil) || !ok && !strings.Contains(out, "none of the expected identities matched") && !strings.Contains(out, "expected SAN") {
					t.Errorf("%s, %s, cosign's on %s: %v\n%s", place, form, subject, err, out)
				}
			}
		}
	}
}

// A push from a layout keeps attestations of both forms.
func TestPushKeepsWhatIsBeside(t *testing.T) {
	for name, options := range map[string][]registry.Option{"referrers API": {registry.WithReferrersSupport(true)}, "fallback tag": nil} {
		dir, reg := threePacks(t), newRegistry(t, options...)
		l, err := openLayout(dir)
		if err != nil {
			t.Fatal(err)
		}
		d := l.image.Digest()
		a := authority.New(t)
		s := a.Certify(workflow, authority.Issuer, time.Now())
		statement := authority.Statement(osimage.PredicateSPDX, d.String(), spdx)
		authority.Attach(t, dir, osimage.PredicateSPDX, s.Bundle(statement, authority.Choice{}))
		authority.AttachClassic(t, dir, osimage.AttestationTag(d), osimage.MediaTypeEnvelope, []byte("{}"), map[string]string{"predicateType": osimage.PredicateSPDX})
		if _, err := Sign(t.Context(), dir, testKey(t), quick()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := Push(t.Context(), dir, reg.ref(":1.1"), quick()); err != nil {
				t.Fatal(err)
			}
		}
		p := trust.Policy{
			Identities: []trust.Identity{{Name: "who", Subject: workflow, Issuer: authority.Issuer, TrustedRoot: a.TrustedRoot()}},
			Rules:      []trust.PolicyRule{{Name: "r", Identities: []string{"who"}, Attestations: []trust.PolicyAttestation{{Type: trust.SBOM}}}},
		}
		_, sigs, _ := onMachine(t, reg.ref(":1.1"), p)
		forms := map[osimage.Form]int{}
		for _, s := range sigs {
			forms[s.Form]++
		}
		if len(sigs) != 3 || forms[osimage.Classic] != 1 || forms[osimage.Bundle] != 1 || forms[osimage.Envelope] != 1 {
			t.Errorf("%s: found %v", name, forms)
		}
	}
}
