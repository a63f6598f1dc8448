package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// pollTime is what a client on this machine takes to send its next request, which
	// is more where nothing else runs: then its processor sleeps, and takes 15 µs to
	// wake. To sleep here too takes as much again.
	pollTime = 30 * time.Microsecond
	// pollGap is between two tries: each takes the lock that a sending client needs.
	pollGap = 2 * time.Microsecond
	// pollSkipsMax bounds what polling costs for a client that is slower: one poll in
	// so many waits.
	pollSkipsMax = 64
)

// pollers are the goroutines that poll. The rest of the processors is for clients,
// and for what else there is to do.
var (
	pollers    atomic.Int32
	pollersMax = int32(runtime.GOMAXPROCS(0) / 2)
)

// poll is how a reader waits for its client's next request: for a moment by asking
// again, where that has helped lately.
type poll struct {
	skips int // waits until the next poll
	last  int // what skips was set to; 0 after a success
}

// wait calls try until it succeeds, for pollTime at most, and reports its success.
func (p *poll) wait(try func() bool) bool {
	if p.skips > 0 {
		p.skips--
		return false
	}
	defer pollers.Add(-1)
	if pollers.Add(1) > pollersMax {
		return false
	}
	start := time.Now()
	for at := time.Duration(0); at < pollTime; {
		for next := at + pollGap; at < next; {
			at = time.Since(start)
		}
		if try() {
			p.last = 0
			return true
		}
	}
	p.last = min(2*p.last+1, pollSkipsMax)
	p.skips = p.last
	return false
}
