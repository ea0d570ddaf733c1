package admit_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/sample"
)

type signer struct {
	key      *publish.Key
	verifier *trust.Verifier
}

func newSigner(t *testing.T) signer {
	t.Helper()
	key, _, public := sample.Key(t)
	v, err := trust.New(trust.Policy{Keys: []trust.Key{{Name: "release", PEM: public}}})
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, v}
}

// verified builds, signs and verifies a sample: there is no other way to a
// trust.Verified.
func (s signer) verified(t *testing.T, img sample.Image) trust.Verified {
	t.Helper()
	ctx := context.Background()
	l, err := fetch.OpenLayout(img.Signed(t, s.key))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.Resolve(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	image, err := ref.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := ref.Signatures(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.verifier.Verify(ctx, image, sigs)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDecide(t *testing.T) {
	s := newSigner(t)
	base := sample.Image{Product: "gateway", Version: "1.2", Epoch: 2, Architecture: "amd64", MinVersion: "1.0", MiB: 2}
	for name, tt := range map[string]struct {
		image   func(*sample.Image)
		machine func(*admit.Machine)
		retry   bool
		rule    admit.Rule // "" admits
	}{
		"fits":                {},
		"the same version":    {machine: func(m *admit.Machine) { m.FloorVersion = "1.2.0" }},
		"another product":     {image: func(i *sample.Image) { i.Product = "panel" }, rule: admit.RuleProduct},
		"a product prefix":    {image: func(i *sample.Image) { i.Product = "gateway2" }, rule: admit.RuleProduct},
		"another arch":        {image: func(i *sample.Image) { i.Architecture = "arm64" }, rule: admit.RuleArchitecture},
		"a lower epoch":       {machine: func(m *admit.Machine) { m.FloorEpoch = 3 }, rule: admit.RuleEpoch},
		"an older version":    {machine: func(m *admit.Machine) { m.FloorVersion = "1.10" }, rule: admit.RuleVersion},
		"a pre-release":       {image: func(i *sample.Image) { i.Version = "1.2-rc1" }, machine: func(m *admit.Machine) { m.FloorVersion = "1.2" }, rule: admit.RuleVersion},
		"too old a machine":   {machine: func(m *admit.Machine) { m.Version = "0.9" }, rule: admit.RuleMinVersion},
		"too small a slot":    {machine: func(m *admit.Machine) { m.SlotSize = 2<<20 - 1 }, rule: admit.RuleSize},
		"a slot just so":      {machine: func(m *admit.Machine) { m.SlotSize = 2 << 20 }},
		"failed before":       {machine: failed, rule: admit.RuleFailed},
		"failed, and retry":   {machine: failed, retry: true},
		"down, asked":         {machine: down(true, false, true), rule: admit.RuleDowngrade},
		"down, permitted":     {machine: down(false, true, true), rule: admit.RuleVersion},
		"down, to a new one":  {machine: down(true, true, false), rule: admit.RuleDowngrade},
		"down, to an old one": {machine: down(true, true, true)},
		"down, nothing known": {machine: func(m *admit.Machine) {
			m.FloorVersion, m.Downgrade = "1.10", admit.Downgrade{Asked: true, Permitted: true}
		}, rule: admit.RuleDowngrade},
		"down an epoch":      {machine: func(m *admit.Machine) { down(true, true, true)(m); m.FloorEpoch = 3 }, rule: admit.RuleEpoch},
		"retry forgives one": {machine: func(m *admit.Machine) { m.FloorEpoch = 3 }, retry: true, rule: admit.RuleEpoch},
	} {
		t.Run(name, func(t *testing.T) {
			img := base
			if tt.image != nil {
				tt.image(&img)
			}
			m := admit.Machine{
				Product: "gateway", Architecture: "amd64", Version: "1.1", FloorVersion: "1.1", FloorEpoch: 2, SlotSize: 4 << 20,
				Failed: func(string) (string, bool) { return "", false },
			}
			if tt.machine != nil {
				tt.machine(&m)
			}
			p, err := admit.Decide(s.verified(t, img), m, tt.retry)
			var r *admit.Refusal
			switch {
			case tt.rule == "" && (err != nil || !p.Valid() || p.SignedBy() != "release"):
				t.Errorf("Decide = %+v, %v; want a plan", p, err)
			case tt.rule != "" && (!errors.As(err, &r) || r.Rule != tt.rule || p.Valid()):
				t.Errorf("Decide = %v, %v; want a refusal by %s", p.Valid(), err, tt.rule)
			}
		})
	}
}

// down is a machine that committed 1.10 once, and what is said about going below.
func down(asked, permitted, committed bool) func(*admit.Machine) {
	return func(m *admit.Machine) {
		m.FloorVersion = "1.10"
		m.Downgrade = admit.Downgrade{Asked: asked, Permitted: permitted, Committed: func(string) bool { return committed }}
	}
}

func failed(m *admit.Machine) {
	m.Failed = func(string) (string, bool) { return "the gate was red", true }
}

func TestDecideNeedsFacts(t *testing.T) {
	s := newSigner(t)
	v := s.verified(t, sample.Image{MinVersion: "1.0", MiB: 2, Architecture: "amd64"})
	if _, err := admit.Decide(trust.Verified{}, admit.Machine{}, false); err == nil || !strings.Contains(err.Error(), "not verified") {
		t.Errorf("unverified: %v", err)
	}
	if _, err := admit.Decide(v, admit.Machine{}, false); err == nil || !strings.Contains(err.Error(), "no product") {
		t.Errorf("without a product: %v", err)
	}
	m := admit.Machine{Product: "gateway", Architecture: "amd64"}
	if _, err := admit.Decide(v, m, false); err == nil || !strings.Contains(err.Error(), "which version runs") {
		t.Errorf("without a version: %v", err)
	}
	m.FloorVersion = "newest"
	if _, err := admit.Decide(v, m, false); err == nil || !strings.Contains(err.Error(), `"newest"`) {
		t.Errorf("with a broken floor: %v", err)
	}
	if (admit.Plan{}).Valid() {
		t.Error("the zero Plan is valid")
	}
}
