package publish

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Key is an opened private key.
type Key struct {
	signer signature.SignerVerifier
}

// LoadKey opens the content of a cosign.key file, as made by
// `cosign generate-key-pair` or `cosign import-key-pair`: an ECDSA P-256, RSA or
// Ed25519 key, encrypted, possibly with an empty password. password is asked
// only if the empty one does not open it; nil means that there is nobody to ask.
//
// The error wraps ErrKey, and ErrPassword too if that was the reason.
func LoadKey(text []byte, password func() ([]byte, error)) (*Key, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: it is no PEM; expected the content of a cosign.key file", ErrKey)
	}
	if block.Type != cosign.CosignPrivateKeyPemType && block.Type != cosign.SigstorePrivateKeyPemType {
		return nil, fmt.Errorf("%w: it is a PEM of type %q; make a cosign key of it with `cosign import-key-pair --key FILE`", ErrKey, block.Type)
	}
	if !json.Valid(block.Bytes) { // the envelope of the encryption
		return nil, fmt.Errorf("%w: the file is damaged", ErrKey)
	}
	signer, err := open(text, nil)
	if err != nil && password != nil {
		var secret []byte
		if secret, err = password(); err != nil {
			return nil, fmt.Errorf("%w: asking for the password: %w", ErrKey, err)
		}
		signer, err = open(text, secret)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w (%w)", ErrKey, ErrPassword, err)
	}
	if err := checkKind(signer); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Key{signer}, nil
}

// open decrypts a key. The empty list of options makes an Ed25519 key sign
// plainly: cosign's default is Ed25519ph, which cosign verify does not accept
// for images (docs/decisions/0031).
func open(text, password []byte) (signature.SignerVerifier, error) {
	return cosign.LoadPrivateKey(text, password, &[]signature.LoadOption{})
}

// checkKind refuses keys that no policy of a machine accepts.
func checkKind(signer signature.SignerVerifier) error {
	public, err := signer.PublicKey()
	if err != nil {
		return err
	}
	switch k := public.(type) {
	case *rsa.PublicKey, ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
		return fmt.Errorf("ECDSA on %s; machines know P-256", k.Curve.Params().Name)
	}
	return fmt.Errorf("key of type %T; machines know ECDSA P-256, RSA and Ed25519", public)
}

// GenerateKeyPair makes an ECDSA P-256 key pair in the form of
// `cosign generate-key-pair`: the content of a cosign.key and of a cosign.pub
// file. The password may be empty.
func GenerateKeyPair(password []byte) (private, public []byte, err error) {
	pair, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return nil, nil, fmt.Errorf("generating a key pair: %w", err)
	}
	return pair.PrivateBytes, pair.PublicBytes, nil
}
