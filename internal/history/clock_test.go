package history

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

const (
	tickTime = 100 * time.Millisecond
	// stopTime between two ticks is more than a busy machine makes of one.
	stopTime = 5 * time.Second
)

// errHangs is the cause of a context that has ended by itself.
var errHangs = errors.New("it hangs")

// clock tells how long the process ran: a soak may be stopped for minutes, in which
// Go's timers go on.
type clock struct {
	ticks atomic.Int64
	stops atomic.Int64 // how often it stood still
}

// startClock returns one that runs to the end of the test.
func startClock(t *testing.T) *clock {
	c := &clock{}
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		ticker := time.NewTicker(tickTime) // which drops ticks that nobody takes
		defer ticker.Stop()
		for last := time.Now(); ; c.ticks.Add(1) {
			select {
			case <-ticker.C:
			case <-done:
				return
			}
			if time.Since(last) > stopTime {
				c.stops.Add(1)
			}
			last = time.Now()
		}
	}()
	return c
}

// within is context.WithTimeout by this clock.
func (c *clock) within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	end := c.ticks.Load() + int64(limit/tickTime)
	var check func()
	check = func() {
		switch {
		case ctx.Err() != nil:
		case c.ticks.Load() >= end:
			cancel(errHangs)
		default:
			time.AfterFunc(limit/8, check)
		}
	}
	time.AfterFunc(limit/8, check)
	return ctx, func() { cancel(nil) }
}
