package wire

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a call at the server. Most nodes look at it once
// or twice; so the channel and the timer are made only for who waits for them.
// It implements what package context asks of contexts that it did not make, so
// that a child of it costs no goroutine.
type callContext struct {
	deadline time.Time // zero for none

	mu    sync.Mutex
	err   error
	done  chan struct{}
	timer *time.Timer
	after map[int]func()
	next  int
}

func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

func (c *callContext) Value(any) any { return nil }

func (c *callContext) Err() error {
	c.mu.Lock()
	if c.err != nil || c.deadline.IsZero() || time.Now().Before(c.deadline) {
		defer c.mu.Unlock()
		return c.err
	}
	c.mu.Unlock()
	c.end(context.DeadlineExceeded)
	return context.DeadlineExceeded
}

func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
		c.time()
	}
	return c.done
}

// AfterFunc has f run once the context has ended.
func (c *callContext) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = map[int]func(){}
	}
	n := c.next
	c.next++
	c.after[n] = f
	c.time()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, waiting := c.after[n]
		delete(c.after, n)
		return waiting
	}
}

// time starts the timer of the deadline; mu is held.
func (c *callContext) time() {
	if c.timer == nil && c.err == nil && !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.end(context.DeadlineExceeded) })
	}
}

// end ends the context. The first reason counts.
func (c *callContext) end(why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	if c.done != nil {
		close(c.done)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	after := c.after
	c.after = nil
	c.mu.Unlock()
	for _, f := range after {
		go f()
	}
}
