package publish

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature"
)

func TestLoadKey(t *testing.T) {
	secret, _, err := GenerateKeyPair([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	open, public, err := GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	nobody := errors.New("there is no terminal")
	answer := func(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }
	asked := func() ([]byte, error) { t.Error("asked for a password that is not needed"); return nil, nobody }
	for _, tt := range []struct {
		name     string
		text     []byte
		password func() ([]byte, error)
		want     error
		say      string
	}{
		{"the right password", secret, answer("correct horse"), nil, ""},
		{"the wrong password", secret, answer("battery"), ErrPassword, "wrong password"},
		{"no password", secret, answer(""), ErrPassword, "wrong password"},
		{"nobody to ask", secret, nil, ErrPassword, "wrong password"},
		{"asking fails", secret, func() ([]byte, error) { return nil, nobody }, nobody, "asking"},
		{"an empty password", open, asked, nil, ""},
		{"no PEM", []byte("x"), asked, ErrKey, "no PEM"},
		{"a public key", public, asked, ErrKey, "PUBLIC KEY"},
		{"a plain private key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}), asked, ErrKey, "import-key-pair"},
		{"a damaged key", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: []byte("{")}), asked, ErrKey, "damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := LoadKey(tt.text, tt.password)
			if tt.want == nil {
				if err != nil || key == nil {
					t.Errorf("error = %v", err)
				}
				return
			}
			if !errors.Is(err, ErrKey) || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.say) || key != nil {
				t.Errorf("error = %v, want %v with %q", err, tt.want, tt.say)
			}
			if strings.Contains(err.Error(), "correct horse") || strings.Contains(err.Error(), "battery") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

// A machine's policy takes no such key, so nothing should be signed with one.
func TestLoadKeyRefusesOtherCurves(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := signature.LoadECDSASignerVerifier(private, crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkKind(signer); err == nil || !strings.Contains(err.Error(), "P-384; machines know P-256") {
		t.Errorf("error = %v", err)
	}
}

func TestSignNeedsAKey(t *testing.T) {
	dir := threePacks(t)
	for _, key := range []*Key{nil, {}} {
		if _, err := Sign(t.Context(), dir, key, Options{}); !errors.Is(err, ErrKey) {
			t.Errorf("error = %v", err)
		}
	}
}
