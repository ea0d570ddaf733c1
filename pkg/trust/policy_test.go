package trust_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore/pkg/signature"
)

func named(name string, p pair) trust.Key { return trust.Key{Name: name, PEM: p.pem} }

func made(t testing.TB, p trust.Policy) *trust.Verifier {
	t.Helper()
	v, err := trust.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestNewRefusesRules(t *testing.T) {
	a, b := named("a", ecdsaPair(t)), named("b", ecdsaPair(t))
	late := a
	late.NotBefore, late.NotAfter = time.Unix(2, 0), time.Unix(1, 0)
	rules := func(r ...trust.PolicyRule) trust.Policy { return trust.Policy{Keys: []trust.Key{a, b}, Rules: r} }
	for _, tt := range []struct {
		name, field, want string
		policy            trust.Policy
	}{
		{"an empty list", "rules", "no image would be accepted", trust.Policy{Keys: []trust.Key{a}, Rules: []trust.PolicyRule{}}},
		{"no name", "rules[0]", "rule 1: name", rules(trust.PolicyRule{Keys: []string{"a"}})},
		{"a name twice", "rules[1].name", `two rules are named "r"`, rules(trust.PolicyRule{Name: "r", Keys: []string{"a"}}, trust.PolicyRule{Name: "r", Keys: []string{"a"}})},
		{"no keys", "rules[0]", "names no keys", rules(trust.PolicyRule{Name: "r"})},
		{"an unknown key", "rules[0].keys[1]", `no key is named "c"; there are a, b`, rules(trust.PolicyRule{Name: "r", Keys: []string{"a", "c"}})},
		{"a key twice", "rules[0].keys[1]", `"a" is there twice`, rules(trust.PolicyRule{Name: "r", Keys: []string{"a", "a"}, Threshold: 2})},
		{"a threshold that cannot be met", "rules[0].threshold", "3 of 2 keys; allowed are 1 to 2", rules(trust.PolicyRule{Name: "r", Keys: []string{"a", "b"}, Threshold: 3})},
		{"a negative threshold", "rules[0].threshold", "-1 of 1 keys", rules(trust.PolicyRule{Name: "r", Keys: []string{"a"}, Threshold: -1})},
		{"a pattern with a tag", "rules[0].repository", "without a tag", rules(trust.PolicyRule{Name: "r", Repository: "h/os:1", Keys: []string{"a"}})},
		{"a pattern in capitals", "rules[0].repository", "in lower case", rules(trust.PolicyRule{Name: "r", Repository: "H/os", Keys: []string{"a"}})},
		{"stars in the middle", "rules[0].repository", "a last /** for all below", rules(trust.PolicyRule{Name: "r", Repository: "h/**/os", Keys: []string{"a"}})},
		{"a class of letters", "rules[0].repository", "expected is host/path", rules(trust.PolicyRule{Name: "r", Repository: "h/[a]", Keys: []string{"a"}})},
		{"a host alone", "rules[0].repository", "write h.example.com/**", rules(trust.PolicyRule{Name: "r", Repository: "h.example.com", Keys: []string{"a"}})},
		{"a product that is none", "rules[0].product", `"a/b"`, rules(trust.PolicyRule{Name: "r", Product: "a/b", Keys: []string{"a"}})},
		{"a range that ends before it begins", "keys[0]", "notAfter is before notBefore", trust.Policy{Keys: []trust.Key{late}}},
		{"the same key under two names", "keys[1]", `"a" and "x" are the same key`, trust.Policy{Keys: []trust.Key{a, {Name: "x", PEM: a.PEM}}}},
		{"a revoked key that is none", "revoked.keys[0]", "it is empty", trust.Policy{Keys: []trust.Key{a}, Revoked: trust.Revoked{Keys: []trust.Key{{Name: "x"}}}}},
		{"a revoked digest that is none", "revoked.digests[0]", "sha256: and 64", trust.Policy{Keys: []trust.Key{a}, Revoked: trust.Revoked{Digests: []digest.Digest{"sha256:12"}}}},
		{"a revoked digest of another kind", "revoked.digests[0]", "sha256: and 64", trust.Policy{Keys: []trust.Key{a}, Revoked: trust.Revoked{Digests: []digest.Digest{digest.SHA512.FromString("x")}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := trust.New(tt.policy)
			var at *trust.PolicyError
			if !errors.As(err, &at) || !errors.Is(err, trust.ErrPolicy) || at.Field != tt.field || !strings.Contains(err.Error(), tt.want) || v != nil {
				t.Errorf("New = %v, %v; want %q at %s", v, err, tt.want, tt.field)
			}
		})
	}
}

// The first rule that matches decides alone: a later one that would accept the
// image is not asked, and an image that none matches is refused.
func TestFirstMatchDecides(t *testing.T) {
	img := image(t, "1.1") // of the product gateway
	strict, lax := ecdsaPair(t), ecdsaPair(t)
	v := made(t, trust.Policy{
		Keys: []trust.Key{named("strict", strict), named("lax", lax)},
		Rules: []trust.PolicyRule{
			{Name: "production", Repository: "registry.example.com/os/**", Keys: []string{"strict"}},
			{Name: "toasters", Repository: "registry.example.com/**", Product: "toaster", Keys: []string{"strict"}},
			{Name: "gateways", Repository: "*.example.com/dev/*", Product: "gateway", Keys: []string{"lax"}},
			{Name: "local", Repository: "10.0.2.2:5000/os", Keys: []string{"lax"}},
			{Name: "shadowed", Repository: "registry.example.com/os/a", Keys: []string{"lax"}},
		},
	})
	byLax := []osimage.Signature{lax.sign(t, payloadFor(img.Digest()))}
	byStrict := []osimage.Signature{strict.sign(t, payloadFor(img.Digest()))}
	for repository, want := range map[string]string{
		"registry.example.com/os/a":     "production",
		"registry.example.com/os/a/b":   "production",
		"Registry.Example.COM/os/a":     "production",
		"registry.example.com/os":       "",
		"registry.example.com/OS/a":     "",
		"registry.example.com/osx/a":    "",
		"registry.example.com/dev/a":    "gateways",
		"mirror.example.com/dev/a":      "gateways",
		"mirror.example.com/dev/a/b":    "",
		"evil.org/x.example.com/dev/a":  "",
		"registry.example.com.evil/dev": "",
		"10.0.2.2:5000/os":              "local",
		"10.0.2.2:5001/os":              "",
		"":                              "",
	} {
		at := v.Under(trust.Circumstances{Repository: repository})
		for _, sigs := range [][]osimage.Signature{byLax, byStrict} {
			got, err := at.Verify(t.Context(), img, sigs)
			byRight := &sigs[0] == &byStrict[0] == (want == "production")
			switch {
			case want == "":
				r := refused(t, got, err, trust.NoRule)
				if !strings.Contains(r.Have, repository) || !strings.Contains(r.Want, "production (repository registry.example.com/os/**)") || !strings.Contains(r.Have, `"gateway"`) {
					t.Errorf("%q: refusal %v", repository, r)
				}
			case !byRight:
				r := refused(t, got, err, trust.UnknownKey)
				if !strings.Contains(r.Have, "not named by the rule "+want) || !strings.Contains(r.Want, "(rule "+want+")") {
					t.Errorf("%q: refusal %v", repository, r)
				}
			case err != nil || got.RuleName() != want:
				t.Errorf("%q: decided by %q, %v; want %q", repository, got.RuleName(), err, want)
			}
		}
	}
	// A verifier knows no repository until it is told, and then ** does not match.
	got, err := v.Verify(t.Context(), img, byStrict)
	refused(t, got, err, trust.NoRule)
	all := made(t, trust.Policy{Keys: []trust.Key{named("strict", strict)}, Rules: []trust.PolicyRule{{Name: "all", Repository: "**", Keys: []string{"strict"}}}})
	got, err = all.Verify(t.Context(), img, byStrict)
	if r := refused(t, got, err, trust.NoRule); !strings.Contains(r.Have, "no repository (it came from a layout)") {
		t.Errorf("refusal %v", r)
	}
	if _, err := all.Under(trust.Circumstances{Repository: "h/os"}).Verify(t.Context(), img, byStrict); err != nil {
		t.Errorf("** and h/os: %v", err)
	}
}

// A rule is for a product as the signed config has it, so a key that vouches for
// one product cannot vouch for another.
func TestRuleByProduct(t *testing.T) {
	img := image(t, "1.1")
	ours, theirs := ecdsaPair(t), ecdsaPair(t)
	policy := trust.Policy{
		Keys:  []trust.Key{named("ours", ours), named("theirs", theirs)},
		Rules: []trust.PolicyRule{{Name: "toasters", Product: "toaster", Keys: []string{"theirs"}}, {Name: "gateways", Product: "gateway", Keys: []string{"ours"}}},
	}
	v := made(t, policy)
	got, err := v.Verify(t.Context(), img, []osimage.Signature{ours.sign(t, payloadFor(img.Digest()))})
	if err != nil || got.RuleName() != "gateways" {
		t.Errorf("rule %q, %v", got.RuleName(), err)
	}
	got, err = v.Verify(t.Context(), img, []osimage.Signature{theirs.sign(t, payloadFor(img.Digest()))})
	refused(t, got, err, trust.UnknownKey)
}

// Two signatures by one key are one key: that ECDSA signatures differ each time,
// and that an Ed25519 key signs in two ways, makes no second one.
func TestThresholdCountsKeys(t *testing.T) {
	img := image(t, "1.1")
	payload := payloadFor(img.Digest())
	edKey := ed25519Key(t)
	one, two, three := ecdsaPair(t), newPair(t, edKey), rsaPair(t, 2048)
	prehashed, err := signature.LoadED25519phSigner(edKey)
	if err != nil {
		t.Fatal(err)
	}
	v := made(t, trust.Policy{
		Keys:  []trust.Key{named("one", one), named("two", two), named("three", three)},
		Rules: []trust.PolicyRule{{Name: "r", Keys: []string{"one", "two", "three"}, Threshold: 2}},
	})
	sign := func(p ...pair) (list []osimage.Signature) {
		for _, p := range p {
			list = append(list, p.sign(t, payload))
		}
		return list
	}
	ph := pair{prehashed, two.pem}
	for name, sigs := range map[string][]osimage.Signature{
		"one key": sign(one), "the same twice": sign(one, one), "many by one": sign(three, three, three, three),
		"both ways of Ed25519": sign(two, ph), "a stranger beside": sign(one, ecdsaPair(t)),
		"the second for another image": append(sign(one), two.sign(t, payloadFor(image(t, "1.2").Digest()))),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), img, sigs)
			r := refused(t, got, err, trust.Threshold)
			if !strings.Contains(r.Want, "signatures by 2 different keys of one (sha256:") {
				t.Errorf("refusal %v", r)
			}
		})
	}
	got, err := v.Verify(t.Context(), img, sign(one, one, three, two))
	if err != nil || got.KeyName() != "one, three" {
		t.Errorf("two of three: %q, %v", got.KeyName(), err)
	}
}

// A revoked key does not count, whatever name it has where, and a signature by a
// good key beside it is not spoiled.
func TestRevokedKey(t *testing.T) {
	img := image(t, "1.1")
	stolen, good := rsaPair(t, 2048), ecdsaPair(t)
	v := made(t, trust.Policy{
		Keys:    []trust.Key{named("release", stolen), named("next", good)},
		Revoked: trust.Revoked{Keys: []trust.Key{named("stolen", stolen)}},
	})
	byStolen := stolen.sign(t, payloadFor(img.Digest()))
	got, err := v.Verify(t.Context(), img, []osimage.Signature{byStolen})
	if r := refused(t, got, err, trust.RevokedKey); !strings.Contains(r.Have, "one by stolen (sha256:") || !strings.Contains(r.Have, "which is revoked") {
		t.Errorf("refusal %v", r)
	}
	got, err = v.Verify(t.Context(), img, []osimage.Signature{byStolen, good.sign(t, payloadFor(img.Digest()))})
	if err != nil || got.KeyName() != "next" {
		t.Errorf("with a good key: %q, %v", got.KeyName(), err)
	}
	both := made(t, trust.Policy{
		Keys:    []trust.Key{named("release", stolen), named("next", good)},
		Rules:   []trust.PolicyRule{{Name: "r", Keys: []string{"release", "next"}, Threshold: 2}},
		Revoked: trust.Revoked{Keys: []trust.Key{named("stolen", stolen)}},
	})
	got, err = both.Verify(t.Context(), img, []osimage.Signature{byStolen, good.sign(t, payloadFor(img.Digest()))})
	refused(t, got, err, trust.Threshold)
}

func TestRevokedDigest(t *testing.T) {
	img, other := image(t, "1.1"), image(t, "1.2")
	ours := ecdsaPair(t)
	v := made(t, trust.Policy{Keys: []trust.Key{named("release", ours)}, Revoked: trust.Revoked{Digests: []digest.Digest{img.Digest()}}})
	got, err := v.Verify(t.Context(), img, []osimage.Signature{ours.sign(t, payloadFor(img.Digest()))})
	refused(t, got, err, trust.RevokedImage)
	if _, err := v.Verify(t.Context(), other, []osimage.Signature{ours.sign(t, payloadFor(other.Digest()))}); err != nil {
		t.Errorf("another digest: %v", err)
	}
}

// What is said of the time only ever closes a door: an unknown time, a clock of
// 1970 and an image that claims to be newer than the key.
func TestKeyWithATimeRange(t *testing.T) {
	img := image(t, "1.1") // created 1970-01-01
	ours := ecdsaPair(t)
	date := func(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	sigs := []osimage.Signature{ours.sign(t, payloadFor(img.Digest()))}
	for name, tt := range map[string]struct {
		from, to, now time.Time
		want          string // part of the refusal; empty: accepted
	}{
		"within":                     {date(2026), date(2028), date(2027), ""},
		"the first moment":           {date(2026), date(2028), date(2026), ""},
		"the last moment":            {date(2026), date(2028), date(2028), ""},
		"not yet":                    {date(2026), date(2028), date(2025), "not valid before 2026-01-01 00:00 UTC; it is 2025-01-01 00:00 UTC, if the clock is right"},
		"a clock of 1970":            {date(2026), date(2028), time.Unix(0, 0), "not valid before"},
		"expired":                    {date(2026), date(2028), date(2028).Add(time.Second), "expired at 2028-01-01 00:00 UTC"},
		"no end":                     {date(2026), time.Time{}, date(2099), ""},
		"no beginning":               {time.Time{}, date(2028), time.Unix(0, 0), ""},
		"no beginning, expired":      {time.Time{}, date(2028), date(2099), "expired"},
		"a time that is not known":   {time.Time{}, date(2028), time.Time{}, "nothing says what time it is"},
		"no range, and no time":      {time.Time{}, time.Time{}, time.Time{}, ""},
		"the image is newer than it": {time.Time{}, time.Unix(-1, 0), time.Unix(-2, 0), "the image was created at 1970-01-01 00:00 UTC"},
	} {
		t.Run(name, func(t *testing.T) {
			k := named("release", ours)
			k.NotBefore, k.NotAfter = tt.from, tt.to
			got, err := made(t, trust.Policy{Keys: []trust.Key{k}}).Under(trust.Circumstances{Now: tt.now}).Verify(t.Context(), img, sigs)
			if tt.want == "" {
				if err != nil || !got.Valid() {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if r := refused(t, got, err, trust.OutOfTime); !strings.Contains(r.Have, tt.want) {
				t.Errorf("refusal %v, want %q", r, tt.want)
			}
		})
	}
}

// A key is replaced in two releases, both signed by both keys. A machine that runs
// the first policy accepts each of them, so one that slept through the whole
// change follows.
func TestRotation(t *testing.T) {
	old, next := ecdsaPair(t), ed25519Pair(t)
	before := made(t, trust.Policy{Keys: []trust.Key{named("old", old)}})
	during := made(t, trust.Policy{Keys: []trust.Key{named("old", old), named("new", next)}})
	after := made(t, trust.Policy{Keys: []trust.Key{named("new", next)}, Revoked: trust.Revoked{Keys: []trust.Key{named("old", old)}}})
	bridge, last, pure := image(t, "2.0"), image(t, "3.0"), image(t, "4.0")
	sign := func(img osimage.Image, p ...pair) (list []osimage.Signature) {
		for _, p := range p {
			list = append(list, p.sign(t, payloadFor(img.Digest())))
		}
		return list
	}
	for _, tt := range []struct {
		name string
		v    *trust.Verifier
		img  osimage.Image
		sigs []osimage.Signature
		by   string // empty: refused
		rule trust.Rule
	}{
		{"2.0 brings the new key, before knows the old", before, bridge, sign(bridge, old, next), "old", ""},
		{"3.0 drops the old key, during knows both", during, last, sign(last, old, next), "old", ""},
		{"4.0 is signed by the new one alone", after, pure, sign(pure, next), "new", ""},
		{"a sleeper takes 3.0, as both signed it", before, last, sign(last, next, old), "old", ""},
		{"a sleeper cannot take 4.0", before, pure, sign(pure, next), "", trust.UnknownKey},
		{"the old key is nothing afterwards", after, pure, sign(pure, old), "", trust.RevokedKey},
		{"nor does it spoil what both signed", after, last, sign(last, old, next), "new", ""},
	} {
		got, err := tt.v.Verify(t.Context(), tt.img, tt.sigs)
		if tt.by == "" {
			refused(t, got, err, tt.rule)
		} else if err != nil || got.KeyName() != tt.by {
			t.Errorf("%s: by %q, %v", tt.name, got.KeyName(), err)
		}
	}
}

func ed25519Pair(t testing.TB) pair { return newPair(t, ed25519Key(t)) }

// Explain says what Verify decides, of all signatures.
func TestExplain(t *testing.T) {
	img := image(t, "1.1")
	one, two, stolen := ecdsaPair(t), ecdsaPair(t), ecdsaPair(t)
	v := made(t, trust.Policy{
		Keys: []trust.Key{named("one", one), named("two", two), named("three", stolen)},
		Rules: []trust.PolicyRule{
			{Name: "toasters", Product: "toaster", Keys: []string{"one"}},
			{Name: "gateways", Keys: []string{"one", "two", "three"}, Threshold: 2},
		},
		Revoked: trust.Revoked{Keys: []trust.Key{named("stolen", stolen)}},
	})
	sigs := []osimage.Signature{one.sign(t, payloadFor(img.Digest())), stolen.sign(t, payloadFor(img.Digest()))}
	e, err := v.Explain(t.Context(), img, sigs)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Passed) != 1 || e.Passed[0] != "toasters: it is for the product toaster" || e.Index != 1 || e.Rule == nil || e.Rule.Name != "gateways" || e.Rule.Threshold != 2 {
		t.Errorf("explanation %+v", e)
	}
	if e.Refusal == nil || e.Refusal.Rule != trust.Threshold || !strings.Contains(e.Found, "one by one (sha256:") || !strings.Contains(e.Found, "one by stolen (sha256:") {
		t.Errorf("found %q, refusal %v", e.Found, e.Refusal)
	}
	if len(e.Keys) != 3 || !e.Keys[0].Signed || e.Keys[1].Signed || e.Keys[2].Signed || e.Keys[2].Ignored != "revoked" || e.Keys[0].Ignored != "" {
		t.Errorf("keys %+v", e.Keys)
	}
	e, err = v.Explain(t.Context(), img, append(sigs, two.sign(t, payloadFor(img.Digest()))))
	if err != nil || e.Refusal != nil || !e.Keys[1].Signed {
		t.Errorf("accepted: %+v, %v", e, err)
	}
	local := made(t, trust.Policy{Keys: []trust.Key{named("one", one)}, Rules: []trust.PolicyRule{{Name: "r", Repository: "h/**", Keys: []string{"one"}}}})
	e, err = local.Explain(t.Context(), img, sigs)
	if err != nil || e.Rule != nil || e.Index != -1 || e.Refusal == nil || e.Refusal.Rule != trust.NoRule || e.Found != "2 signatures, not looked at" {
		t.Errorf("without a rule: %+v, %v", e, err)
	}
	if _, err := (&trust.Verifier{}).Explain(t.Context(), img, sigs); !errors.Is(err, trust.ErrPolicy) {
		t.Errorf("a zero verifier: %v", err)
	}
}

func TestDoubts(t *testing.T) {
	one, two, three := named("one", ecdsaPair(t)), named("two", ecdsaPair(t)), named("three", ecdsaPair(t))
	v := made(t, trust.Policy{
		Keys: []trust.Key{one, two, three},
		Rules: []trust.PolicyRule{
			{Name: "a", Product: "gateway", Keys: []string{"one"}},
			{Name: "b", Product: "gateway", Repository: "h/os", Keys: []string{"one"}},
			{Name: "c", Keys: []string{"one", "two"}, Threshold: 2},
		},
		Revoked: trust.Revoked{Keys: []trust.Key{two}},
	})
	want := []trust.Doubt{
		{"rules[1]", "no image reaches the rule b: a matches all that it matches"},
		{"rules[2]", "the rule c accepts nothing now: it asks for 2 different keys, and 1 of its keys count"},
		{"keys[2]", "no rule asks for the key three"},
	}
	if diff := cmp.Diff(want, v.Doubts()); diff != "" {
		t.Error(diff)
	}
	if len(v.Rules()) != 3 || len(v.Keys()) != 3 || v.Keys()[1].Ignored != "revoked" || v.Rules()[2].Threshold != 2 {
		t.Errorf("rules %+v, keys %+v", v.Rules(), v.Keys())
	}
	if doubts := made(t, trust.Policy{Keys: []trust.Key{one, two}}).Doubts(); doubts != nil {
		t.Errorf("a policy without rules: %v", doubts)
	}
}
