package publish

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	cosignbundle "github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/mutate"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// ErrCertificate says that a certificate cannot go with a signature.
var ErrCertificate = errors.New("unusable certificate")

// Certificate says whose a key is. It lies beside the signatures of that key.
type Certificate struct {
	leaf *x509.Certificate
	// text and chain are the certificate and those of its authority in PEM, as cosign
	// writes them.
	text, chain []byte
}

// LoadCertificate reads the certificate of a key, in PEM, and those of the authority that
// gave it, the root last. The chain may be empty: then who gave it is not looked at.
//
// It refuses what no machine would accept: a certificate of another key, one that is not
// valid at the time, not made for signing, or that names no subject or no issuer. The
// error wraps ErrCertificate.
func LoadCertificate(text, chain []byte, key *Key, now time.Time) (*Certificate, error) {
	list, err := cryptoutils.UnmarshalCertificatesFromPEM(text)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("the file has %d certificates in PEM, expected is one; those of the authority are the chain", len(list))
	}
	if err == nil {
		err = checkLeaf(list[0], key, now)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	c := &Certificate{leaf: list[0]}
	if c.text, err = cryptoutils.MarshalCertificateToPEM(c.leaf); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if len(chain) == 0 {
		return c, nil
	}
	if c.chain, err = checkChain(c.leaf, chain, now); err != nil {
		return nil, fmt.Errorf("%w: its chain: %w", ErrCertificate, err)
	}
	return c, nil
}

// checkLeaf holds a certificate against its key and the time.
func checkLeaf(leaf *x509.Certificate, key *Key, now time.Time) error {
	public, err := key.signer.PublicKey()
	if err != nil {
		return err
	}
	if err := cryptoutils.EqualKeys(public, leaf.PublicKey); err != nil {
		return errors.New("it is of another key")
	}
	switch {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("it begins at %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("it ended at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if use := leaf.ExtKeyUsage; len(use) > 0 && !slices.Contains(use, x509.ExtKeyUsageCodeSigning) && !slices.Contains(use, x509.ExtKeyUsageAny) {
		return errors.New("it is not for signing code")
	}
	who, err := certificate.SummarizeCertificate(leaf)
	if err != nil || who.SubjectAlternativeName == "" {
		return errors.New("it names no subject: expected is an address or a URI as an alternative name")
	}
	if who.Issuer == "" {
		return errors.New("it names no issuer: expected is the extension 1.3.6.1.4.1.57264.1.8")
	}
	return nil
}

// checkChain verifies that a chain leads from the certificate to its last one.
func checkChain(leaf *x509.Certificate, text []byte, now time.Time) ([]byte, error) {
	list, err := cryptoutils.UnmarshalCertificatesFromPEM(text)
	if err == nil && len(list) == 0 {
		err = errors.New("the file has no certificate in PEM")
	}
	if err != nil {
		return nil, err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range list[:len(list)-1] {
		between.AddCert(c)
	}
	roots.AddCert(list[len(list)-1])
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}); err != nil {
		return nil, err
	}
	return cryptoutils.MarshalCertificatesToPEM(list)
}

// certify puts certificate and timestamp beside a classic signature.
func (o Options) certify(ctx context.Context, sig oci.Signature) (oci.Signature, error) {
	if o.Certificate == nil {
		return sig, nil
	}
	raw, err := sig.Signature()
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	beside := []mutate.SignatureOption{mutate.WithCertChain(o.Certificate.text, o.Certificate.chain)}
	stamp, err := o.timestamp(ctx, raw)
	if err != nil {
		return nil, err
	}
	if stamp != nil {
		beside = append(beside, mutate.WithRFC3161Timestamp(cosignbundle.TimestampToRFC3161Timestamp(stamp)))
	}
	return mutate.Signature(sig, beside...)
}

// sameProofs are the classic signatures of a set beside which there is all that the
// options ask for.
type sameProofs struct {
	oci.Signatures
	o Options
}

// Get implements oci.Signatures.
func (p sameProofs) Get() ([]oci.Signature, error) {
	list, err := p.Signatures.Get()
	if err != nil || p.o.Certificate == nil {
		return list, err
	}
	var same []oci.Signature
	for _, sig := range list {
		have, err := sig.Annotations()
		if err != nil {
			return nil, err
		}
		stamped := have[static.RFC3161TimestampAnnotationKey] != "" || p.o.Timestamps == ""
		if stamped && have[static.CertificateAnnotationKey] == string(p.o.Certificate.text) {
			same = append(same, sig)
		}
	}
	return same, nil
}

// proven reports whether a bundle has the certificate and the timestamp that the options
// ask for.
func (o Options) proven(bundle []byte) bool {
	var b struct {
		Material struct {
			Certificate struct {
				RawBytes []byte `json:"rawBytes"`
			} `json:"certificate"`
			Times struct {
				RFC3161 []json.RawMessage `json:"rfc3161Timestamps"`
			} `json:"timestampVerificationData"`
		} `json:"verificationMaterial"`
	}
	if json.Unmarshal(bundle, &b) != nil {
		return false
	}
	// A bundle with a certificate is no signature by key, so that one is another.
	var want []byte
	if o.Certificate != nil {
		want = o.Certificate.leaf.Raw
	}
	return bytes.Equal(b.Material.Certificate.RawBytes, want) && (o.Timestamps == "" || len(b.Material.Times.RFC3161) > 0)
}
