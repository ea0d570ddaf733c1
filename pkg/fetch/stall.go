package fetch

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// stall is how long a body may bring nothing before the connection is given up.
const stall = time.Minute

// watched cancels a transfer that brings no bytes for a while.
type watched struct {
	io.Reader
	limit time.Duration
	timer *time.Timer
	fired atomic.Bool
}

func watch(r io.Reader, limit time.Duration, cancel func()) *watched {
	w := &watched{Reader: r, limit: limit}
	w.timer = time.AfterFunc(limit, func() {
		w.fired.Store(true)
		cancel()
	})
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.timer.Reset(w.limit)
	}
	return n, err
}

func (w *watched) stop() { w.timer.Stop() }

// explain names the stall, which otherwise looks like a cancelled context.
func (w *watched) explain(err error) error {
	if w.fired.Load() {
		return fmt.Errorf("no data for %s: %w", w.limit, errors.New(err.Error()))
	}
	return err
}
