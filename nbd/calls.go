package nbd

import (
	"context"
	"time"

	"plinth/nbd/internal/wire"
)

// dispatch hands r to a worker. It does not block: there may be a worker for
// every request that the window admits.
func (t *transmission) dispatch(r *request) {
	t.begin(r)
	t.queue.push(r)
}

// begin gives r the time that its device call may take; ended follows it.
func (t *transmission) begin(r *request) {
	t.calls.Add(1)
	r.ctx = t.deadline()
	r.due.Store(t.slice.due)
}

// slice is a deadline that the requests of some time share, so that none costs
// an allocation or a timer of its own.
type slice struct {
	ctx    context.Context
	cancel context.CancelFunc
	end    time.Time // requests from here on get another one
	due    int64     // of its requests
}

// slicesPerDeadline bounds the deadlines alive on a connection, and by how much
// a request may have more time than Options.RequestTimeout: 1/16.
const slicesPerDeadline = 16

// deadline returns a request's context.
func (t *transmission) deadline() context.Context {
	if now := time.Now(); !now.Before(t.slice.end) {
		d := t.conn.server.opts.RequestTimeout
		end := now.Add(d / slicesPerDeadline)
		// The one before ends by itself: requests still have it.
		ctx, cancel := context.WithDeadline(t.ctx, end.Add(d))
		t.slice = slice{ctx, cancel, end, end.Add(d + graceSlices*d/slicesPerDeadline).UnixNano()}
	}
	return t.slice.ctx
}

func (t *transmission) worker() {
	t.queue.arrive()
	for r := t.queue.pop(); r != nil; r = t.queue.pop() {
		if t.ended(r, t.perform(r)) {
			t.answerLate(r)
		}
	}
}

// ended notes what came of r's device call, and reports whether r is to be answered.
func (t *transmission) ended(r *request, err error) bool {
	t.calls.Add(-1)
	if !t.returned(r) {
		return false
	}
	if err != nil {
		r.errno = errnoOf(err, r.Type, t.conn.server.opts.Errno)
		t.errors.add(t, r, err)
	}
	return true
}

// answerLate queues a reply on another goroutine than the reader's.
func (t *transmission) answerLate(r *request) {
	t.replies.push(r)
	if t.window.alone() {
		t.replies.flush()
	} else {
		t.replies.flushSoon()
	}
}

// perform calls the device for a request that check has passed.
func (t *transmission) perform(r *request) error {
	off, n := int64(r.Offset), int64(r.Length)
	switch r.Type {
	case wire.CmdFlush:
		return t.device.Flush(r.ctx)
	case wire.CmdTrim:
		return t.changed(r).Trim(r.ctx, off, n, r.fua())
	case wire.CmdWriteZeroes:
		mayTrim := !r.has(wire.CmdFlagNoHole)
		if r.has(wire.CmdFlagFastZero) && !t.fastZero.ZeroIsFast(off, n, mayTrim) {
			return ENOTSUP
		}
		return t.changed(r).Zero(r.ctx, off, n, mayTrim, r.fua())
	case wire.CmdCache:
		return t.prefetch.Prefetch(r.ctx, off, n)
	case wire.CmdBlockStatus:
		return t.collect(r)
	}
	if n == 0 {
		return nil // the protocol leaves it open; nothing to do is done
	}
	if r.Type == wire.CmdRead {
		return t.device.ReadAt(r.ctx, r.buf.data(), off)
	}
	return t.changed(r).WriteAt(r.ctx, r.buf.data(), off+int64(r.poured), r.fua())
}

// changed returns the device for a change.
func (t *transmission) changed(r *request) Device {
	if t.numbers == nil {
		return t.device
	}
	return t.numbers.Numbered(r.Cookie)
}
