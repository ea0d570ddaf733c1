package progress

import "sync/atomic"

// Counter adds up the bytes of one phase and sends an event for each addition.
// It is safe for use by several goroutines.
type Counter struct {
	sink  Sink
	phase Phase
	total int64
	done  atomic.Int64
}

// NewCounter announces the phase with its total (bytes, 0 for unknown).
func NewCounter(sink Sink, phase Phase, total int64) *Counter {
	sink.Send(Event{Phase: phase, Total: total})
	return &Counter{sink: sink, phase: phase, total: total}
}

// Add counts n more bytes.
func (c *Counter) Add(n int64) {
	c.sink.Send(Event{Phase: c.phase, Done: c.done.Add(n), Total: c.total})
}
