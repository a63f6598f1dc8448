package gate

import (
	"context"
	"time"
)

// waiter is a request that waits.
type waiter struct {
	ready      chan struct{} // has room for one, sent when it may pass
	since      time.Time
	cost       float64
	op         Op
	prev, next *waiter // in its line; of what waits no more, nil
}

// line is a queue of waiters. Its owner's lock guards it.
type line struct {
	head, tail *waiter
	n          int
}

func (l *line) push(w *waiter) {
	w.prev, w.next = l.tail, nil
	if l.tail == nil {
		l.head = w
	} else {
		l.tail.next = w
	}
	l.tail = w
	l.n++
}

func (l *line) remove(w *waiter) {
	if w.prev == nil {
		l.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
	l.n--
}

// waitersKept bounds the waiters that are kept for reuse: as many as a deep queue
// has.
const waitersKept = 256

// waiters keeps those that have passed for reuse, under its owner's lock.
type waiters struct{ kept []*waiter }

func (p *waiters) get() *waiter {
	if n := len(p.kept); n > 0 {
		w := p.kept[n-1]
		p.kept = p.kept[:n-1]
		return w
	}
	return &waiter{ready: make(chan struct{}, 1)}
}

func (p *waiters) put(w *waiter) {
	if len(p.kept) < waitersKept {
		p.kept = append(p.kept, w)
	}
}

// wait returns true when w may pass, or false when ctx ends first; then it may
// have passed all the same.
func (w *waiter) wait(ctx context.Context) bool {
	select {
	case <-w.ready:
		return true
	case <-ctx.Done():
		return false
	}
}
