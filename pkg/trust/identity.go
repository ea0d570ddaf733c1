package trust

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/in-toto/attestation/go/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// maxRoot bounds a trusted root in bytes; that of the public sigstore has 8 KiB.
const maxRoot = 1 << 20

// Identity is somebody who signs without a key of his own: an authority gave him a
// certificate for a few minutes, and a log noted what he signed with it.
type Identity struct {
	// Name is made as that of a key, and unique among keys and identities.
	Name string
	// Subject is whom the certificate is for, an address or the URI of a workflow, and
	// Issuer who told the authority so. Of each, either the text or the pattern is
	// given: a regular expression (RE2) for the whole of it.
	Subject, SubjectPattern string
	Issuer, IssuerPattern   string
	// TrustedRoot is sigstore's trusted_root.json: the authorities, logs and
	// timestamp services that count. It has at least one authority, and a log or a
	// timestamp service.
	TrustedRoot []byte
}

// identity is an Identity that was found usable.
type identity struct {
	Identity
	match verify.CertificateIdentity
	root  *trustedRoot
}

// String names an identity for a report.
func (i identity) String() string {
	return fmt.Sprintf("%s (%s from %s)", i.Name, i.Subject+i.SubjectPattern, i.Issuer+i.IssuerPattern)
}

// trustedRoot verifies what its authorities and logs vouch for. Identities that
// have the same root share one.
type trustedRoot struct {
	fingerprint string // SHA-256 of the file, in hex
	verifier    *verify.Verifier
}

// parseRoot reads a trusted root, and says what every signature under it needs: an
// entry in one of its logs and a time that a log or a timestamp service vouches
// for, or the latter alone where it has no log at all (docs/decisions/0038);
// where it has logs of certificates, the mark of one of these too. No clock
// takes part, so that a certificate counts if it was valid when it signed.
func parseRoot(raw []byte) (*trustedRoot, error) {
	if len(raw) > maxRoot {
		return nil, fmt.Errorf("the trusted root has %d bytes, the limit is %d", len(raw), maxRoot)
	}
	material, err := root.NewTrustedRootFromJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("the trusted root: %w; expected is sigstore's trusted_root.json (cosign trusted-root create)", err)
	}
	switch {
	case len(material.FulcioCertificateAuthorities()) == 0:
		return nil, errors.New("the trusted root names no certificate authority")
	case len(material.RekorLogs()) == 0 && len(material.TimestampingAuthorities()) == 0:
		return nil, errors.New("the trusted root names no transparency log and no timestamp service, so nothing could be told about when something was signed")
	}
	options := []verify.VerifierOption{verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1)}
	if len(material.RekorLogs()) == 0 {
		options = []verify.VerifierOption{verify.WithSignedTimestamps(1)}
	}
	if len(material.CTLogs()) > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	v, err := verify.NewVerifier(material, options...)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	return &trustedRoot{hex.EncodeToString(sum[:]), v}, nil
}

// parseIdentities checks the identities. taken are the names of keys.
func parseIdentities(list []Identity, taken []key) ([]identity, error) {
	names := map[string]bool{}
	for _, k := range taken {
		names[k.name] = true
	}
	roots := map[string]*trustedRoot{}
	var identities []identity
	for n, i := range list {
		fail := func(field string, err error) ([]identity, error) {
			return nil, &PolicyError{fmt.Sprintf("identities[%d]%s", n, field), err}
		}
		if err := osimage.CheckName("name", i.Name); err != nil {
			return fail("", fmt.Errorf("identity %d: %w", n+1, err))
		}
		if names[i.Name] {
			return fail(".name", fmt.Errorf("%q is there twice among keys and identities", i.Name))
		}
		names[i.Name] = true
		subject, err := checkMatch(i.Subject, i.SubjectPattern)
		if err != nil {
			return fail("", fmt.Errorf("identity %q: subject: %w", i.Name, err))
		}
		issuer, err := checkMatch(i.Issuer, i.IssuerPattern)
		if err != nil {
			return fail("", fmt.Errorf("identity %q: issuer: %w", i.Name, err))
		}
		match, err := verify.NewShortCertificateIdentity(i.Issuer, issuer, i.Subject, subject)
		if err != nil {
			return fail("", fmt.Errorf("identity %q: %w", i.Name, err))
		}
		r := roots[string(i.TrustedRoot)]
		if r == nil {
			if r, err = parseRoot(i.TrustedRoot); err != nil {
				return fail(".trustedRoot", fmt.Errorf("identity %q: %w", i.Name, err))
			}
			roots[string(i.TrustedRoot)] = r
		}
		identities = append(identities, identity{i, match, r})
	}
	return identities, nil
}

// checkMatch returns a pattern for the whole text; the library looks for it
// anywhere.
func checkMatch(text, pattern string) (string, error) {
	switch {
	case (text == "") == (pattern == ""):
		return "", errors.New("expected is either the text or a pattern")
	case pattern == "":
		return "", nil
	}
	// By itself first: what is no pattern alone could break out of the brackets.
	if _, err := regexp.Compile(pattern); err != nil {
		return "", err
	}
	whole := `\A(?:` + pattern + `)\z`
	re, err := regexp.Compile(whole)
	if err != nil {
		return "", err
	}
	if re.MatchString("") {
		return "", fmt.Errorf("the pattern %q fits everything or nothing; say who it is", pattern)
	}
	return whole, nil
}

// certifiedError says why an exhibit with a certificate is by none of the
// identities that were asked about.
type certifiedError struct {
	who string // whom the certificate is for, if all proofs hold
	err error  // why they do not hold
}

func (e *certifiedError) Error() string {
	if e.who != "" {
		return "one by " + e.who + ", whom the policy does not ask for"
	}
	return fmt.Sprintf("one with a certificate that proves nothing (%.200v)", e.err)
}

// signer is who made an exhibit: which identity of the policy, who exactly, and with
// which key (its fingerprint).
type signer struct {
	identity   identity
	exact, key string
}

// byIdentity finds the identity that signed. All proofs hold, under the root of the
// identity, before the certificate's subject is looked at. Errors are a
// *claimError, a *certifiedError and errUnknownKey.
func (x exhibit) byIdentity(ctx context.Context, v *Verifier, among []identity, image digest.Digest) (signer, *v1.Statement, error) {
	if x.damage != nil && len(among) > 0 {
		return signer{}, nil, &certifiedError{err: x.damage}
	}
	if !x.certified || len(among) == 0 {
		return signer{}, nil, errUnknownKey
	}
	about, err := x.artifact(image)
	if err != nil {
		return signer{}, nil, err
	}
	var reason error
	var tried []*trustedRoot
	for _, i := range among {
		if ctx.Err() != nil {
			return signer{}, nil, ctx.Err()
		}
		if slices.Contains(tried, i.root) {
			continue
		}
		tried = append(tried, i.root)
		result, err := i.root.verifier.Verify(x.entity, verify.NewPolicy(about, verify.WithoutIdentitiesUnsafe()))
		if err != nil {
			reason = &certifiedError{err: err}
			if _, err := i.root.verifier.Verify(x.entity, verify.NewPolicy(verify.WithoutArtifactUnsafe(), verify.WithoutIdentitiesUnsafe())); err == nil && x.classic == nil {
				reason = &claimError{key: "a certificate", digest: x.subject, err: errors.New("it is of another image")}
			}
			continue
		}
		key, err := v.checkCertificate(x)
		if err != nil {
			return signer{}, nil, &certifiedError{err: err}
		}
		s := result.Signature.Certificate
		for _, candidate := range among {
			if candidate.root == i.root && candidate.match.Verify(*s) == nil {
				return signer{candidate, named(s), key}, result.Statement, nil
			}
		}
		reason = &certifiedError{who: named(s)}
	}
	return signer{}, nil, reason
}

func named(s *certificate.Summary) string {
	return fmt.Sprintf("%.200s (from %.200s)", s.SubjectAlternativeName, s.Issuer)
}

// checkCertificate returns the fingerprint of the certificate's key, and refuses a key
// that the policy refuses elsewhere.
func (v *Verifier) checkCertificate(x exhibit) (fingerprint string, err error) {
	content, err := x.entity.VerificationContent()
	if err != nil {
		return "", err
	}
	pub := content.Certificate().PublicKey
	if _, err := newVerifiers(pub); err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	fingerprint = hex.EncodeToString(sum[:])
	if name, revoked := v.revoked[fingerprint]; revoked {
		return "", fmt.Errorf("its key is revoked as %s", name)
	}
	return fingerprint, nil
}
