package gate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// limitWaitMax bounds how long a limit holds a request: half of what a request over
// NBD has. A guest takes an error for a broken disk; so where a queue is too deep
// for its limit, the limit gives way.
const limitWaitMax = time.Minute

// limiter holds requests to limits, in the order in which they come.
type limiter struct {
	on atomic.Bool

	mu      sync.Mutex
	limits  Limits
	buckets *buckets // nil: none
	line    line
	waiters waiters
	timer   *time.Timer // for the head of the line; nil before it was needed
	waits   int64
	waited  time.Duration
}

// set changes the limits for what waits and what comes.
func (l *limiter) set(limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits, l.buckets = limits, nil
	now := time.Now()
	if limits.Any() {
		l.buckets = newBuckets(&limits, now)
	}
	l.on.Store(l.buckets != nil)
	l.release(now)
}

// tryEnter lets an operation pass at once or returns false.
func (l *limiter) tryEnter(op Op) bool {
	if _, ok := counted(op); !ok || !l.on.Load() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.try(op, time.Now())
}

// try is tryEnter; l.mu is held.
func (l *limiter) try(op Op, now time.Time) bool {
	switch {
	case l.buckets == nil:
		return true
	case l.line.n > 0 || l.buckets.wait(now, op) > 0:
		return false
	}
	l.buckets.take(op)
	return true
}

// giveBack is for an operation that passed and is not done now.
func (l *limiter) giveBack(op Op) {
	if _, ok := counted(op); !ok || !l.on.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets != nil {
		l.buckets.giveBack(op)
	}
}

// enter returns when an operation may pass, or with ctx's error.
func (l *limiter) enter(ctx context.Context, op Op) error {
	if _, ok := counted(op); !ok || !l.on.Load() {
		return ctx.Err()
	}
	now := time.Now()
	l.mu.Lock()
	if l.try(op, now) {
		l.mu.Unlock()
		return ctx.Err()
	}
	w := l.waiters.get()
	w.since, w.op = now, op
	l.line.push(w)
	l.waits++
	if l.line.n == 1 {
		l.release(now)
	}
	l.mu.Unlock()
	passed := w.wait(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !passed {
		select {
		case <-w.ready: // it was let pass meanwhile
			if l.buckets != nil {
				l.buckets.giveBack(op)
			}
		default:
			l.line.remove(w)
		}
		l.release(time.Now())
	}
	l.waited += time.Since(w.since)
	l.waiters.put(w)
	if !passed {
		return ctx.Err()
	}
	return nil
}

// release lets pass what may, and sees to it that the next is when it may; l.mu is
// held.
func (l *limiter) release(now time.Time) {
	for w := l.line.head; w != nil; w = l.line.head {
		if l.buckets != nil {
			wait := min(l.buckets.wait(now, w.op), limitWaitMax-now.Sub(w.since))
			if wait > 0 {
				l.arm(wait)
				return
			}
			l.buckets.take(w.op)
		}
		l.line.remove(w)
		w.ready <- struct{}{}
	}
}

func (l *limiter) arm(wait time.Duration) {
	if l.timer != nil {
		l.timer.Reset(wait)
		return
	}
	l.timer = time.AfterFunc(wait, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.release(time.Now())
	})
}
