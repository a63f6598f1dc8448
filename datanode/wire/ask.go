package wire

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	"plinth/datanode"
)

// bulkBytes is from what size on a call goes by way of the bulk connections.
const bulkBytes = 64 << 10

// serialCalls are sent one at a time, and none before the node has answered the
// one before, given up or not: nothing in them says which is the newer.
var serialCalls = []Call{Reserve, RegistryCommit}

// ask makes a call. The reply may hold memory of its frame, which is then the
// caller's.
func ask[Q, R any](ctx context.Context, c *Client, call Call, q *Q, question func(*coder, *Q),
	reply func(*coder, *R), bulk bool) (*R, error) {
	r := new(R)
	f, aliased, err := exchange(ctx, c, call, q, question, r, reply, bulk)
	if err != nil {
		return nil, err
	}
	if aliased {
		f.keep()
	}
	f.release()
	return r, nil
}

// tell is ask for calls without a reply.
func tell[Q any](ctx context.Context, c *Client, call Call, q *Q, question func(*coder, *Q)) error {
	_, err := ask(ctx, c, call, q, question, none, false)
	return err
}

// exchange makes a call and decodes the reply into r, which holds memory of the
// frame if it says so.
func exchange[Q, R any](ctx context.Context, c *Client, call Call, q *Q, question func(*coder, *Q),
	r *R, reply func(*coder, *R), bulk bool) (*frame, bool, error) {
	request, bad := compose(header{call: call}, timeoutBytes, q, question, false)
	if bad != nil {
		return nil, false, bad
	}
	got, err := c.do(ctx, call, request, bulk || request.bytes > bulkBytes)
	if err != nil {
		return nil, false, err
	}
	f := got.reply
	if got.head.kind == kindError {
		fault := new(datanode.Error)
		_, bad = decode(f.message(), fault, mistake)
		f.release()
		if bad == nil {
			if fault.Code == datanode.CodeTimeout {
				if over := expired(ctx); over != nil {
					return nil, false, over
				}
			}
			if fault.Code == datanode.CodeClosed || fault.Code == datanode.CodeOutcome && call != RegistryCommit {
				c.breaks() // the node's registry has doubts of its own, which callers look up
			}
			return nil, false, fault
		}
	} else {
		var aliased bool
		if aliased, bad = decode(f.message(), r, reply); bad == nil {
			return f, aliased, nil
		}
		f.release()
	}
	c.breaks()
	return nil, false, datanode.Errorf(datanode.ErrOutcome, "%s: bad reply: %s", call, bad.Text)
}

// expired is why the context has ended, or would have if the timer of its
// deadline were not late: a node's word that the time is over may come first.
func expired(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// do sends a request, which it takes over, and waits for what it gives.
func (c *Client) do(ctx context.Context, call Call, request *frame, bulk bool) (result, error) {
	s, err := c.enter(ctx, call, request, bulk)
	if err != nil {
		request.release()
		return result{}, err
	}
	var left uint32
	if deadline, ok := ctx.Deadline(); ok {
		ms := (time.Until(deadline) + time.Millisecond - 1) / time.Millisecond
		left = uint32(min(max(ms, 1), math.MaxUint32))
	}
	binary.LittleEndian.PutUint32(request.buf[headerBytes:], left)
	w := waiters.Get().(*waiter)
	var freed func()
	if turn := c.serial[call]; turn != nil {
		freed = func() { <-turn }
	}
	s.begin(call, request, w, freed)
	s.mu.Lock()
	if dead := c.Err(); dead != nil && s.waiter == w {
		c.answer(s, result{err: datanode.AsError(dead)})
	} else if s.waiter == w && s.conn == nil {
		if to := c.pick(bulk); to != nil {
			s.transmit(to)
		}
	}
	s.mu.Unlock()
	var r result
	select {
	case r = <-w.done:
	case <-ctx.Done():
		s.mu.Lock()
		if s.waiter == w {
			c.desert(s, nil)
			s.mu.Unlock()
			waiters.Put(w)
			return result{}, ctx.Err()
		}
		s.mu.Unlock()
		r = <-w.done // it was answered meanwhile
	}
	waiters.Put(w)
	if r.err != nil {
		return result{}, r.err
	}
	return r, nil
}

// enter waits for memory, the call's turn and a slot.
func (c *Client) enter(ctx context.Context, call Call, request *frame, bulk bool) (*slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l := lane(bulk)
	n := min(int64(request.bytes), c.most)
	if err := c.bytes[l].Acquire(ctx, n); err != nil {
		return nil, err
	}
	request.done = c.freed[l]
	turn := c.serial[call]
	for {
		c.mu.Lock()
		dead, cut := c.dead, c.cut
		c.mu.Unlock()
		if dead != nil {
			return nil, dead
		}
		select {
		case <-cut:
			return nil, c.unreachable(call)
		default:
		}
		if turn != nil {
			select {
			case turn <- struct{}{}:
			case <-cut:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		select {
		case i := <-c.free[l]:
			return &c.slots[i], nil
		case <-cut:
		case <-ctx.Done():
			if turn != nil {
				<-turn
			}
			return nil, ctx.Err()
		}
		if turn != nil {
			<-turn
		}
	}
}

func (c *Client) unreachable(call Call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return datanode.Errorf(datanode.ErrUnreachable, "%s: node %s: %v", call, c.name, c.last)
}
