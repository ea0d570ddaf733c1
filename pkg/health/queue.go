package health

import (
	"slices"
	"sync"
)

// queue lets one at a time have its turn, in the order in which they joined.
type queue struct {
	mu    sync.Mutex
	turns []*turn // the first one has come
}

// turn is a place in a queue.
type turn struct{ come chan struct{} } // closed when it has come

// join takes the last place.
func (q *queue) join() *turn {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := &turn{make(chan struct{})}
	if q.turns = append(q.turns, t); len(q.turns) == 1 {
		close(t.come)
	}
	return t
}

// leave gives a place up, whether its turn has come or not.
func (q *queue) leave(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.turns, t)
	if i < 0 {
		return
	}
	q.turns = slices.Delete(q.turns, i, i+1)
	if i == 0 && len(q.turns) > 0 {
		close(q.turns[0].come)
	}
}
