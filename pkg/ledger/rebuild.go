package ledger

import (
	"fmt"
	"time"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/osimage"
)

// Facts are what is known without the ledger, and better than by it: the boot
// state, and what the slots themselves tell.
type Facts struct {
	// Proven are the slots that the boot state knows to hold a committed system.
	Proven []device.Slot
	// Held is what a slot holds: at least the version, which counts before that of
	// the ledger; fields that are not known are empty. A slot that does not tell is
	// left out.
	Held map[device.Slot]Entry
}

// Rebuild brings the ledger up to the facts, where it was lost, or is older than
// the boot state: entries of proven slots that are missing or tell of another
// image are made anew, and the floor rises to what was committed. It reports
// whether anything changed, and notes in the history what did.
func (l *Ledger) Rebuild(f Facts, at time.Time) (changed bool, err error) {
	for _, s := range f.Proven {
		held, known := f.Held[s]
		e := l.Slots[s]
		if !known || osimage.CheckVersion(held.Version) != nil {
			continue
		}
		if e == nil || !e.tellsOf(held) {
			held.State, held.CommittedAt, held.Baseline = Staged, time.Time{}, nil
			l.Slots[s] = &held
			l.Add(Event{At: at, Kind: "rebuilt", Slot: s, Version: held.Version, Digest: held.Digest, Reason: rebuilt(e)})
		} else if e.State == Committed {
			// An older ledger may have the right slots and a floor from before.
			raised, err := l.Floor.Or(held.Floor())
			if err != nil {
				return changed, fmt.Errorf("raising the floor: %w", err)
			}
			changed, l.Floor = changed || raised != l.Floor, raised
			continue
		}
		changed = true
		if err := l.Commit(s, at); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// tellsOf reports whether an entry is of the image that a slot holds.
func (e *Entry) tellsOf(held Entry) bool {
	return e.Version == held.Version && (held.Digest == "" || e.Digest == held.Digest)
}

func rebuilt(old *Entry) string {
	if old == nil {
		return "nothing was on record of this slot"
	}
	return "on record was " + old.Version
}
