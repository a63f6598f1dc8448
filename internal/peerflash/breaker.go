package peerflash

import "time"

const (
	// pauseMin and pauseMax bound for how long a peer that failed is left alone.
	pauseMin = 100 * time.Millisecond
	pauseMax = time.Minute
	// unableTime is for how long one is that has no flash to read, or does not know this
	// protocol.
	unableTime = 10 * time.Minute
)

// backoff says whether a peer that has failed is asked. The zero value is one that has
// not.
type backoff struct {
	until time.Time
	pause time.Duration
}

// over reports whether the peer may be asked.
func (b *backoff) over(now time.Time) bool { return !now.Before(b.until) }

// failed begins a pause. What began before the last one says nothing new.
func (b *backoff) failed(now time.Time) {
	if b.over(now) {
		b.pause = min(max(2*b.pause, pauseMin), pauseMax)
		b.until = now.Add(b.pause)
	}
}

// unable begins a long pause.
func (b *backoff) unable(now time.Time) { b.until = now.Add(unableTime) }

// answered ends the doubling, unless the peer has failed since.
func (b *backoff) answered(now time.Time) {
	if b.over(now) {
		b.pause = 0
	}
}

const (
	// rateWindow is how many chunks are looked back at, half to all of it.
	rateWindow = 512
	// ratePartMin: a peer is worth asking that has one chunk in so many. In time it pays
	// from far fewer on, but asking costs CPU time at both ends.
	ratePartMin = 4
	// sampleCold is how few reads are asked for of a peer that has less, and sampleEmpty of
	// one that had none of them.
	sampleCold  = 16
	sampleEmpty = 256
)

// rate says which reads are worth asking for. The zero value asks for all.
type rate struct {
	asked, here int // of chunks, of late
	skipped     int // reads, since one was asked for
}

// ask reports whether this read is one to ask for.
func (r *rate) ask() bool {
	every := 1
	if r.asked >= rateWindow/2 {
		switch {
		case r.here == 0:
			every = sampleEmpty
		case r.here*ratePartMin < r.asked:
			every = sampleCold
		}
	}
	if r.skipped++; r.skipped < every {
		return false
	}
	r.skipped = 0
	return true
}

// answered counts chunks that were asked for, and those that came.
func (r *rate) answered(asked, here int) {
	r.asked, r.here = r.asked+asked, r.here+here
	for r.asked >= rateWindow {
		r.asked, r.here = r.asked/2, r.here/2
	}
}
