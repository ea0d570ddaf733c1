// Package ledger remembers what the boot state has no room for: which image each
// slot holds, what happened, which digests failed, and the floor below which no
// upgrade goes.
//
// The boot state is the truth about what boots; the ledger only explains it. It
// is one JSON file on the data partition, replaced atomically. A machine whose
// ledger is lost still boots, rolls back and upgrades; a file that cannot be
// parsed is set aside, never overwritten.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/opencontainers/go-digest"
)

// File is the name of the ledger in the state directory.
const File = "ledger.json"

// schema is the version of the file's format.
const schema = 1

// The history keeps this many events, and as many failed digests.
const keep = 200

// ErrCorrupt says that the file is there and cannot be understood.
var ErrCorrupt = errors.New("the ledger cannot be read")

// State says how far a slot got with its image.
type State string

// The states of a slot. A slot that is being written has no entry at all.
const (
	Staged    State = "staged"    // written and proven, not yet committed
	Committed State = "committed" // passed its gate once
	Failed    State = "failed"    // fell back from it
)

// Entry describes the image in a slot.
type Entry struct {
	Digest    string    `json:"digest"`
	Product   string    `json:"product"`
	Version   string    `json:"version"`
	Epoch     uint32    `json:"epoch"`
	Created   time.Time `json:"created,omitzero"`
	Reference string    `json:"reference"`
	SignedBy  string    `json:"signedBy"`
	// Basis is the policy that admitted the image; nil where that is not known.
	Basis    *Basis    `json:"basis,omitempty"`
	State    State     `json:"state"`
	StagedAt time.Time `json:"stagedAt,omitzero"`
	// Committed is when the slot passed its gate; zero before.
	CommittedAt time.Time `json:"committedAt,omitzero"`
	// Baseline is what the gate demands of this slot's first boot.
	Baseline *health.Baseline `json:"baseline,omitempty"`
}

// Basis is what an image was accepted on, as trust.Basis says it: the policy of that
// day, which need not be that of today.
type Basis struct {
	Policy  digest.Digest `json:"policy"` // of the policy with its keys and roots
	Rule    string        `json:"rule"`
	Signers []string      `json:"signers"`
}

func (b *Basis) rule() string {
	if b == nil {
		return ""
	}
	return b.Rule
}

// Floor is the lowest version and epoch that may be installed.
type Floor struct {
	Version string `json:"version,omitempty"`
	Epoch   uint32 `json:"epoch"`
}

// Or is the higher of two floors, in version and in epoch each. It is an error when
// they have versions that cannot be compared.
func (f Floor) Or(other Floor) (Floor, error) {
	f.Epoch = max(f.Epoch, other.Epoch)
	if f.Version == "" || other.Version == "" {
		f.Version += other.Version
		return f, nil
	}
	order, err := osimage.CompareVersions(other.Version, f.Version)
	if err != nil {
		return f, err
	}
	if order > 0 {
		f.Version = other.Version
	}
	return f, nil
}

// Floor is the floor that the commit of this image makes.
func (e *Entry) Floor() Floor { return Floor{Version: e.Version, Epoch: e.Epoch} }

// Failure is a digest that did not pass its trial.
type Failure struct {
	Digest  string    `json:"digest"`
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// Sighting is what is remembered of the newest statement of a channel, so that no
// older one is accepted after it.
type Sighting struct {
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Digest  string    `json:"digest"` // of the image at the head
}

// NotAsBefore is the kind of the event that a machine fell back and its workloads do
// not do on the proven system what they did there before.
const NotAsBefore = "not as before"

// Event is one line of the history.
type Event struct {
	At      time.Time   `json:"at"`
	Kind    string      `json:"kind"` // installed, refused, staged, committed, failed, NotAsBefore, rolled back, adopted, reset, rebuilt
	Slot    device.Slot `json:"slot,omitempty"`
	Version string      `json:"version,omitempty"`
	Digest  string      `json:"digest,omitempty"`
	// Rule is, of what was written into a slot, the rule of the policy that admitted it.
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Ledger is the content of the file.
type Ledger struct {
	Schema int                    `json:"schema"`
	Slots  map[device.Slot]*Entry `json:"slots"`
	Floor  Floor                  `json:"floor"`
	// Passed is the latest moment that has certainly passed, by what somebody signed:
	// the newest creation time of what was committed here. No clock of this machine
	// takes part. It never goes back.
	Passed time.Time `json:"passed,omitzero"`
	// Channels are the newest statements that were accepted, by repository:tag.
	Channels map[string]Sighting `json:"channels,omitempty"`
	Failed   []Failure           `json:"failed,omitempty"`
	History  []Event             `json:"history,omitempty"`
}

// Slot returns the entry of a slot, or nil.
func (l *Ledger) Slot(s device.Slot) *Entry { return l.Slots[s] }

// FailureOf returns the recorded failure of a digest, or nil.
func (l *Ledger) FailureOf(digest string) *Failure {
	for i := range l.Failed {
		if l.Failed[i].Digest == digest {
			return &l.Failed[i]
		}
	}
	return nil
}

// Committed reports whether this very image was committed here, as far back as the
// history goes.
func (l *Ledger) Committed(digest string) bool {
	return digest != "" && slices.ContainsFunc(l.History, func(e Event) bool { return e.Kind == "committed" && e.Digest == digest })
}

// Add appends an event; the oldest make room.
func (l *Ledger) Add(e Event) {
	l.History = append(l.History, e)
	if len(l.History) > keep {
		l.History = slices.Delete(l.History, 0, len(l.History)-keep)
	}
}

// Commit marks a slot as proven and raises the floor to its image. The floor
// never falls.
func (l *Ledger) Commit(s device.Slot, at time.Time) error {
	e := l.Slots[s]
	if e == nil {
		return fmt.Errorf("committing slot %s: nothing says what it holds", s)
	}
	if e.State != Committed {
		l.Add(Event{At: at, Kind: "committed", Slot: s, Version: e.Version, Digest: e.Digest})
	}
	e.State, e.CommittedAt, e.Baseline = Committed, at, nil
	l.Failed = slices.DeleteFunc(l.Failed, func(f Failure) bool { return f.Digest == e.Digest })
	floor, err := l.Floor.Or(e.Floor())
	if err != nil {
		return fmt.Errorf("raising the floor: %w", err)
	}
	l.Floor = floor
	l.Pass(e.Created)
	return nil
}

// See remembers a statement of a channel, and that its moment has passed.
func (l *Ledger) See(channel string, s Sighting) {
	if l.Channels == nil {
		l.Channels = map[string]Sighting{}
	}
	if l.Channels[channel].Issued.Before(s.Issued) {
		l.Channels[channel] = s
	}
	l.Pass(s.Issued)
}

// Pass notes a moment that has certainly passed.
func (l *Ledger) Pass(t time.Time) {
	if t.After(l.Passed) {
		l.Passed = t.UTC()
	}
}

// Fail records that the slot did not pass its trial, once a digest.
func (l *Ledger) Fail(s device.Slot, reason string, at time.Time) {
	f := Failure{Reason: reason, At: at}
	if e := l.Slots[s]; e != nil {
		e.State = Failed
		f.Digest, f.Version = e.Digest, e.Version
	}
	l.Failed = slices.DeleteFunc(l.Failed, func(old Failure) bool { return old.Digest == f.Digest })
	l.Failed = append(l.Failed, f)
	if len(l.Failed) > keep {
		l.Failed = slices.Delete(l.Failed, 0, len(l.Failed)-keep)
	}
	l.Add(Event{At: at, Kind: "failed", Slot: s, Version: f.Version, Digest: f.Digest, Reason: reason})
}

// Store is the ledger on disk.
type Store struct{ dir string }

// Open names the state directory; it need not exist yet.
func Open(dir string) *Store { return &Store{dir} }

func (s *Store) path() string { return filepath.Join(s.dir, File) }

// Load reads the ledger. A missing file is an empty ledger; one that cannot be
// understood is ErrCorrupt together with an empty ledger to go on with.
func (s *Store) Load() (*Ledger, error) {
	data, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return empty(), nil
	}
	if err != nil {
		return empty(), fmt.Errorf("reading the ledger: %w", err)
	}
	l, err := Parse(data)
	if err != nil {
		return empty(), fmt.Errorf("reading %s: %w", s.path(), err)
	}
	return l, nil
}

// Parse decodes a ledger. Errors wrap ErrCorrupt.
func Parse(data []byte) (*Ledger, error) {
	l := empty()
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if l.Schema != schema {
		return nil, fmt.Errorf("%w: schema %d, known is %d", ErrCorrupt, l.Schema, schema)
	}
	if l.Floor.Version != "" {
		if err := osimage.CheckVersion(l.Floor.Version); err != nil {
			return nil, fmt.Errorf("%w: floor: %w", ErrCorrupt, err)
		}
	}
	for name, e := range l.Slots {
		if name.Other() == "" || e == nil {
			return nil, fmt.Errorf("%w: slot %q", ErrCorrupt, name)
		}
	}
	if l.Slots == nil {
		l.Slots = map[device.Slot]*Entry{}
	}
	return l, nil
}

// Encode is the file's content.
func (l *Ledger) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the ledger: %w", err)
	}
	return append(data, '\n'), nil
}

// New returns the ledger of a machine that was just installed: slot A holds the
// image and is what the machine may not go below.
func New(e Entry, at time.Time) (*Ledger, error) {
	l := empty()
	e.State, e.StagedAt = Staged, at
	l.Slots[device.SlotA] = &e
	l.Add(Event{At: at, Kind: "installed", Slot: device.SlotA, Version: e.Version, Digest: e.Digest, Rule: e.Basis.rule()})
	return l, l.Commit(device.SlotA, at)
}

func empty() *Ledger { return &Ledger{Schema: schema, Slots: map[device.Slot]*Entry{}} }

// Probe fails where Update could not write: it writes a file beside the ledger,
// durably, and removes it. Callers hold the machine's lock.
func (s *Store) Probe() error {
	probe := filepath.Join(s.dir, ".probe")
	err := os.MkdirAll(s.dir, 0o755)
	if err == nil {
		err = atomicfile.Sweep(probe) // left by a cut
	}
	if err == nil {
		err = atomicfile.Write(probe, []byte("osctl\n"), 0o600)
	}
	if err == nil {
		err = os.Remove(probe)
	}
	if err != nil {
		return fmt.Errorf("checking that the ledger can be changed: %w", err)
	}
	return nil
}

// Update changes the ledger durably: read, change, replace. A corrupt file is
// kept beside the new one as ledger.json.corrupt. Callers hold the machine's lock.
func (s *Store) Update(change func(*Ledger) error) error {
	l, err := s.Load()
	if errors.Is(err, ErrCorrupt) {
		l.Add(Event{At: time.Now().UTC(), Kind: "rebuilt", Reason: "kept as " + File + ".corrupt, begun anew: " + err.Error()})
		err = os.Rename(s.path(), s.path()+".corrupt")
	}
	if err != nil {
		return fmt.Errorf("changing the ledger: %w", err)
	}
	if err := change(l); err != nil {
		return err
	}
	data, err := l.Encode()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("changing the ledger: %w", err)
	}
	// Whoever changes the ledger holds the machine's lock, so nobody else writes.
	if err := atomicfile.Sweep(s.path()); err != nil {
		return fmt.Errorf("changing the ledger: %w", err)
	}
	if err := atomicfile.Write(s.path(), data, 0o644); err != nil {
		return fmt.Errorf("changing the ledger: %w", err)
	}
	return nil
}
