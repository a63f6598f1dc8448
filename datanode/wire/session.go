package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"plinth/datanode"
)

const (
	// slotsMax bounds the calls of a session that are under way, and so the
	// replies that are kept for it.
	slotsMax = 1024
	// keptBytesMax bounds the bytes of those. What would be more is not kept: if
	// its connection breaks, the outcome is unknown to the client.
	keptBytesMax = 16 << 20
	// sessionBytes bounds the requests of a session that are in memory, and
	// sessionReplyBytes the replies.
	sessionBytes      = 64 << 20
	sessionReplyBytes = 64 << 20
)

// state of a server's slot.
type state uint8

const (
	idle state = iota // no call yet
	queued
	running
	finished
)

// place is a slot at the server: the newest call of the slot, and what it gave.
// A call under the next number says that the client has the reply.
type place struct {
	seq     uint64
	state   state
	call    Call
	request *frame
	reply   *frame // nil if it is not kept
	conn    *conn  // on which the call was asked for last
	ctx     *callContext
}

// session is one client's calls at the server. It outlives its connections for
// a while, so that a call is carried out once however often it is sent.
type session struct {
	id       [16]byte
	instance uint64
	peer     Identity
	server   *Server
	allowed  CallSet
	requests *semaphore.Weighted
	replies  *semaphore.Weighted
	freed    func(*frame) // gives a request's bytes back

	turn turn // under the scheduler's mu

	mu     sync.Mutex
	places []place
	conns  map[*conn]struct{}
	kept   int
	active int // calls that run
	ended  bool
	over   chan struct{} // closed when it has ended and nothing runs
	expiry *time.Timer
	// without is how long it lives without a connection.
	without time.Duration
}

func newSession(s *Server, id [16]byte, peer Identity) *session {
	x := &session{
		id: id, peer: peer, server: s, allowed: s.opts.Allow[peer.Role],
		requests: semaphore.NewWeighted(sessionBytes), replies: semaphore.NewWeighted(sessionReplyBytes),
		places: make([]place, slotsMax), conns: map[*conn]struct{}{}, over: make(chan struct{}), without: s.opts.SessionTimeout,
	}
	x.freed = func(f *frame) {
		x.requests.Release(int64(f.bytes))
		s.requests.Release(int64(f.bytes))
	}
	return x
}

// join adds a connection; false if the session has ended.
func (x *session) join(c *conn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return false
	}
	x.conns[c] = struct{}{}
	if x.expiry != nil {
		x.expiry.Stop()
		x.expiry = nil
	}
	return true
}

// hush ends the calls that wait for something to happen, which may be long.
func (x *session) hush() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.places {
		if p := &x.places[i]; p.state == running && p.call == RegistryWatch {
			p.ctx.end(context.Canceled)
		}
	}
}

func (x *session) hasEnded() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ended
}

// part removes a connection; without any, the session ends after a while.
func (x *session) part(c *conn) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, c)
	x.expire()
}

// expire starts the clock of a session without connections; mu is held.
func (x *session) expire() {
	if len(x.conns) == 0 && !x.ended && x.expiry == nil {
		x.expiry = time.AfterFunc(x.without, func() { x.end(datanode.ErrOutcome, true) })
	}
}

// receive takes a frame from a connection. An error means that the client breaks
// the rules.
func (x *session) receive(c *conn, h header, f *frame) error {
	switch h.kind {
	case kindRequest:
		return x.request(c, h, f)
	case kindCancel:
		f.release()
		return x.cancel(c, h)
	case kindGoodbye:
		f.release()
		x.end(datanode.ErrClosed, false)
		return errParted
	}
	f.release()
	return fmt.Errorf("frame of kind %d from a client", h.kind)
}

// admit waits for memory for a request, and returns what gives it back.
func (x *session) admit(ctx context.Context, h header) (func(*frame), error) {
	if h.kind != kindRequest {
		return nil, nil
	}
	n := int64(headerBytes) + int64(h.length)
	if err := x.requests.Acquire(ctx, n); err != nil {
		return nil, err
	}
	if err := x.server.requests.Acquire(ctx, n); err != nil {
		x.requests.Release(n)
		return nil, err
	}
	return x.freed, nil
}

func (x *session) request(c *conn, h header, f *frame) error {
	if int(h.slot) >= len(x.places) || h.length < timeoutBytes {
		f.release()
		return fmt.Errorf("request of %d bytes in slot %d", h.length, h.slot)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	p := &x.places[h.slot]
	switch {
	case x.ended || p.state != idle && h.seq < p.seq:
		f.release() // of a connection that broke; nobody waits for it
		return nil
	case p.state == idle || h.seq > p.seq:
		if p.state == queued || p.state == running {
			f.release()
			return fmt.Errorf("slot %d is used again before its call was answered", h.slot)
		}
		x.forget(p)
		*p = place{seq: h.seq, call: h.call}
	case p.state == queued || p.state == running:
		p.conn = c
		f.release()
		return nil
	case p.reply != nil || !p.call.again():
		f.release()
		if p.reply != nil {
			c.send(p.reply)
		} else {
			sendError(c, h, datanode.Errorf(datanode.ErrOutcome, "%s: its reply was not kept", p.call))
		}
		return nil
	case h.call != p.call:
		f.release()
		return fmt.Errorf("slot %d: a call that was %s is %s now", h.slot, p.call, h.call)
	}
	p.conn = c
	if refusal := x.refusal(h.call); refusal != nil {
		f.release()
		x.settle(p, composeError(h, refusal), true)
		return nil
	}
	p.state, p.request = queued, f
	if ms := binary.LittleEndian.Uint32(f.buf[headerBytes:]); ms == 0 {
		p.ctx = &callContext{}
	} else {
		p.ctx = &callContext{deadline: time.Now().Add(time.Duration(ms) * time.Millisecond)}
	}
	if !x.server.schedule.submit(x, task{h.slot, h.seq}, c.bulk) {
		return errQueue
	}
	return nil
}

// refusal says why a call is not even tried.
func (x *session) refusal(call Call) *datanode.Error {
	switch {
	case !x.allowed.Has(call):
		return datanode.Errorf(datanode.ErrForbidden, "%s: %s", x.peer, call)
	case x.server.draining.Load():
		return datanode.ErrClosed
	}
	return nil
}

// cancel ends a call that nobody waits for. One that has not come yet will not
// be carried out.
func (x *session) cancel(c *conn, h header) error {
	if int(h.slot) >= len(x.places) {
		return fmt.Errorf("cancel of slot %d", h.slot)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	p := &x.places[h.slot]
	switch {
	case x.ended || p.state != idle && h.seq < p.seq:
	case p.state == idle || h.seq > p.seq:
		if p.state == queued || p.state == running {
			return fmt.Errorf("slot %d is used again before its call was answered", h.slot)
		}
		x.forget(p)
		*p = place{seq: h.seq, call: Status, conn: c}
		x.settle(p, composeError(header{call: Status, slot: h.slot, seq: h.seq}, errCancelled), true)
	case p.state == queued:
		p.conn = c
		p.request.release()
		p.request = nil
		x.settle(p, composeError(header{call: p.call, slot: h.slot, seq: h.seq}, errCancelled), true)
	case p.state == running:
		p.conn = c
		p.ctx.end(context.Canceled)
	case p.reply != nil:
		c.send(p.reply)
	default:
		sendError(c, header{call: p.call, slot: h.slot, seq: h.seq}, errCancelled)
	}
	return nil
}

var errCancelled = datanode.Errorf(datanode.ErrTimeout, "the caller has given up")

// settle ends a call: its reply, whose frame is taken over, is sent and, if that
// is asked for, kept. mu is held.
func (x *session) settle(p *place, reply *frame, keep bool) {
	p.state, p.ctx = finished, nil
	if x.ended {
		reply.release()
		return
	}
	if p.conn != nil {
		p.conn.send(reply)
		p.conn = nil
	}
	if keep && x.kept+reply.bytes <= keptBytesMax {
		x.kept += reply.bytes
		p.reply = reply
		return
	}
	reply.release()
}

// forget gives up a kept reply; mu is held.
func (x *session) forget(p *place) {
	if p.reply != nil {
		x.kept -= p.reply.bytes
		p.reply.release()
		p.reply = nil
	}
}

func sendError(c *conn, h header, e *datanode.Error) {
	f := composeError(h, e)
	c.send(f)
	f.release()
}

// carry carries a task out, unless it was cancelled.
func (x *session) carry(t task) {
	x.mu.Lock()
	p := &x.places[t.slot]
	if x.ended || p.seq != t.seq || p.state != queued {
		x.mu.Unlock()
		return
	}
	p.state = running
	x.active++
	f, ctx, call := p.request, p.ctx, p.call
	p.request = nil
	x.mu.Unlock()

	head := header{kind: kindReply, call: call, slot: t.slot, seq: t.seq}
	var reserved int64
	j := job{ctx: ctx, node: x.server.node, head: head, message: f.message()[timeoutBytes:], reserve: func(bytes int) error {
		n := min(int64(bytes), sessionReplyBytes)
		if err := x.replies.Acquire(ctx, n); err != nil {
			return err
		}
		if err := x.server.replies.Acquire(ctx, n); err != nil {
			x.replies.Release(n)
			return err
		}
		reserved = n
		return nil
	}}
	var reply *frame
	err := datanode.AsError(ctxError(ctx))
	if err == nil {
		reply, err = handlers[call](&j)
	}
	if err != nil {
		reply = composeError(head, err)
	}
	f.release()
	if reserved > 0 {
		reply.done = func(*frame) {
			x.replies.Release(reserved)
			x.server.replies.Release(reserved)
		}
	}

	x.mu.Lock()
	x.settle(p, reply, !call.again())
	x.active--
	last := x.ended && x.active == 0
	x.mu.Unlock()
	if last {
		x.server.remove(x)
	}
}

// ctxError is the error of a context that has ended, as it is sent.
func ctxError(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fromNode(err)
	}
	return nil
}

// end gives the session up, or one without connections if unused is set: what
// waits is dropped, what runs is cancelled, and the connections are told why and
// ended. Its server knows it until nothing of it runs.
func (x *session) end(why *datanode.Error, unused bool) {
	x.mu.Lock()
	if x.ended || unused && len(x.conns) > 0 {
		x.mu.Unlock()
		return
	}
	x.ended = true
	if x.expiry != nil {
		x.expiry.Stop()
	}
	for i := range x.places {
		p := &x.places[i]
		x.forget(p)
		if p.request != nil {
			p.request.release()
			p.request = nil
		}
		if p.ctx != nil {
			p.ctx.end(context.Canceled)
		}
	}
	conns := x.conns
	x.conns = nil
	none := x.active == 0
	x.mu.Unlock()
	if none {
		x.server.remove(x)
	}
	var parting sync.WaitGroup
	for c := range conns {
		parting.Go(func() { c.goodbye(why) })
	}
	parting.Wait()
}
