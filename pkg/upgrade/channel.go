package upgrade

import (
	"context"
	"fmt"

	"github.com/kapernikov/osctl/pkg/channel"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// follow holds the tag against the statement of its channel, if the policy asks for
// that, and remembers the statement.
func (r *run) follow(ctx context.Context, l *ledger.Ledger) error {
	if r.Channel == nil {
		return nil
	}
	from, ok := r.offer.(channel.Place)
	if !ok {
		return fmt.Errorf("following the channel %s: %s has no statements", r.Channel.Key(), r.offer.Name())
	}
	key := r.Channel.Key()
	seen := l.Channels[key]
	s, err := r.Channel.Check(ctx, from, r.offer.Digest(), channel.Sighting(seen))
	if err != nil || s.Issued.Equal(seen.Issued) {
		return err
	}
	return r.Ledger.Update(func(l *ledger.Ledger) error {
		l.See(key, ledger.Sighting{Issued: s.Issued, Expires: s.Expires, Digest: s.Digest.String()})
		return nil
	})
}

// known answers a check for what runs here, committed, without asking for more than
// the digest that the tag has: nothing would be installed. A statement of the channel
// must have been seen that still counts.
func (r *run) known(l *ledger.Ledger) bool {
	e := l.Slot(r.Booted)
	if !r.CheckOnly || e == nil || e.State != ledger.Committed || e.Digest != r.offer.Digest().String() {
		return false
	}
	if r.Channel != nil && !r.Channel.Fresh(r.offer.Digest(), channel.Sighting(l.Channels[r.Channel.Key()])) {
		return false
	}
	record, err := r.Records.Load(r.Booted)
	if err != nil || record.Image().Digest() != r.offer.Digest() {
		return false
	}
	r.result.Image, r.result.SignedBy, r.result.Outcome = record.Image(), e.SignedBy, UpToDate
	return true
}
