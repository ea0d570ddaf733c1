// Package progress carries typed progress events from the packages that move
// bytes to whoever shows them. It renders nothing: cmd/osctl does.
package progress

import (
	"io"
)

// Phase names a stage of an operation.
type Phase string

// The phases in the order in which an upgrade goes through them.
const (
	Resolve  Phase = "resolve"  // name to digest
	Verify   Phase = "verify"   // manifest, config, signatures, decision
	Compare  Phase = "compare"  // what the slot holds already
	Fetch    Phase = "fetch"    // packs into the content store
	Write    Phase = "write"    // segments into the slot
	Check    Phase = "check"    // read back from the medium
	Rehearse Phase = "rehearse" // the written system with its /etc
	Arm      Phase = "arm"      // /etc, ledger, boot state
	Build    Phase = "build"    // image into packs
	Push     Phase = "push"     // layout to a registry
)

// Event is one observation. Done and Total count bytes; Total 0 means unknown.
type Event struct {
	Phase Phase  `json:"phase"`
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"`
	Text  string `json:"text,omitempty"`
}

// Sink receives events. It is called from several goroutines, returns quickly
// and may be nil.
type Sink func(Event)

// Send passes e on; a nil Sink drops it.
func (s Sink) Send(e Event) {
	if s != nil {
		s(e)
	}
}

// Say announces a phase with a text for people.
func (s Sink) Say(p Phase, text string) { s.Send(Event{Phase: p, Text: text}) }

// Reader counts the bytes that pass through r and calls add with each count.
func Reader(r io.Reader, add func(n int64)) io.Reader { return &reader{r, add} }

type reader struct {
	io.Reader
	add func(int64)
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.add(int64(n))
	}
	return n, err
}
