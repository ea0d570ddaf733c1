package trust

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
)

// VerifyDigest decides about something small that is no image, as the statement of a
// channel: whether enough different keys of the policy's only rule signed the digest
// of its manifest. made is when it says it was made, against which the ends of keys are
// held too. It returns the names of the keys. A refusal is a *Refusal.
func (v *Verifier) VerifyDigest(ctx context.Context, d digest.Digest, made time.Time, sigs []osimage.Signature) (keys string, err error) {
	if v == nil || len(v.rules) != 1 {
		return "", fmt.Errorf("%w: the verifier is not one of a single rule", ErrPolicy)
	}
	hash, err := v1.NewHash(d.String())
	if err != nil {
		return "", fmt.Errorf("verifying signatures of %s: %w", d, err)
	}
	j := judgement{digest: d, created: made, rule: &v.rules[0]}
	switch n := len(sigs); {
	case v.digests[d]:
		return "", refuseRevoked(d)
	case n == 0 || n > osimage.MaxSignatures:
		return "", j.rule.refuseCount(d, n)
	}
	if err := v.count(ctx, &j, hash, readAll(sigs, &j.found), false); err != nil {
		return "", fmt.Errorf("verifying signatures of %s: %w", d, err)
	}
	if len(j.found.counted) < j.rule.threshold {
		return "", j.rule.refuse(d, j.found)
	}
	return strings.Join(voucherNames(j.found.counted), ", "), nil
}

// MatchRepository reports whether a pattern as in a rule is for a repository, host and
// path. An unusable pattern is for none; CheckPattern says why.
func MatchRepository(pattern, repository string) bool {
	return pattern != "" && repository != "" && checkPattern(pattern) == nil && matchRepository(pattern, repository)
}
