// Package admit decides whether a verified image may go on this machine. It is
// pure: facts in, a Plan or a Refusal out; it reads nothing and changes nothing.
//
// A signature says who made an image. It does not say that the image is for this
// product, newer than what was committed here, or small enough for the slot; that
// is what is decided here, before the first pack is fetched.
package admit

import (
	"errors"
	"fmt"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
)

// Machine holds the facts that the decision rests on.
type Machine struct {
	// Product and Architecture must equal those of the image.
	Product, Architecture string
	// Version is the version that runs; MinVersion of the image is compared
	// with it.
	Version string
	// FloorVersion and FloorEpoch are the highest that were committed here.
	FloorVersion string
	FloorEpoch   uint32
	// Downgrade is what an operator may ask for below the version of the floor.
	Downgrade Downgrade
	// SlotSize is the size of the target slot in bytes.
	SlotSize int64
	// Failed returns why a digest failed its trial here, and whether it did.
	Failed func(digest string) (reason string, failed bool)
}

// Downgrade is a way below the floor's version, never below its epoch: to an image
// that was committed here once, where the policy permits it. The zero value is no way.
type Downgrade struct {
	// Asked is the operator's word, Permitted the policy's.
	Asked, Permitted bool
	// Committed reports whether a digest was committed here; nil says that none was.
	Committed func(digest string) bool
}

// Rule names the reason of a refusal.
type Rule string

// The rules, in the order in which they are applied.
const (
	RuleProduct      Rule = "product"
	RuleArchitecture Rule = "architecture"
	RuleEpoch        Rule = "epoch"
	RuleVersion      Rule = "version"
	RuleDowngrade    Rule = "downgrade"
	RuleMinVersion   Rule = "minimum version"
	RuleSize         Rule = "slot size"
	RuleFailed       Rule = "trial history"
)

// Refusal says which rule refused, what the image has, what the machine wants
// and what a person can do.
type Refusal struct {
	Rule       Rule
	Have, Want string
	Hint       string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("refused by %s: the image has %s, this machine wants %s; %s", r.Rule, r.Have, r.Want, r.Hint)
}

// Plan is an image that may be written. The zero value is refused by the
// packages that take one.
type Plan struct{ verified trust.Verified }

// Valid reports whether the plan came from Decide.
func (p Plan) Valid() bool { return p.verified.Valid() }

// Image is the image to be written.
func (p Plan) Image() osimage.Image { return p.verified.Image() }

// Basis is what the image was accepted on.
func (p Plan) Basis() trust.Basis { return p.verified.Basis() }

// SignedBy names the key that vouches for the image.
func (p Plan) SignedBy() string { return p.verified.KeyName() }

// Decide applies the rules. retry permits a digest that failed here before.
// The error is a *Refusal, or says that the facts themselves are unusable.
func Decide(v trust.Verified, m Machine, retry bool) (Plan, error) {
	if !v.Valid() {
		return Plan{}, errors.New("deciding on an image that was not verified")
	}
	img := v.Image()
	for _, rule := range []func(osimage.Image, Machine) (*Refusal, error){identity, floor, minVersion, size} {
		refusal, err := rule(img, m)
		if err != nil {
			return Plan{}, fmt.Errorf("deciding on %s: %w", img.Digest(), err)
		}
		if refusal != nil {
			return Plan{}, refusal
		}
	}
	if reason, failed := m.Failed(img.Digest().String()); failed && !retry {
		return Plan{}, &Refusal{RuleFailed, fmt.Sprintf("a failed trial here (%s)", reason), "an image without one", "install a newer image, or try this one again with --retry"}
	}
	return Plan{v}, nil
}

func identity(img osimage.Image, m Machine) (*Refusal, error) {
	c := img.Config()
	if m.Product == "" {
		return nil, errors.New("the machine has no product: set it in /usr/lib/osctl/osctl.yaml")
	}
	if c.Product != m.Product {
		return &Refusal{RuleProduct, quote(c.Product), quote(m.Product), "name an image for this product"}, nil
	}
	if c.Architecture != m.Architecture {
		return &Refusal{RuleArchitecture, quote(c.Architecture), quote(m.Architecture), "name an image for this architecture"}, nil
	}
	return nil, nil
}

func floor(img osimage.Image, m Machine) (*Refusal, error) {
	c := img.Config()
	if c.Epoch < m.FloorEpoch {
		return &Refusal{RuleEpoch, fmt.Sprint(c.Epoch), fmt.Sprintf("%d or more", m.FloorEpoch), "going back below a committed epoch is not possible; build the image with a higher --epoch"}, nil
	}
	if m.FloorVersion == "" {
		return nil, nil
	}
	order, err := osimage.CompareVersions(c.Version, m.FloorVersion)
	if err != nil {
		return nil, err
	}
	if order < 0 {
		return m.Downgrade.refuse(img, m.FloorVersion+" or newer"), nil
	}
	return nil, nil
}

// refuse decides on an image below the floor's version.
func (d Downgrade) refuse(img osimage.Image, want string) *Refusal {
	have := img.Config().Version
	switch {
	case !d.Asked:
		return &Refusal{RuleVersion, have, want, "osctl rollback goes back to the other slot"}
	case !d.Permitted:
		return &Refusal{RuleDowngrade, have, want, "the policy of this machine does not permit downgrades (allowDowngrade)"}
	case d.Committed == nil || !d.Committed(img.Digest().String()):
		return &Refusal{RuleDowngrade, have + ", and this very image was never committed here", want, "a downgrade leads only to an image that osctl history has as committed"}
	}
	return nil
}

func minVersion(img osimage.Image, m Machine) (*Refusal, error) {
	c := img.Config()
	if c.MinVersion == "" {
		return nil, nil
	}
	if m.Version == "" {
		return nil, errors.New("nothing says which version runs here")
	}
	order, err := osimage.CompareVersions(m.Version, c.MinVersion)
	if err != nil {
		return nil, err
	}
	if order < 0 {
		return &Refusal{RuleMinVersion, "a minimum of " + c.MinVersion + " to upgrade from", "one of " + m.Version + " or less", "upgrade to " + c.MinVersion + " first"}, nil
	}
	return nil, nil
}

func size(img osimage.Image, m Machine) (*Refusal, error) {
	if have := img.Config().Rootfs.Size; have > m.SlotSize {
		return &Refusal{RuleSize, fmt.Sprintf("%d bytes", have), fmt.Sprintf("at most %d, the size of the slot", m.SlotSize), "build a smaller image"}, nil
	}
	return nil, nil
}

func quote(s string) string { return fmt.Sprintf("%q", s) }
