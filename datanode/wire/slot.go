package wire

import (
	"sync"

	"plinth/datanode"
)

// result is what a call gave: a reply, or an error.
type result struct {
	head  header
	reply *frame
	err   *datanode.Error
}

// waiter is who waits for a call.
type waiter struct{ done chan result }

var waiters = sync.Pool{New: func() any { return &waiter{done: make(chan result, 1)} }}

// slot is the client's side of a slot: one call at a time. It is taken from the
// time when a caller has it until the server has answered, also if the caller
// has given up: what the server may still carry out is in some slot.
type slot struct {
	index uint16
	bulk  bool

	mu      sync.Mutex
	seq     uint64
	call    Call
	taken   bool
	sent    bool    // the server may have it
	waiter  *waiter // nil: the caller has given up
	request *frame  // while somebody waits
	conn    *conn   // on which it was sent last; nil if that has ended
	freed   func()  // called when the slot is free again
}

// begin puts a call into a slot that is free.
func (s *slot) begin(call Call, f *frame, w *waiter, freed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	header{length: uint32(f.bytes - headerBytes), kind: kindRequest, call: call, slot: s.index, seq: s.seq}.put(f.buf)
	s.call, s.taken, s.sent, s.waiter, s.request, s.conn, s.freed = call, true, false, w, f, nil, freed
}

// transmit sends what the server must know about the slot. mu is held.
func (s *slot) transmit(c *conn) {
	if !s.taken {
		return
	}
	f := s.request
	if s.waiter == nil {
		f = composeEmpty(header{kind: kindCancel, slot: s.index, seq: s.seq})
		defer f.release()
	}
	if c.send(f) { // or else the end of c has it sent elsewhere
		s.sent, s.conn = true, c
	}
}

// unsettled reports whether the server cannot be asked again what became of the
// call, once it has forgotten the session. mu is held.
func (s *slot) unsettled() bool { return s.sent && !s.call.again() }

// answer ends the call, if one waits, and frees the slot for the next. mu is
// held. It reports whether it did something.
func (s *slot) answer(r result) bool {
	if !s.taken {
		return false
	}
	s.taken = false
	if s.waiter != nil {
		s.waiter.done <- r // it has room for the one
		s.request.release()
	} else if r.reply != nil {
		r.reply.release()
	}
	s.waiter, s.request, s.conn = nil, nil, nil
	if s.freed != nil {
		s.freed()
		s.freed = nil
	}
	return true
}

// desert lets the caller, which waits, go with an error, or without one if it
// knows; the slot stays taken until the server has said that it is done with the
// call. mu is held. It reports whether the slot is free, because the server never
// had the call.
func (s *slot) desert(err *datanode.Error) bool {
	if err != nil {
		s.waiter.done <- result{err: err}
	}
	s.request.release()
	s.waiter, s.request = nil, nil
	if !s.sent {
		return s.answer(result{})
	}
	if s.conn != nil {
		s.transmit(s.conn)
	}
	return false
}
