package trust_test

import (
	"context"
	"encoding/base64"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
)

// A digest that is no image is judged by the only rule of a verifier, as strictly as
// an image; a verifier of several rules, or of none, judges nothing.
func TestVerifyDigest(t *testing.T) {
	d := digest.FromString("statement")
	one, two := ecdsaPair(t), ecdsaPair(t)
	keys := []trust.Key{{Name: "one", PEM: one.pem}, {Name: "two", PEM: two.pem, NotAfter: time.Unix(2_000_000_000, 0)}}
	rule := trust.PolicyRule{Name: "channel", Keys: []string{"one", "two"}, Threshold: 2}
	v := policyVerifier(t, trust.Policy{Keys: keys, Rules: []trust.PolicyRule{rule}}).Under(trust.Circumstances{Now: time.Unix(1_900_000_000, 0)})
	made := time.Unix(1_900_000_000, 0)
	for name, tt := range map[string]struct {
		made time.Time
		sigs []osimage.Signature
		rule trust.Rule
	}{
		"two keys":         {made, []osimage.Signature{one.sign(t, payloadFor(d)), two.sign(t, payloadFor(d))}, ""},
		"one key twice":    {made, []osimage.Signature{one.sign(t, payloadFor(d)), one.sign(t, payloadFor(d))}, trust.Threshold},
		"none":             {made, nil, trust.Unsigned},
		"of another":       {made, []osimage.Signature{one.sign(t, payloadFor(digest.FromString("x")))}, trust.OtherImage},
		"made after a key": {time.Unix(2_100_000_000, 0), []osimage.Signature{one.sign(t, payloadFor(d)), two.sign(t, payloadFor(d))}, trust.Threshold},
		"a garbled one":    {made, []osimage.Signature{{Payload: []byte("{}"), Base64: base64.StdEncoding.EncodeToString([]byte("x"))}}, trust.UnknownKey},
		"far too many":     {made, make([]osimage.Signature, osimage.MaxSignatures+1), trust.TooMany},
	} {
		got, err := v.VerifyDigest(context.Background(), d, tt.made, tt.sigs)
		var refusal *trust.Refusal
		switch {
		case tt.rule == "" && (err != nil || got != "one, two"):
			t.Errorf("%s: %q, %v", name, got, err)
		case tt.rule != "" && (!errors.As(err, &refusal) || refusal.Rule != tt.rule || got != ""):
			t.Errorf("%s: %q, %v, want a refusal by %s", name, got, err, tt.rule)
		}
	}
	revoked := policyVerifier(t, trust.Policy{Keys: keys, Revoked: trust.Revoked{Digests: []digest.Digest{d}}})
	if _, err := revoked.VerifyDigest(context.Background(), d, made, []osimage.Signature{one.sign(t, payloadFor(d))}); !errors.As(err, new(*trust.Refusal)) {
		t.Errorf("a revoked statement: %v", err)
	}
	other := rule
	other.Name = "more"
	several := policyVerifier(t, trust.Policy{Keys: keys, Rules: []trust.PolicyRule{rule, other}})
	for _, v := range []*trust.Verifier{several, nil, {}} {
		if _, err := v.VerifyDigest(context.Background(), d, made, []osimage.Signature{one.sign(t, payloadFor(d))}); !errors.Is(err, trust.ErrPolicy) {
			t.Errorf("error = %v, want ErrPolicy", err)
		}
	}
}

func policyVerifier(t *testing.T, p trust.Policy) *trust.Verifier {
	t.Helper()
	v, err := trust.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
