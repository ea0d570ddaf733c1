package publish

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/authority"
)

// keyless is the tool beside services of the test: an authority for certificates, its
// log, a transparency log and a timestamp service, over HTTP. Nothing else is asked.
type keyless struct {
	tool
	*authority.Services
	authority *authority.Authority
	root      []byte // the trusted root of the authority
}

func newKeyless(t *testing.T) keyless {
	t.Helper()
	a := authority.NewAt(t, time.Now().AddDate(-1, 0, 0))
	k := keyless{newCosign(t), a.Serve(), a, a.TrustedRoot()}
	k.env = []string{"SIGSTORE_ROOT_FILE=" + k.file(t, "ca.pem", a.CAs())}
	k.env = append(k.env, "SIGSTORE_REKOR_PUBLIC_KEY="+k.file(t, "rekor.pub", a.LogKey()), "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE="+k.file(t, "ct.pub", a.CertificateLogKey()))
	k.file(t, "root.json", k.root)
	return k
}

// signs lets the tool sign or attest as somebody.
func (k keyless) signs(t *testing.T, who string, args ...string) {
	t.Helper()
	k.must(t, append(args[:1:1], append([]string{
		"--fulcio-url", k.URL, "--rekor-url", k.URL, "--oidc-disable-ambient-providers",
		"--identity-token", k.file(t, "token", []byte(k.Token(who, authority.Issuer))), "--trusted-root", filepath.Join(k.home, "root.json"),
	}, args[1:]...)...)...)
}

// TestInteropOfKeylessSigning: what the tool signs without a key, a machine accepts by
// the certificate's subject and issuer and by nothing else, with no service to ask.
func TestInteropOfKeylessSigning(t *testing.T) {
	k := newKeyless(t)
	other := authority.New(t).TrustedRoot()
	own := []string{"--new-bundle-format", "--trusted-root", "root.json"}
	repo := newRegistry(t, registry.WithReferrersSupport(true)).ref("")
	for name, tt := range map[string]struct {
		form  osimage.Form
		flags []string
		// judged are the tool's flags for its own verdict, where it has one without the
		// public services.
		judged []string
		asked  [3]int // certificates, entries of the log, timestamps
	}{
		"classic":                  {osimage.Classic, nil, []string{"--ca-roots", "ca.pem"}, [3]int{1, 1, 0}},
		"classic, with timestamp":  {osimage.Classic, []string{"--timestamp-server-url", k.Timestamps}, nil, [3]int{1, 1, 1}},
		"bundle":                   {osimage.Bundle, []string{"--new-bundle-format"}, own, [3]int{1, 1, 0}},
		"bundle, with a timestamp": {osimage.Bundle, []string{"--new-bundle-format", "--timestamp-server-url", k.Timestamps}, own, [3]int{1, 1, 1}},
	} {
		before := k.Asked()
		d, err := Push(t.Context(), testLayout(t, "1.1", []byte(name)), repo+":1.1", quick())
		if err != nil {
			t.Fatal(err)
		}
		k.signs(t, workflow, append([]string{"sign"}, append(tt.flags, repo+"@"+d.String())...)...)
		asked := k.Asked()
		for i := range asked {
			asked[i] -= before[i]
		}
		if asked != tt.asked {
			t.Errorf("%s: the tool asked for %v, want %v", name, asked, tt.asked)
		}
		for _, id := range []struct {
			subject, issuer string
			root            []byte
			refusal         string
		}{
			{workflow, authority.Issuer, k.root, ""},
			{workflow + "x", authority.Issuer, k.root, workflow},
			{workflow, authority.Issuer + "/x", k.root, authority.Issuer},
			{workflow, authority.Issuer, other, "proves nothing"},
		} {
			p := trust.Policy{Identities: []trust.Identity{{Name: "who", Subject: id.subject, Issuer: id.issuer, TrustedRoot: id.root}}}
			got, sigs, err := onMachine(t, repo+":1.1", p)
			if len(sigs) != 1 || sigs[0].Form != tt.form {
				t.Errorf("%s: found %+v", name, sigs)
			}
			if len(tt.judged) > 0 && &id.root[0] == &k.root[0] {
				args := append([]string{"verify", "--offline", "--certificate-identity", id.subject, "--certificate-oidc-issuer", id.issuer}, tt.judged...)
				if out, verdict := k.run(t, append(args, repo+"@"+d.String())...); (verdict == nil) != (err == nil) {
					t.Errorf("%s, %s by %s: the tool says %v, a machine %v\n%s", name, id.subject, id.issuer, verdict, err, out)
				}
			}
			if (id.refusal == "") != (err == nil) || err == nil && got.Image().Digest() != d || err != nil && !strings.Contains(err.Error(), id.refusal) {
				t.Errorf("%s, %s by %s: %v, want %q", name, id.subject, id.issuer, err, id.refusal)
			}
		}
	}
	if n := k.Asked(); n != [3]int{4, 4, 2} {
		t.Errorf("%v requests in all: a machine has asked", n)
	}
}

// A certificate that is in no transparency log proves no time, whoever made it.
func TestInteropOfKeylessWithoutLog(t *testing.T) {
	k := newKeyless(t)
	repo := newRegistry(t, registry.WithReferrersSupport(true)).ref("")
	for _, form := range []string{"--new-bundle-format=true", "--new-bundle-format=false"} {
		d, err := Push(t.Context(), testLayout(t, "1.1", []byte(form)), repo+":1.1", quick())
		if err != nil {
			t.Fatal(err)
		}
		k.signs(t, workflow, "sign", form, "--tlog-upload=false", "--timestamp-server-url", k.Timestamps, repo+"@"+d.String())
		p := trust.Policy{Identities: []trust.Identity{{Name: "who", Subject: workflow, Issuer: authority.Issuer, TrustedRoot: k.root}}}
		if _, sigs, err := onMachine(t, repo+":1.1", p); err == nil || len(sigs) != 1 || !strings.Contains(err.Error(), "not enough verified log entries") {
			t.Errorf("%s: %d signatures, %v", form, len(sigs), err)
		}
	}
}

// Attestations that the tool makes without a key satisfy a rule whose signer has one.
func TestInteropOfKeylessAttestations(t *testing.T) {
	k := newKeyless(t)
	private, public := k.keyPair(t, "ours", "")
	repo := newRegistry(t, registry.WithReferrersSupport(true)).ref("")
	made := k.file(t, "slsa.json", []byte(slsa))
	for _, form := range []string{"--new-bundle-format=true", "--new-bundle-format=false"} {
		d, err := Push(t.Context(), testLayout(t, "1.1", []byte(form)), repo+":1.1", quick())
		if err != nil {
			t.Fatal(err)
		}
		ref := repo + "@" + d.String()
		k.sign(t, private, ref)
		p := byKey(t, public)
		p.Identities = []trust.Identity{{Name: "builder", Subject: workflow, Issuer: authority.Issuer, TrustedRoot: k.root}}
		p.Rules = []trust.PolicyRule{{Name: "r", Keys: []string{"key"}, Attestations: []trust.PolicyAttestation{
			{Type: trust.Provenance, Builder: "https://builder.example.com", Identities: []string{"builder"}},
		}}}
		for _, who := range []string{workflow + "x", workflow} {
			k.signs(t, who, "attest", form, "--type", "slsaprovenance1", "--predicate", made, ref)
			_, _, err := onMachine(t, repo+":1.1", p)
			if ok := who == workflow; ok != (err == nil) || !ok && !strings.Contains(err.Error(), "provenance by the builder") {
				t.Errorf("%s, attested by %s: %v", form, who, err)
			}
		}
	}
}
