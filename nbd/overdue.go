package nbd

import (
	"sync/atomic"
	"time"

	"plinth/nbd/internal/wire"
)

// exportState is what the connections of one export share.
type exportState struct {
	attached int // connections; guarded by Server.mu
	// stuck counts changes that were answered EIO although their device call
	// goes on. What it does may happen at any time yet; so no later change is
	// taken before it has returned.
	stuck atomic.Int64
}

// request.due of a request that its worker still has is when it becomes overdue,
// in nanoseconds since 1970; else one of these.
const (
	dueNever  = 0  // no device call is under way
	duePassed = -1 // it was answered for its device, which has not returned
)

// graceSlices is how long a device may take to notice the end of its context.
const graceSlices = 1

// watch answers for devices that do not. It lives as long as the connection has
// workers.
func (t *transmission) watch(stop <-chan struct{}) {
	tick := time.NewTicker(max(t.conn.server.opts.RequestTimeout/slicesPerDeadline, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case now := <-tick.C:
			t.answerOverdue(now)
		}
	}
}

// answerOverdue tells the client EIO of each request whose device call should have
// ended. The call keeps the request, its buffer and its place in the window.
func (t *transmission) answerOverdue(now time.Time) {
	t.overdue.Lock()
	defer t.overdue.Unlock()
	for _, r := range t.window.requestsMade() {
		due := r.due.Load()
		if due <= dueNever || due > now.UnixNano() || !r.due.CompareAndSwap(due, duePassed) {
			continue
		}
		if isChange(r.Type) {
			t.shared.stuck.Add(1)
		}
		t.log.Error("nbd: device does not answer: EIO", "type", r.Type, "offset", r.Offset, "length", r.Length)
		t.replies.push(&request{Request: r.Request, errno: EIO, substitute: true})
	}
	t.replies.flush()
}

// returned takes note of the end of r's device call and reports whether it is
// to be answered. If not, r is released.
func (t *transmission) returned(r *request) bool {
	if r.due.Swap(dueNever) != duePassed {
		return true
	}
	t.overdue.Lock() // who answered for it may still read it
	//lint:ignore SA2001 it waits for who has it, and needs nothing under it
	t.overdue.Unlock()
	if isChange(r.Type) {
		t.shared.stuck.Add(-1)
	}
	t.log.Warn("nbd: device returned after its request was answered EIO", "type", r.Type, "offset", r.Offset, "length", r.Length)
	t.window.release([]*request{r})
	return false
}

// isChange reports requests that change the device.
func isChange(typ uint16) bool {
	return typ == wire.CmdWrite || typ == wire.CmdTrim || typ == wire.CmdWriteZeroes
}
