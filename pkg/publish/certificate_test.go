package publish

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"

	"github.com/kapernikov/osctl/test/authority"
)

// A timestamp is of this signature, answers this question and falls into the validity of
// the certificate; else there is no signature. A certificate counts at its time only.
func TestTimestampsAreChecked(t *testing.T) {
	now := time.Now()
	a, key := authority.NewAt(t, now.AddDate(-1, 0, 0)), testKey(t)
	service := a.Serve().Timestamps
	text := func(at time.Time) []byte { return a.CertificateOf(publicPEM(t, key), workflow, authority.Issuer, at) }
	for name, tt := range map[string]struct {
		alter   func(*timestamp.Request)
		ago     time.Duration // when the certificate was valid
		answers []byte
		want    string
	}{
		"right":                   {func(*timestamp.Request) {}, 0, nil, ""},
		"of another signature":    {func(r *timestamp.Request) { r.HashedMessage[0] ^= 1 }, 0, nil, "of something else than the signature"},
		"an answer given before":  {func(r *timestamp.Request) { r.Nonce = big.NewInt(1) }, 0, nil, "answers another question"},
		"without its certificate": {func(r *timestamp.Request) { r.Certificates = false }, 0, nil, "no certificate"},
		"at another time":         {func(*timestamp.Request) {}, time.Hour, nil, "when the certificate is not valid"},
		"no timestamp":            {nil, 0, []byte("hello"), "no timestamp"},
		"too much":                {nil, 0, make([]byte, maxStamp+1), "more than 65536 bytes"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if tt.alter == nil {
				_, _ = w.Write(tt.answers)
				return
			}
			body, _ := io.ReadAll(req.Body)
			asked, err := timestamp.ParseRequest(body)
			if err != nil {
				t.Error(err)
				return
			}
			tt.alter(asked)
			body, _ = asked.Marshal()
			resp, err := http.Post(service, "application/timestamp-query", bytes.NewReader(body)) //nolint:noctx // a test's own
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(w, resp.Body)
		}))
		o := quick()
		o.Timestamps = server.URL
		var err error
		if o.Certificate, err = LoadCertificate(text(now.Add(-tt.ago-time.Minute)), a.CAs(), key, now.Add(-tt.ago)); err != nil {
			t.Fatal(err)
		}
		for _, o.Bundle = range []bool{false, true} {
			dir := threePacks(t)
			_, err := Sign(t.Context(), dir, key, o)
			if (tt.want == "") != (err == nil) || err != nil && (!errors.Is(err, ErrTimestamp) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s: %v, want %q", name, err, tt.want)
			}
			o := o
			o.Timestamps = ""
			if signed, err := Sign(t.Context(), dir, key, o); err != nil || signed.Existing != (tt.want == "") {
				t.Errorf("%s, then without: %+v, %v", name, signed, err)
			}
		}
		server.Close()
	}
	if _, err := Sign(t.Context(), threePacks(t), key, Options{Timestamps: service}); err == nil {
		t.Error("a timestamp without a certificate")
	}
}

// A certificate that is new, or whose signature has no timestamp yet, is another signature.
func TestAnotherCertificateIsAdded(t *testing.T) {
	now := time.Now()
	a, key := authority.NewAt(t, now.AddDate(-1, 0, 0)), testKey(t)
	service := a.Serve().Timestamps
	texts := map[int][]byte{}
	for _, minutes := range []int{1, 2} {
		texts[minutes] = a.CertificateOf(publicPEM(t, key), workflow, authority.Issuer, now.Add(-time.Duration(minutes)*time.Minute))
	}
	for _, bundle := range []bool{false, true} {
		dir := threePacks(t)
		for n, step := range []struct {
			minutes  int // how old the certificate is; 0 is none
			stamped  bool
			existing bool
		}{{0, false, false}, {1, false, false}, {1, false, true}, {1, true, false}, {1, true, true}, {1, false, true}, {2, true, false}, {0, false, true}} {
			o := quick()
			o.Bundle = bundle
			if step.stamped {
				o.Timestamps = service
			}
			if step.minutes > 0 {
				var err error
				if o.Certificate, err = LoadCertificate(texts[step.minutes], nil, key, now); err != nil {
					t.Fatal(err)
				}
			}
			if signed, err := Sign(t.Context(), dir, key, o); err != nil || signed.Existing != step.existing {
				t.Errorf("bundle %t, step %d: %+v, %v", bundle, n, signed, err)
			}
		}
	}
}

// What no machine would accept does not come to lie beside a signature.
func TestCertificatesAreChecked(t *testing.T) {
	now := time.Now()
	a, other, key := authority.NewAt(t, now.AddDate(-1, 0, 0)), authority.NewAt(t, now.AddDate(-1, 0, 0)), testKey(t)
	good := a.CertificateOf(publicPEM(t, key), workflow, authority.Issuer, now)
	made := func(change func(*x509.Certificate)) []byte {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), EmailAddresses: []string{"ops@example.com"},
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(authority.Issuer)}},
		}
		change(template)
		public, _ := key.signer.PublicKey()
		by, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, by)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	for _, tt := range []struct {
		text, chain []byte
		at          time.Time
		want        string
	}{
		{good, a.CAs(), now, ""},
		{good, nil, now, ""},
		{made(func(*x509.Certificate) {}), nil, now, ""},
		{a.CertificateOf(publicPEM(t, testKey(t)), workflow, authority.Issuer, now), nil, now, "of another key"},
		{good, nil, now.Add(time.Hour), "it ended at"},
		{good, nil, now.Add(-time.Hour), "it begins at"},
		{good, other.CAs(), now, "its chain: x509"},
		{good, []byte("hello"), now, "its chain: "},
		{good, []byte("\n"), now, "its chain: the file has no certificate"},
		{a.CAs(), nil, now, "2 certificates"},
		{nil, nil, now, "0 certificates"},
		{publicPEM(t, key), nil, now, "x509"},
		{made(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), nil, now, "not for signing code"},
		{made(func(c *x509.Certificate) { c.EmailAddresses = nil }), nil, now, "names no subject"},
		{made(func(c *x509.Certificate) { c.ExtraExtensions = nil }), nil, now, "names no issuer"},
	} {
		c, err := LoadCertificate(tt.text, tt.chain, key, tt.at)
		if tt.want == "" && err == nil && c != nil {
			continue
		}
		if tt.want == "" || !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}
