package host

import (
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"plinth/datanode"
)

// BootTime is the clock that leases are counted by: it goes on while the machine
// is suspended, which time.Now's does not. Where it cannot be read, every lease
// has ended.
func BootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return math.MaxInt64
	}
	return time.Duration(t.Nano())
}

// term is one lease as those see it that reply under it. A term that is lost is
// never valid again: the next lease is another term.
type term struct {
	lease datanode.LeaseID
	clock func() time.Duration // the session's
	lost  atomic.Bool
	until atomic.Int64 // by clock, ns
	last  atomic.Pointer[reading]
}

// reading says what the clocks were at one instant.
type reading struct {
	at    time.Time // wall and monotonic
	wall  int64     // of at, Unix ns
	clock time.Duration
}

// clockSlack is how far two clocks that have the same rate may seem to be apart
// because they are not read at once.
const clockSlack = time.Millisecond

// valid reports whether replies may leave (I6). It costs what reading time.Now
// does, 50 ns, where asking the kernel for the clock of leases takes 330: as long as
// wall clock and monotonic clock go on together the machine was not suspended,
// because that shows in the wall clock alone, and then the clock of leases went on
// with them. A wall clock that was set looks alike, and the right clock is asked.
func (t *term) valid() bool {
	if t.lost.Load() {
		return false
	}
	until := t.until.Load()
	if until == math.MaxInt64 {
		return true
	}
	now := time.Now()
	if r := t.last.Load(); r != nil {
		passed := now.Sub(r.at)
		if apart := time.Duration(now.UnixNano()-r.wall) - passed; -clockSlack < apart && apart < clockSlack {
			return int64(r.clock+passed+clockSlack) < until
		}
	}
	// The clock that counts is read last, and so what follows from this reading
	// later is late and never early.
	r := &reading{at: now, wall: now.UnixNano(), clock: t.clock()}
	t.last.Store(r)
	return int64(r.clock) < until
}
