package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// The slowest transfer that is waited for: 30 KiB in each minute that is spent on
// reading. Four packs at a time on such a connection are 16 kbit/s together.
const (
	leastBytes = 30 << 10
	leastTime  = time.Minute
)

var (
	errSlow   = errors.New("too slow")
	errLength = errors.New("the body is too long")
)

// pace is the least rate of a body.
type pace struct {
	least  int64
	within time.Duration
}

// body is a response's body with bounds on length and rate. Time in which nobody
// reads does not count.
type body struct {
	io.ReadCloser
	ctx    context.Context // that of the request; it ends when the body does
	cancel context.CancelCauseFunc
	pace   pace
	limit  int64 // bytes that may come
	read   int64
	got    int64 // bytes since the rate was last found good
	spent  time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	slow := fmt.Errorf("%w: less than %d bytes in %s", errSlow, b.pace.least, b.pace.within)
	begin := time.Now()
	timer := time.AfterFunc(b.pace.within-b.spent, func() { b.cancel(slow) })
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	b.spent += time.Since(begin)
	b.got += int64(n)
	b.read += int64(n)
	if b.got >= b.pace.least {
		b.got, b.spent = 0, 0
	}
	switch {
	case b.read > b.limit:
		return n, fmt.Errorf("%w: more than %d bytes", errLength, b.limit)
	case err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), errSlow):
		return n, context.Cause(b.ctx)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
