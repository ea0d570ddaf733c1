package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/digitorus/timestamp"
)

// Services are the authority's services over HTTP on loopback, as far as a tool that
// signs asks them. They answer at the present, so the authority has to have begun.
type Services struct {
	// URL is that of the authority for certificates (Fulcio's /api/v1/signingCert) and
	// of the transparency log (Rekor's /api/v1/log/entries); Timestamps is that of the
	// timestamp service (RFC 3161, section 3.4).
	URL, Timestamps string

	a      *Authority
	mu     sync.Mutex
	tokens map[string]claims
	asked  map[string]int
}

// claims are those of an identity token (OpenID Connect Core, section 2).
type claims struct {
	Issuer  string `json:"iss"`
	Subject string `json:"sub"`
}

// Serve starts the services; they end with the test.
func (a *Authority) Serve() *Services {
	s := &Services{a: a, tokens: map[string]claims{}, asked: map[string]int{}}
	mux := http.NewServeMux()
	for path, answer := range map[string]func(*http.Request, []byte) (any, error){
		"/api/v1/signingCert": s.certify, "/api/v1/log/entries": s.log, "/timestamp": s.stamp,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, req *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.asked[path]++
			body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
			var out any
			if err == nil {
				out, err = answer(req, body)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			raw, ok := out.([]byte)
			if !ok {
				raw = a.encode(out)
				w.Header().Set("Content-Type", "application/json")
			}
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(raw) // the client says so if it gets less
		})
	}
	server := httptest.NewServer(mux)
	a.t.Cleanup(server.Close)
	s.URL, s.Timestamps = server.URL, server.URL+"/timestamp"
	return s
}

// Token is an identity token for a subject, as a JSON Web Token (RFC 7519). Nobody but
// these services believes its signature.
func (s *Services) Token(subject, issuerName string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := claims{Issuer: issuerName, Subject: subject}
	part := base64.RawURLEncoding.EncodeToString
	token := part([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + part(s.a.encode(who)) + "." + part(make([]byte, 64))
	s.tokens[token] = who
	return token
}

// Asked counts the requests to each service so far: certificates, entries, timestamps.
func (s *Services) Asked() [3]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return [3]int{s.asked["/api/v1/signingCert"], s.asked["/api/v1/log/entries"], s.asked["/timestamp"]}
}

// certify answers with a certificate for the key that is sent, for whom the token is
// about, if he shows that he has the key.
func (s *Services) certify(req *http.Request, body []byte) (any, error) {
	who, ok := s.tokens[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")]
	if !ok {
		return nil, errors.New("this token is not by the issuer")
	}
	var asked struct {
		PublicKey struct {
			Content []byte `json:"content"`
		} `json:"publicKey"`
		Proof []byte `json:"signedEmailAddress"`
	}
	if err := json.Unmarshal(body, &asked); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(asked.PublicKey.Content)
	if block == nil {
		return nil, errors.New("no public key in PEM")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	sum := sha256.Sum256([]byte(who.Subject))
	if !ok || !ecdsa.VerifyASN1(key, sum[:], asked.Proof) {
		return nil, errors.New("the subject is not signed with this key")
	}
	return append(pemOf(s.a.certificate(key, who.Subject, who.Issuer, time.Now()).Raw), s.a.CAs()...), nil
}

// proposed is what a tool wants in the log; each kind has a form of its own.
type proposed struct {
	Version string         `json:"apiVersion"`
	Kind    string         `json:"kind"`
	Spec    map[string]any `json:"spec"`
}

// log answers with an entry, the log's promise and the proof of inclusion.
func (s *Services) log(_ *http.Request, body []byte) (any, error) {
	var p proposed
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, err
	}
	switch p.Kind {
	case "hashedrekord":
	case "dsse":
		if err := p.canonical(); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("entries of kind %q are not kept", p.Kind)
	}
	type m = map[string]any
	e := s.a.record(p.Kind, s.a.encode(p), time.Now(), Choice{})
	return m{hex.EncodeToString(e.rootHash): m{
		"body": b64(e.body), "integratedTime": e.at, "logID": e.logID, "logIndex": 0,
		"verification": m{
			"signedEntryTimestamp": b64(e.promise),
			"inclusionProof":       m{"checkpoint": e.checkpoint, "hashes": []string{}, "logIndex": 0, "rootHash": hex.EncodeToString(e.rootHash), "treeSize": 1},
		},
	}}, nil
}

// canonical replaces an envelope by what Rekor keeps of one: its hashes and signatures.
func (p *proposed) canonical() error {
	raw, err := json.Marshal(p.Spec["proposedContent"])
	if err != nil {
		return err
	}
	var content struct {
		Envelope  string   `json:"envelope"`
		Verifiers [][]byte `json:"verifiers"`
	}
	var envelope struct {
		Payload    []byte `json:"payload"`
		Signatures []struct {
			Sig string `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &content); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(content.Envelope), &envelope); err != nil {
		return err
	}
	if len(content.Verifiers) != 1 || len(envelope.Signatures) != 1 {
		return errors.New("expected one signature and who made it")
	}
	hash := func(data []byte) map[string]any {
		sum := sha256.Sum256(data)
		return map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}
	}
	p.Spec = map[string]any{
		"envelopeHash": hash([]byte(content.Envelope)), "payloadHash": hash(envelope.Payload),
		"signatures": []map[string]any{{"signature": envelope.Signatures[0].Sig, "verifier": b64(content.Verifiers[0])}},
	}
	return nil
}

// stamp answers a request for a timestamp.
func (s *Services) stamp(_ *http.Request, body []byte) (any, error) {
	asked, err := timestamp.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	t := timestamp.Timestamp{
		HashAlgorithm: asked.HashAlgorithm, HashedMessage: asked.HashedMessage, Time: time.Now(), Nonce: asked.Nonce,
		Policy: asn1.ObjectIdentifier{1, 2, 3, 4, 1}, AddTSACertificate: asked.Certificates,
	}
	return t.CreateResponseWithOpts(s.a.stamp.cert, s.a.stamp.key, crypto.SHA256)
}
