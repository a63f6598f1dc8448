package nbd

import "sync"

// window bounds the requests in flight on a connection and the bytes that they
// hold, and knows when a draining connection has answered what it accepted.
// Only the reader acquires; so one waiter at most.
type window struct {
	requestsMax int
	bytesMax    int64
	// drained is called, perhaps more than once, without mu, when draining has
	// begun and no accepted request is left.
	drained func()

	mu       sync.Mutex
	room     sync.Cond // L is mu
	requests int
	accepted int // of requests: not refused
	bytes    int64
	draining bool
	free     []*request // at most requestsMax
	made     []*request // all there are, at most requestsMax; only appended to
}

func newWindow(requestsMax int, bytesMax int64, drained func()) *window {
	w := &window{requestsMax: requestsMax, bytesMax: bytesMax, drained: drained}
	w.room.L = &w.mu
	return w
}

// tryAcquire returns a request charged with n bytes, or nil when there is no
// room now. A request larger than the window goes when it is alone.
func (w *window) tryAcquire(n int64) *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.fits(n) {
		return nil
	}
	return w.take(n)
}

// acquire is tryAcquire that waits for room. It ends: what is in flight is
// released when its reply is written, or cannot be.
func (w *window) acquire(n int64) *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.fits(n) {
		w.room.Wait()
	}
	return w.take(n)
}

func (w *window) fits(n int64) bool {
	return w.requests < w.requestsMax && (w.bytes+n <= w.bytesMax || w.bytes == 0)
}

func (w *window) take(n int64) *request {
	var r *request
	if k := len(w.free); k > 0 {
		r, w.free = w.free[k-1], w.free[:k-1]
	} else {
		r = new(request)
		w.made = append(w.made, r)
	}
	r.charged, r.refused = n, w.draining
	w.requests++
	w.bytes += n
	if !r.refused {
		w.accepted++
	}
	return r
}

// alone reports that one request is in flight.
func (w *window) alone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests == 1
}

// empty reports that no request is in flight.
func (w *window) empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests == 0
}

// requestsMade returns all requests that the window has ever given out.
func (w *window) requestsMade() []*request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.made
}

// release ends requests whose replies are written, or never will be.
func (w *window) release(rs []*request) {
	w.mu.Lock()
	for _, r := range rs {
		if r.substitute {
			continue
		}
		r.reset()
		w.requests--
		w.bytes -= r.charged
		if !r.refused {
			w.accepted--
		}
		w.free = append(w.free, r)
	}
	done := w.draining && w.accepted == 0
	w.room.Signal()
	w.mu.Unlock()
	if done {
		w.drained()
	}
}

// drain refuses what comes from now on, and has drained called as soon as what
// was accepted is answered.
func (w *window) drain() {
	w.mu.Lock()
	w.draining = true
	done := w.accepted == 0
	w.mu.Unlock()
	if done {
		w.drained()
	}
}
