// Package channel protects from what a signature on an image cannot: a registry that
// keeps a machine at an old image which was signed and new once, or moves a tag to
// another signed image.
//
// A publisher states which digest is at the head of a channel, and until when that may
// be believed (osimage.Statement), and signs the statement as he signs images. A
// machine whose policy asks for it follows a tag only as far as the statement goes: it
// is refused past its age, when the tag leads elsewhere, when a newer one was seen
// here, and when it is about another channel or product. docs/channels.md has the
// whole story.
//
// The package asks no network, no clock and no file by itself, and verifies no
// signature: who does is handed over.
package channel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// Place is where the tag was resolved (fetch.Ref).
type Place interface {
	// Document reads what another tag of the same repository leads to; where there is
	// none, the error is osimage.ErrNoDocument.
	Document(ctx context.Context, tag string) (osimage.Document, error)
}

// Verifier decides whether signatures are enough for a digest (trust.Verifier).
type Verifier interface {
	VerifyDigest(ctx context.Context, d digest.Digest, made time.Time, sigs []osimage.Signature) (keys string, err error)
}

// Sighting is what a machine remembers of the newest statement of a channel.
type Sighting struct {
	Issued, Expires time.Time
	Digest          string // of the image at the head
}

// Guard is what the policy asks of a tag. The zero value refuses.
type Guard struct {
	// Repository and Channel are what the operator asked for; Product is the machine's.
	Repository, Channel, Product string
	Verifier                     Verifier
	// MaxAge is how old a statement may be, however long it says it lasts; 0 is no
	// such limit.
	MaxAge time.Duration
	// Now is the present, which is never behind what has certainly passed.
	Now func() time.Time
}

// Rule names the reason of a refusal.
type Rule string

// The rules, in the order in which they are applied. Before them comes the policy's
// word on the signatures, which is its verifier's refusal.
const (
	RuleMissing  Rule = "no statement"
	RuleOther    Rule = "another channel"
	RuleReplayed Rule = "an older statement"
	RuleExpired  Rule = "age"
	RuleMoved    Rule = "the tag"
)

// Refusal says which rule refused, what was found, what is wanted and what a person
// can do.
type Refusal struct {
	Rule             Rule
	Channel          string // repository and tag
	Have, Want, Next string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("the channel %s is refused by %s: found %s; wanted %s; %s", r.Channel, r.Rule, r.Have, r.Want, r.Next)
}

// Key is the name that a machine remembers the channel by: what was asked for, so no
// registry chooses it.
func (g *Guard) Key() string { return g.Repository + ":" + g.Channel }

// Check decides whether the tag may be followed to head. seen is the newest statement
// of the channel that was accepted here, or zero. A refusal is a *Refusal, or what the
// verifier says; any other error means that nothing was decided.
func (g *Guard) Check(ctx context.Context, from Place, head digest.Digest, seen Sighting) (osimage.Statement, error) {
	if g.Verifier == nil || g.Now == nil || g.Channel == "" {
		return osimage.Statement{}, errors.New("checking a channel: nothing says whose word counts")
	}
	doc, err := from.Document(ctx, osimage.ChannelTag(g.Channel))
	if errors.Is(err, osimage.ErrNoDocument) {
		return osimage.Statement{}, g.refuse(RuleMissing, "nothing at the tag "+osimage.ChannelTag(g.Channel), "a signed statement, as the policy asks for this repository",
			"let the publisher run osctl channel publish, or name an image by its digest")
	}
	if err != nil {
		return osimage.Statement{}, fmt.Errorf("reading the statement of the channel %s: %w", g.Key(), err)
	}
	s, err := osimage.ParseStatement(doc.Config)
	if err != nil {
		return osimage.Statement{}, fmt.Errorf("reading the statement of the channel %s: %w", g.Key(), err)
	}
	if _, err := g.Verifier.VerifyDigest(ctx, doc.Digest, s.Issued, doc.Signatures); err != nil {
		return osimage.Statement{}, fmt.Errorf("verifying the statement of the channel %s: %w", g.Key(), err)
	}
	if refusal := g.decide(s, head, seen); refusal != nil {
		return osimage.Statement{}, refusal
	}
	return s, nil
}

// decide applies the rules to a statement that somebody vouches for.
func (g *Guard) decide(s osimage.Statement, head digest.Digest, seen Sighting) *Refusal {
	const wait = "the publisher states anew with osctl channel publish; if he did, somebody withholds it from this machine"
	if s.Channel != g.Channel || s.Product != g.Product {
		return g.refuse(RuleOther, fmt.Sprintf("a statement about %s of the product %q", s.Channel, s.Product), fmt.Sprintf("%s of the product %q", g.Channel, g.Product),
			"ask who put a foreign statement there")
	}
	if s.Issued.Before(seen.Issued) || s.Issued.Equal(seen.Issued) && s.Digest.String() != seen.Digest {
		return g.refuse(RuleReplayed, "one issued "+stamp(s.Issued)+" for "+s.Version, "one issued after "+stamp(seen.Issued)+", which was seen here", wait)
	}
	now := g.Now()
	if end := g.end(s.Issued, s.Expires); !now.Before(end) {
		return g.refuse(RuleExpired, fmt.Sprintf("one issued %s that counts until %s", stamp(s.Issued), stamp(end)), "one that counts at "+stamp(now), wait)
	}
	if s.Digest != head {
		return g.refuse(RuleMoved, head.String(), fmt.Sprintf("%s (%s), as stated %s", s.Digest, s.Version, stamp(s.Issued)),
			"somebody moved the tag without a statement; the publisher runs osctl channel publish, or moves it back")
	}
	return nil
}

// Fresh reports whether what was seen still answers for head, without asking again.
func (g *Guard) Fresh(head digest.Digest, seen Sighting) bool {
	return seen.Digest == head.String() && g.Now().Before(g.end(seen.Issued, seen.Expires))
}

// end is when a statement counts no more.
func (g *Guard) end(issued, expires time.Time) time.Time {
	if limit := issued.Add(g.MaxAge); g.MaxAge > 0 && limit.Before(expires) {
		return limit
	}
	return expires
}

func (g *Guard) refuse(rule Rule, have, want, next string) *Refusal {
	return &Refusal{rule, g.Key(), have, want, next}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
