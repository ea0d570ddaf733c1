package trust_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/trust"
)

func TestNewRefuses(t *testing.T) {
	good, second := ecdsaPair(t), ecdsaPair(t)
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	damaged := bytes.Replace(good.pem, []byte("MFkw"), []byte("MF!!"), 1)
	for _, tt := range []struct {
		name string
		keys []trust.Key
		want string
	}{
		{"no key", nil, "names no key"},
		{"no name", []trust.Key{{PEM: good.pem}}, "key 1: name"},
		{"a name that could be a path", []trust.Key{{Name: "../x", PEM: good.pem}}, `"../x"`},
		{"the same name", []trust.Key{{Name: "k", PEM: good.pem}, {Name: "k", PEM: second.pem}}, `two keys are named "k"`},
		{"the same key", []trust.Key{{Name: "k", PEM: good.pem}, {Name: "l", PEM: append([]byte("\n"), good.pem...)}}, `"k" and "l" are the same key`},
		{"empty", []trust.Key{{Name: "k", PEM: []byte(" \n")}}, "it is empty"},
		{"no PEM", []trust.Key{{Name: "k", PEM: []byte("ssh-ed25519 AAAA")}}, "no PEM"},
		{"text before the PEM", []trust.Key{{Name: "k", PEM: append([]byte("key:\n"), good.pem...)}}, "no PEM"},
		{"two blocks", []trust.Key{{Name: "k", PEM: append(slices.Clone(good.pem), second.pem...)}}, "more than one PEM block"},
		{"a damaged block and a good one", []trust.Key{{Name: "k", PEM: append(damaged, second.pem...)}}, "more than one PEM block"},
		{"text after the PEM", []trust.Key{{Name: "k", PEM: append(slices.Clone(good.pem), "x"...)}}, "more than one PEM block"},
		{"a private key", []trust.Key{{Name: "k", PEM: block("ENCRYPTED SIGSTORE PRIVATE KEY", []byte("{}"))}}, "private key; keep that off the machine"},
		{"a certificate", []trust.Key{{Name: "k", PEM: block("CERTIFICATE", []byte("x"))}}, "it is a certificate"},
		{"an unknown block", []trust.Key{{Name: "k", PEM: block("PGP", []byte("x"))}}, "PGP"},
		{"garbage", []trust.Key{{Name: "k", PEM: block("PUBLIC KEY", []byte("x"))}}, "asn1"},
		{"a short RSA key", []trust.Key{{Name: "k", PEM: rsaPair(t, 1024).pem}}, "weak"},
		{"another curve", []trust.Key{{Name: "k", PEM: newPair(t, ecdsaKey(t, elliptic.P384())).pem}}, "P-384; known is P-256"},
		{"a second key at fault", []trust.Key{{Name: "k", PEM: good.pem}, {Name: "bad", PEM: nil}}, `key "bad"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := trust.New(trust.Policy{Keys: tt.keys})
			if !errors.Is(err, trust.ErrPolicy) || !strings.Contains(err.Error(), tt.want) || v != nil {
				t.Errorf("New = %v, %v; want ErrPolicy with %q", v, err, tt.want)
			}
		})
	}
}

func TestNewAcceptsPKCS1(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&k.PublicKey)})
	if _, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "k", PEM: text}}}); err != nil {
		t.Error(err)
	}
}
