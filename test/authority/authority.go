// Package authority plays the services of a keyless signature for tests: a
// certificate authority, a log of certificates, a transparency log and a timestamp
// service: in memory at any time that a test names, and over HTTP for a tool that signs.
//
// The formats are written out by hand, so that a change of the libraries that read
// them shows: sigstore's trusted root and bundle (protobuf-specs), Rekor's log
// entries and checkpoints, RFC 6962 (certificate timestamps), RFC 3161 (timestamps).
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
)

// Issuer is who tells the authority whom a certificate is for.
const Issuer = "https://issuer.example.com"

// Authority is all services together.
type Authority struct {
	t          testing.TB
	root, ca   issuer
	stamp      issuer
	log, ctlog *ecdsa.PrivateKey
	begin      time.Time
}

type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an authority whose services began in 2026 and last until 2036.
func New(t testing.TB) *Authority {
	t.Helper()
	return NewAt(t, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
}

// NewAt makes one whose services began at a time and last ten years.
func NewAt(t testing.TB, begin time.Time) *Authority {
	t.Helper()
	a := &Authority{t: t, begin: begin, log: newKey(t), ctlog: newKey(t)}
	a.root = a.issue("root", issuer{}, true, nil)
	a.ca = a.issue("certificates", a.root, true, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning})
	a.stamp = a.issue("timestamps", a.root, false, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping})
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *Authority) issue(name string, by issuer, ca bool, usage []x509.ExtKeyUsage) issuer {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name, Organization: []string{"example.com"}},
		NotBefore: a.begin, NotAfter: a.begin.AddDate(10, 0, 0), BasicConstraintsValid: true, IsCA: ca, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, usage
	} else {
		// RFC 3161 wants the purpose to be critical, which the library does not set.
		purpose, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
		a.must(err)
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: purpose}}
	}
	if by.cert == nil {
		by = issuer{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	a.must(err)
	cert, err := x509.ParseCertificate(der)
	a.must(err)
	return issuer{cert, key}
}

func (a *Authority) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func b64(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

func (a *Authority) public(key *ecdsa.PrivateKey) (der, id []byte) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	a.must(err)
	sum := sha256.Sum256(der)
	return der, sum[:]
}

// TrustedRoot is the file that a policy names. The parts that are named in without
// (certificateAuthorities, tlogs, ctlogs, timestampAuthorities) are left out.
func (a *Authority) TrustedRoot(without ...string) []byte {
	a.t.Helper()
	type m = map[string]any
	valid := m{"start": a.begin.Format(time.RFC3339)}
	logged := func(key *ecdsa.PrivateKey, name string) []m {
		der, id := a.public(key)
		return []m{{
			"baseUrl": "https://" + name, "hashAlgorithm": "SHA2_256", "logId": m{"keyId": b64(id)},
			"publicKey": m{"rawBytes": b64(der), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid},
		}}
	}
	chain := func(certs ...*x509.Certificate) []m {
		var list []m
		for _, c := range certs {
			list = append(list, m{"rawBytes": b64(c.Raw)})
		}
		return []m{{
			"subject": m{"organization": "example.com", "commonName": "test"}, "uri": "https://ca.example.com",
			"certChain": m{"certificates": list}, "validFor": valid,
		}}
	}
	root := m{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"tlogs":     logged(a.log, logName), "ctlogs": logged(a.ctlog, "ct.example.com"),
		"certificateAuthorities": chain(a.ca.cert, a.root.cert), "timestampAuthorities": chain(a.stamp.cert, a.root.cert),
	}
	for _, part := range without {
		delete(root, part)
	}
	return a.encode(root)
}

// TrustedRootWith is the trusted root with one part of another authority.
func (a *Authority) TrustedRootWith(part string, other *Authority) []byte {
	a.t.Helper()
	var ours, theirs map[string]any
	a.must(json.Unmarshal(a.TrustedRoot(), &ours))
	a.must(json.Unmarshal(other.TrustedRoot(), &theirs))
	ours[part] = theirs[part]
	return a.encode(ours)
}

// CAs is the authority's chain in PEM, root last.
func (a *Authority) CAs() []byte {
	return append(pemOf(a.ca.cert.Raw), pemOf(a.root.cert.Raw)...)
}

// LogKey is the public key of the transparency log in PEM.
func (a *Authority) LogKey() []byte { return a.publicPEM(a.log) }

// CertificateLogKey is that of the log of certificates.
func (a *Authority) CertificateLogKey() []byte { return a.publicPEM(a.ctlog) }

func (a *Authority) publicPEM(key *ecdsa.PrivateKey) []byte {
	der, _ := a.public(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *Authority) encode(v any) []byte {
	raw, err := json.Marshal(v)
	a.must(err)
	return raw
}

const logName = "log.example.com"

// Signer holds a certificate and its key.
type Signer struct {
	a    *Authority
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	at   time.Time
}

// Choice changes what a Signer's bundles have; the zero value is all that is right.
type Choice struct {
	// At is when it signs; zero is a minute after the certificate began.
	At time.Time
	// WithoutLog and WithoutStamp leave these proofs out.
	WithoutLog, WithoutStamp bool
	// OtherEntry puts the log's entry of another signature there.
	OtherEntry bool
	// DamagedProof alters the proof of inclusion, DamagedPromise the log's promise.
	DamagedProof, DamagedPromise bool
	// WithoutPromise leaves the log's promise out, and with it the time that the log
	// vouches for. DamagedStamp is a timestamp of another signature.
	WithoutPromise, DamagedStamp bool
	// OtherLog and OtherStamp sign with keys that the trusted root does not name.
	OtherLog, OtherStamp bool
}

// Certify makes a certificate for an address or a URI, valid for ten minutes from a
// moment on.
func (a *Authority) Certify(subject, issuerName string, at time.Time) Signer {
	a.t.Helper()
	key := newKey(a.t)
	return Signer{a, a.certificate(&key.PublicKey, subject, issuerName, at), key, at}
}

// certificate is one for any key.
func (a *Authority) certificate(key *ecdsa.PublicKey, subject, issuerName string, at time.Time) *x509.Certificate {
	a.t.Helper()
	name, err := asn1.Marshal(issuerName)
	a.must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(at.Unix()), NotBefore: at, NotAfter: at.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		// Fulcio's extension "issuer", in its first and its second form.
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuerName)},
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: name},
		},
	}
	if u, err := url.Parse(subject); err == nil && u.Scheme != "" {
		template.URIs = []*url.URL{u}
	} else {
		template.EmailAddresses = []string{subject}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca.cert, key, a.ca.key)
	a.must(err)
	unmarked, err := x509.ParseCertificate(der)
	a.must(err)
	template.ExtraExtensions = append(template.ExtraExtensions, a.mark(unmarked.RawTBSCertificate, at))
	der, err = x509.CreateCertificate(rand.Reader, template, a.ca.cert, key, a.ca.key)
	a.must(err)
	cert, err := x509.ParseCertificate(der)
	a.must(err)
	return cert
}

// mark is the extension with the timestamp of the log of certificates (RFC 6962,
// section 3.2), over a certificate without it.
func (a *Authority) mark(tbs []byte, at time.Time) pkix.Extension {
	_, id := a.public(a.ctlog)
	spki := sha256.Sum256(a.ca.cert.RawSubjectPublicKeyInfo)
	moment := binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))
	signed := append([]byte{0, 0}, moment...)         // version 1, a certificate's timestamp
	signed = append(append(signed, 0, 1), spki[:]...) // of a certificate before it is marked
	signed = append(signed, byte(len(tbs)>>16), byte(len(tbs)>>8), byte(len(tbs)))
	signed = append(append(signed, tbs...), 0, 0) // no extensions
	sig := a.sign(a.ctlog, signed)
	stamp := append(append([]byte{0}, id...), moment...)
	stamp = append(stamp, 0, 0, 4, 3) // no extensions; SHA-256, ECDSA
	stamp = append(binary.BigEndian.AppendUint16(stamp, uint16(len(sig))), sig...)
	list := append(binary.BigEndian.AppendUint16(nil, uint16(len(stamp))), stamp...)
	list = append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)
	value, err := asn1.Marshal(list)
	a.must(err)
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: value}
}

func (a *Authority) sign(key *ecdsa.PrivateKey, message []byte) []byte {
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	a.must(err)
	return sig
}

// entry is an entry of the transparency log.
type entry struct {
	body                    []byte
	at                      int64
	promise                 []byte
	rootHash                []byte
	checkpoint, kind, logID string
	logKey                  []byte
}

// record puts a body into the log, at a time. The log has this one entry.
func (a *Authority) record(kind string, body []byte, at time.Time, c Choice) entry {
	key := a.log
	if c.OtherLog {
		key = newKey(a.t)
	}
	_, id := a.public(a.log)
	e := entry{body: body, at: at.Unix(), kind: kind, logID: hex.EncodeToString(id), logKey: id}
	e.promise = a.sign(key, a.encode(map[string]any{"body": b64(body), "integratedTime": e.at, "logID": e.logID, "logIndex": 0}))
	if c.DamagedPromise {
		e.at++
	}
	sum := sha256.Sum256(append([]byte{0}, body...))
	e.rootHash = sum[:]
	text := fmt.Sprintf("%s - 1\n1\n%s\n", logName, b64(e.rootHash))
	_, keyID := a.public(key)
	note := b64(append(keyID[:4:4], a.sign(key, []byte(text))...))
	e.checkpoint = fmt.Sprintf("%s\n— %s %s\n", text, logName, note)
	if c.DamagedProof {
		e.rootHash[0] ^= 1
	}
	return e
}

// stampOf is a timestamp service's answer about a signature.
func (a *Authority) stampOf(sig []byte, at time.Time, c Choice) []byte {
	by := a.stamp
	if c.OtherStamp {
		by = New(a.t).stamp
	}
	if c.DamagedStamp {
		sig = []byte("another signature")
	}
	sum := sha256.Sum256(sig)
	t := timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: at, Policy: asn1.ObjectIdentifier{1, 2, 3, 4, 1},
		AddTSACertificate: true,
	}
	raw, err := t.CreateResponseWithOpts(by.cert, by.key, crypto.SHA256)
	a.must(err)
	return raw
}

func (s Signer) moment(c Choice) time.Time {
	if c.At.IsZero() {
		return s.at.Add(time.Minute)
	}
	return c.At
}

// PublicKey is the signer's key in PEM.
func (s Signer) PublicKey() []byte { return s.a.publicPEM(s.key) }

// Certificate is the signer's certificate in PEM.
func (s Signer) Certificate() []byte { return pemOf(s.cert.Raw) }

// Bundle signs a statement and packs it with its proofs into a sigstore bundle.
func (s Signer) Bundle(statement []byte, c Choice) []byte {
	a := s.a
	a.t.Helper()
	type m = map[string]any
	const payloadType = "application/vnd.in-toto+json"
	pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement)
	sig := a.sign(s.key, []byte(pae))
	envelope := m{"payloadType": payloadType, "payload": b64(statement), "signatures": []m{{"sig": b64(sig)}}}
	logged := sig
	if c.OtherEntry {
		logged = a.sign(s.key, []byte("something else"))
	}
	payload, whole := sha256.Sum256(statement), sha256.Sum256(a.encode(envelope))
	body := a.encode(m{"apiVersion": "0.0.1", "kind": "dsse", "spec": m{
		"envelopeHash": m{"algorithm": "sha256", "value": hex.EncodeToString(whole[:])},
		"payloadHash":  m{"algorithm": "sha256", "value": hex.EncodeToString(payload[:])},
		"signatures":   []m{{"signature": b64(logged), "verifier": b64(s.Certificate())}},
	}})
	material := m{"certificate": m{"rawBytes": b64(s.cert.Raw)}}
	if !c.WithoutLog {
		e := a.record("dsse", body, s.moment(c), c)
		logEntry := m{
			"logIndex": "0", "logId": m{"keyId": b64(e.logKey)}, "kindVersion": m{"kind": e.kind, "version": "0.0.1"},
			"integratedTime": fmt.Sprint(e.at), "inclusionPromise": m{"signedEntryTimestamp": b64(e.promise)},
			"inclusionProof":    m{"logIndex": "0", "rootHash": b64(e.rootHash), "treeSize": "1", "checkpoint": m{"envelope": e.checkpoint}},
			"canonicalizedBody": b64(e.body),
		}
		if c.WithoutPromise {
			delete(logEntry, "inclusionPromise")
			delete(logEntry, "integratedTime")
		}
		material["tlogEntries"] = []m{logEntry}
	}
	if !c.WithoutStamp {
		material["timestampVerificationData"] = m{"rfc3161Timestamps": []m{{"signedTimestamp": b64(a.stampOf(sig, s.moment(c), c))}}}
	}
	return a.encode(m{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": material, "dsseEnvelope": envelope})
}

// Classic signs a payload as cosign's first form does: the signature in base64, and
// the annotations with its proofs.
func (s Signer) Classic(payload []byte, c Choice) (signature string, annotations map[string]string) {
	a := s.a
	a.t.Helper()
	type m = map[string]any
	sig := a.sign(s.key, payload)
	logged := sig
	if c.OtherEntry {
		logged = a.sign(s.key, []byte("something else"))
	}
	sum := sha256.Sum256(payload)
	body := a.encode(m{"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": m{
		"data":      m{"hash": m{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
		"signature": m{"content": b64(logged), "publicKey": m{"content": b64(s.Certificate())}},
	}})
	annotations = map[string]string{
		"dev.cosignproject.cosign/signature": b64(sig),
		"dev.sigstore.cosign/certificate":    string(s.Certificate()), "dev.sigstore.cosign/chain": string(a.CAs()),
	}
	if !c.WithoutLog {
		e := a.record("hashedrekord", body, s.moment(c), c)
		annotations["dev.sigstore.cosign/bundle"] = string(a.encode(m{"SignedEntryTimestamp": b64(e.promise), "Payload": m{
			"body": b64(e.body), "integratedTime": e.at, "logIndex": 0, "logID": e.logID,
		}}))
	}
	if !c.WithoutStamp {
		annotations["dev.sigstore.cosign/rfc3161timestamp"] = string(a.encode(m{"SignedRFC3161Timestamp": b64(a.stampOf(sig, s.moment(c), c))}))
	}
	return b64(sig), annotations
}

// Statement is an in-toto statement of a type about an image; predicate is JSON, or
// empty for none.
func Statement(predicateType, digest, predicate string) []byte {
	if predicate != "" {
		predicate = `,"predicate":` + predicate
	}
	return []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + strings.TrimPrefix(digest, "sha256:") +
		`"}}],"predicateType":"` + predicateType + `"` + predicate + `}`)
}
