package authority

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"time"
)

// CertificateOf is a certificate in PEM for a key that somebody else has, which is given
// in PEM; else it is as that of Certify.
func (a *Authority) CertificateOf(public []byte, subject, issuerName string, at time.Time) []byte {
	a.t.Helper()
	block, _ := pem.Decode(public)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	a.must(err)
	return pemOf(a.certificate(key.(*ecdsa.PublicKey), subject, issuerName, at).Raw) //nolint:forcetypeassert // a test's own
}

// Timestampers is the chain of the timestamp service in PEM, root last.
func (a *Authority) Timestampers() []byte {
	return append(pemOf(a.stamp.cert.Raw), pemOf(a.root.cert.Raw)...)
}
