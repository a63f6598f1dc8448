package nbd

import "sync"

// queue hands requests to workers. At most one worker at a time is on its way to
// work, and has the next one come when it finds more than it takes: where a
// request takes less time than waking a worker, few workers do them all; where
// they block, each soon has a worker of its own. It is as long as the window
// lets it be.
type queue struct {
	start func() // runs a worker, which calls arrive and then pop until nil
	max   int    // of workers

	mu      sync.Mutex
	work    sync.Cond // L is mu
	reqs    []*request
	taken   int // reqs[:taken] are
	started int // workers
	idle    int // workers that wait
	waking  bool
	closed  bool
}

func newQueue(workersMax int, start func()) *queue {
	q := &queue{start: start, max: workersMax}
	q.work.L = &q.mu
	return q
}

// push adds r.
func (q *queue) push(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reqs = append(q.reqs, r)
	q.wake()
}

// wake has a worker come for what is there.
func (q *queue) wake() {
	switch {
	case q.waking:
	case q.idle > 0:
		q.waking = true
		q.work.Signal()
	case q.started < q.max:
		q.waking = true
		q.started++
		q.start()
	}
}

// arrive is a new worker's first word.
func (q *queue) arrive() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waking = false
}

// pop returns the next request, nil after close when all are taken.
func (q *queue) pop() *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.taken == len(q.reqs) {
		if q.closed {
			return nil
		}
		q.idle++
		q.work.Wait()
		q.idle--
		q.waking = false
	}
	r := q.reqs[q.taken]
	q.reqs[q.taken] = nil
	if q.taken++; q.taken == len(q.reqs) {
		q.reqs, q.taken = q.reqs[:0], 0
	} else {
		q.wake()
	}
	return r
}

// close ends the workers when all is done.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Broadcast()
}
