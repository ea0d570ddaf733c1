package assemble

import (
	"context"
	"sync"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// Ahead fetches packs while it is still being found out which ones are needed, so
// that the network does not wait for the slot to be read. It decodes nothing.
type Ahead struct {
	packs  []pack // all of them, in order
	next   int    // the first one that was not looked at yet
	queue  chan pack
	worker sync.WaitGroup
	mu     sync.Mutex
	err    error
}

// NewAhead starts fetching. Every Ahead has to be stopped.
func NewAhead(ctx context.Context, img osimage.Image, blobs osimage.Blobs) *Ahead {
	a := &Ahead{}
	a.packs, _ = needed(img, func(int) bool { return false })
	a.queue = make(chan pack, len(a.packs))
	for range ahead {
		a.worker.Go(func() {
			for p := range a.queue {
				if a.failed() == nil {
					a.fetch(ctx, p, blobs)
				}
			}
		})
	}
	return a
}

func (a *Ahead) fetch(ctx context.Context, p pack, blobs osimage.Blobs) {
	rc, err := blobs.Open(ctx, p.desc)
	if err == nil {
		err = rc.Close()
	}
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.err == nil {
			a.err = err
		}
	}
}

func (a *Ahead) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Need asks for the pack that holds segment i. It never waits. Segments have to
// come in order.
func (a *Ahead) Need(i int) {
	for a.next < len(a.packs) && a.packs[a.next].first <= i {
		p := a.packs[a.next]
		a.next++
		if i < p.first+p.count {
			a.queue <- p
		}
	}
}

// Stop begins no further pack, waits for those under way and returns the first
// error. What was fetched is found again when it is opened.
func (a *Ahead) Stop() error {
	for {
		select {
		case <-a.queue:
			continue
		default:
		}
		break
	}
	close(a.queue)
	a.worker.Wait()
	return a.failed()
}
