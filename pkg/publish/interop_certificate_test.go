package publish

import (
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/authority"
)

// What osctl signs with a key and its certificate, a machine accepts by the subject and
// the issuer, and so does the tool; neither asks a log, and the authority has none.
func TestInteropOfCertificatesByOsctl(t *testing.T) {
	k := newKeyless(t)
	a := k.authority
	root, stranger := a.TrustedRoot("tlogs"), authority.NewAt(t, time.Now().AddDate(-1, 0, 0)).TrustedRoot("tlogs")
	private, public := k.keyPair(t, "ours", "")
	key := openKey(t, private)
	text := a.CertificateOf(read(t, public), workflow, authority.Issuer, time.Now().Add(-time.Minute))
	judged := map[osimage.Form][]string{
		osimage.Classic: {"--ca-roots", "ca.pem", "--timestamp-certificate-chain", k.file(t, "tsa.pem", a.Timestampers())},
		osimage.Bundle:  {"--new-bundle-format", "--trusted-root", k.file(t, "private.json", root), "--use-signed-timestamps"},
	}
	signatures := 0
	for place, repo := range kindsOfRegistry(t) {
		for form, flags := range judged {
			o := quick()
			o.Bundle, o.Timestamps = form == osimage.Bundle, k.Timestamps
			var err error
			if o.Certificate, err = LoadCertificate(text, a.CAs(), key, time.Now()); err != nil {
				t.Fatal(err)
			}
			d, err := Push(t.Context(), testLayout(t, "1.1", []byte(place+string(form))), repo+":1.1", quick())
			if err != nil {
				t.Fatal(err)
			}
			for _, existing := range []bool{false, true} {
				if signed, err := Sign(t.Context(), repo+":1.1", key, o); err != nil || signed.Existing != existing {
					t.Fatalf("%s, %s: %+v, %v", place, form, signed, err)
				}
			}
			for _, id := range []struct {
				subject, issuer string
				root            []byte
				refusal         string
			}{
				{workflow, authority.Issuer, root, ""},
				{workflow + "x", authority.Issuer, root, workflow},
				{workflow, authority.Issuer + "/x", root, authority.Issuer},
				{workflow, authority.Issuer, stranger, "proves nothing"},
				{workflow, authority.Issuer, k.root, "proves nothing"}, // which has a log
			} {
				p := trust.Policy{Identities: []trust.Identity{{Name: "who", Subject: id.subject, Issuer: id.issuer, TrustedRoot: id.root}}}
				_, sigs, err := onMachine(t, repo+":1.1", p)
				if len(sigs) != 1 || sigs[0].Form != form || (id.refusal == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), id.refusal) {
					t.Errorf("%s, %s, %s by %s: %d signatures, %v, want %q", place, form, id.subject, id.issuer, len(sigs), err, id.refusal)
				}
				if &id.root[0] != &root[0] {
					continue
				}
				args := append([]string{
					"verify", "--private-infrastructure", "--certificate-identity", id.subject, "--certificate-oidc-issuer", id.issuer,
				}, flags...)
				if out, err := k.run(t, append(args, repo+"@"+d.String())...); (err == nil) != (id.refusal == "") {
					t.Errorf("%s, %s, %s by %s: the tool says %v\n%s", place, form, id.subject, id.issuer, err, out)
				}
			}
			// A bundle has a certificate instead of a key, a classic signature beside it.
			if _, _, err := onMachine(t, repo+":1.1", byKey(t, public)); (err == nil) != (form == osimage.Classic) {
				t.Errorf("%s, %s, by key: %v", place, form, err)
			}
			o.Certificate, o.Timestamps = nil, ""
			if signed, err := Sign(t.Context(), repo+":1.1", key, o); err != nil || signed.Existing != (form == osimage.Classic) {
				t.Errorf("%s, %s, signed by key alone: %+v, %v", place, form, signed, err)
			}
			signatures++
		}
	}
	if n := k.Asked(); n != [3]int{0, 0, signatures} {
		t.Errorf("%v requests in all, want a timestamp of each signature and nothing more", n)
	}
}
