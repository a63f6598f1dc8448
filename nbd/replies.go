package nbd

import (
	"net"
	"runtime"
	"sync"
)

// replies is a connection's way out. Finished requests are pushed; flush
// writes what was pushed, gathered into few writes. Whoever flushes
// first writes for all who push meanwhile: the reader, a worker with a lone
// reply, which so costs no hand-over, or the writer, which comes when workers
// have nothing better to do. The queue is bounded by the window.
type replies struct {
	conn   net.Conn
	window *window
	form   form

	mu      sync.Mutex
	pending []*request
	bytes   int // of pending replies
	writing bool
	kick    sync.Cond // L is mu; wakes the writer
	kicked  bool      // the writer is to come
	ended   bool
	broken  bool // a write failed: replies are dropped, not written

	// Owned by the goroutine that set writing.
	batch []*request
	flat  []byte
	parts [][]byte
}

const (
	// flatBytes gathers small pieces by copying; a copy of a few KiB costs
	// less than one more system call.
	flatBytes    = 128 << 10
	copyBytesMax = 8 << 10
	// flushBytes bounds what the reader lets pile up while it answers inline.
	flushBytes = 256 << 10
)

func newReplies(conn net.Conn, w *window, f form) *replies {
	q := &replies{conn: conn, window: w, form: f, flat: make([]byte, 0, flatBytes)}
	q.kick.L = &q.mu
	return q
}

// push queues r's reply and takes r over. It reports that so much is pending
// that the caller should flush even if more is to come.
func (q *replies) push(r *request) bool {
	r.encode(q.form)
	n := 0
	for _, b := range r.out {
		n += len(b)
	}
	q.mu.Lock()
	q.pending = append(q.pending, r)
	q.bytes += n
	full := q.bytes >= flushBytes
	q.mu.Unlock()
	return full
}

// flush sees to it that what was pushed gets written: by this goroutine, which
// then blocks as the network does, or by one that is writing already.
func (q *replies) flush() {
	q.mu.Lock()
	if q.writing {
		q.mu.Unlock()
		return
	}
	q.writing = true
	for len(q.pending) > 0 {
		q.batch, q.pending = q.pending, q.batch[:0]
		q.bytes = 0
		broken := q.broken
		q.mu.Unlock()
		if !broken && !q.write() {
			broken = true
			q.conn.Close() // wakes the reader, which ends the connection
		}
		q.window.release(q.batch)
		q.mu.Lock()
		q.broken = broken
	}
	q.writing = false
	q.mu.Unlock()
}

// flushSoon has the writer flush. It runs when this goroutine waits or another
// processor is free: what others finish until then goes with it.
func (q *replies) flushSoon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.writing && !q.kicked && len(q.pending) > 0 {
		q.kicked = true
		q.kick.Signal()
	}
}

// writer flushes when told to, until end.
func (q *replies) writer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.ended {
		if !q.kicked {
			q.kick.Wait()
			continue
		}
		q.kicked = false
		q.mu.Unlock()
		// It runs before those who finished together with who kicked it: they come
		// first now, and their replies go along.
		runtime.Gosched()
		q.flush()
		q.mu.Lock()
	}
}

// end ends the writer; what is pending is left.
func (q *replies) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.kick.Signal()
}

// write sends the batch and reports success.
func (q *replies) write() bool {
	s, ok := q.conn.(*tlsStream)
	if !ok {
		return q.writeBatch()
	}
	s.pipe.cork()
	ok = q.writeBatch()
	return s.pipe.uncork() == nil && ok
}

func (q *replies) writeBatch() bool {
	q.flat, q.parts = q.flat[:0], q.parts[:0]
	cut := 0 // flat[cut:] is not yet in parts
	for _, r := range q.batch {
		for _, piece := range r.out {
			if len(piece) <= copyBytesMax && len(q.flat)+len(piece) <= cap(q.flat) {
				q.flat = append(q.flat, piece...)
				continue
			}
			if cut < len(q.flat) {
				q.parts = append(q.parts, q.flat[cut:])
				cut = len(q.flat)
			}
			q.parts = append(q.parts, piece)
		}
	}
	if cut < len(q.flat) {
		q.parts = append(q.parts, q.flat[cut:])
	}
	for i, p := range q.parts {
		if q.send(p, i < len(q.parts)-1) != nil {
			return false
		}
	}
	return true
}

func (q *replies) send(p []byte, more bool) (err error) {
	if s, ok := q.conn.(*socket); ok {
		_, err = s.write(p, more)
	} else {
		_, err = q.conn.Write(p)
	}
	return err
}
