package client

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// question is what a call asks.
type question struct {
	cmd, flags uint16
	off, n     int64
	read       []byte    // where a read's payload goes
	write      []byte    // what is sent after the header
	status     *[]Status // where the answer of a BLOCK_STATUS goes
	// number, if not 0, is Numbered's.
	number uint64
	// effect is the range's length where n is that of write: BLOCK_STATUS with
	// a payload.
	effect int64
}

// slot is a place for one call in flight.
type slot struct {
	done chan error // of 1

	// mu is held by the receiver while it takes in a piece of the reply, so
	// that a caller does not take its buffer back meanwhile.
	mu        sync.Mutex
	inFlight  bool
	abandoned bool // the caller has gone; the receiver frees the slot
	cookie    uint64
	uses      uint64
	question

	// Of a reply in chunks, so far.
	covered int64 // bytes of a read
	failed  error
	taken   []Status
}

// slotBits is where the rest of a cookie begins: how often the slot was used, or the
// number of a change.
const slotBits = 16

// call sends a request and waits for its reply.
func (c *Client) call(ctx context.Context, q question) error {
	var i int
	select {
	case i = <-c.free:
	case <-c.gone:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
	s := &c.slots[i]
	s.mu.Lock()
	s.uses++
	cookie := cmp.Or(q.number, s.uses)<<slotBits | uint64(i)
	s.cookie = cookie
	s.question, s.inFlight, s.abandoned = q, true, false
	s.covered, s.failed, s.taken = 0, nil, nil
	s.mu.Unlock()
	if err := c.send.request(c.info.Form, cookie, &q); err != nil {
		c.conn.Close() // part of a request may be out
		<-c.gone
		return c.err
	}
	var err error
	select {
	case err = <-s.done:
	case <-c.gone:
		select {
		case err = <-s.done:
		default:
			return c.err // slots are of no use any more
		}
	case <-ctx.Done():
		if s.abandon() {
			return ctx.Err()
		}
		err = <-s.done
	}
	c.free <- i
	if e, ok := err.(nbd.Errno); ok {
		n := q.n
		if q.effect > 0 {
			n = q.effect
		}
		return &Error{Op: opName(q.cmd), Off: q.off, N: n, Errno: e}
	}
	return err
}

// abandon takes the buffer back, unless the reply is there.
func (s *slot) abandon() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.inFlight {
		return false
	}
	s.abandoned, s.write, s.status = true, nil, nil
	return true
}

func opName(cmd uint16) string {
	switch cmd {
	case wire.CmdRead:
		return "read"
	case wire.CmdWrite:
		return "write"
	case wire.CmdFlush:
		return "flush"
	case wire.CmdTrim:
		return "trim"
	case wire.CmdCache:
		return "cache"
	case wire.CmdWriteZeroes:
		return "write zeroes"
	case wire.CmdBlockStatus:
		return "block status"
	}
	return fmt.Sprintf("request %d", cmd)
}

// receive takes replies off the wire until the connection ends.
func (c *Client) receive() {
	err := c.replies()
	c.conn.Close()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	close(c.gone)
}

func (c *Client) replies() error {
	for {
		chunk, simple, err := c.head()
		if err != nil {
			return err
		}
		i := chunk.Cookie & (1<<slotBits - 1)
		if i >= uint64(len(c.slots)) {
			return fmt.Errorf("%w: reply to unknown cookie %#x", ErrProtocol, chunk.Cookie)
		}
		s := &c.slots[i]
		s.mu.Lock()
		var last bool
		switch {
		case !s.inFlight || s.cookie != chunk.Cookie:
			err = fmt.Errorf("%w: reply to cookie %#x, which is not in flight", ErrProtocol, chunk.Cookie)
		case simple:
			// The error number is where a chunk has its length.
			last, err = true, c.simple(s, uint32(chunk.Length))
		default:
			last, err = c.chunk(s, &chunk)
		}
		if err == nil && last {
			c.finish(s, int(i))
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// head reads the header of a reply, which a server of structured replies may
// make simple.
func (c *Client) head() (h wire.Chunk, simple bool, err error) {
	if c.info.Form == Extended {
		b, err := c.r.Peek(wire.ExtendedReplyBytes)
		if err != nil {
			return h, false, err
		}
		h = wire.DecodeExtendedReply(b)
		c.r.Discard(len(b))
		if h.Magic != wire.MagicExtendedReply {
			err = fmt.Errorf("%w: reply magic %#x", ErrProtocol, h.Magic)
		}
		return h, false, err
	}
	b, err := c.r.Peek(wire.ReplyBytes)
	if err != nil {
		return h, false, err
	}
	r := wire.DecodeReply(b)
	switch {
	case r.ReplyMagic == wire.MagicReply:
		c.r.Discard(len(b))
		return wire.Chunk{Cookie: r.Handle, Length: uint64(r.Error)}, true, nil
	case r.ReplyMagic != wire.MagicChunk || c.info.Form != Structured:
		return h, false, fmt.Errorf("%w: reply magic %#x", ErrProtocol, r.ReplyMagic)
	}
	if b, err = c.r.Peek(wire.ChunkBytes); err != nil {
		return h, false, err
	}
	h = wire.DecodeChunk(b)
	c.r.Discard(len(b))
	return h, false, nil
}

// simple takes in a simple reply. The slot is locked.
func (c *Client) simple(s *slot, errno uint32) error {
	if c.info.Form != Simple && (s.cmd == wire.CmdRead || s.cmd == wire.CmdBlockStatus && errno == 0) {
		return fmt.Errorf("%w: simple reply to a %s", ErrProtocol, opName(s.cmd))
	}
	if errno != 0 {
		s.failed = nbd.Errno(errno)
		return nil
	}
	return c.fill(s, 0, int64(len(s.read)))
}

// fill takes n bytes of a read's payload off the wire, for offset at of it.
func (c *Client) fill(s *slot, at, n int64) (err error) {
	switch {
	case n == 0:
	case s.abandoned:
		_, err = c.r.Discard(int(n))
	default:
		_, err = io.ReadFull(c.r, s.read[at:at+n])
	}
	return err
}

// finish gives a whole reply to its call. The slot is locked.
func (c *Client) finish(s *slot, i int) {
	s.inFlight = false
	err := s.failed
	if err == nil && s.status != nil {
		*s.status = s.taken
	}
	s.question = question{}
	if s.abandoned {
		c.free <- i
	} else {
		s.done <- err
	}
}

// sender writes requests. Those who wait for the lock meanwhile share one
// write: the last of them flushes.
type sender struct {
	queued atomic.Int32

	mu   sync.Mutex
	w    *bufio.Writer
	head [wire.ExtendedRequestBytes]byte
}

// request sends one request and its payload, which is not used after return.
func (s *sender) request(f Form, cookie uint64, q *question) error {
	s.queued.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := wire.Request{Magic: wire.MagicRequest, Flags: q.flags, Type: q.cmd, Cookie: cookie, Offset: uint64(q.off), Length: uint64(q.n)}
	head := s.head[:wire.RequestBytes]
	if f == Extended {
		head = s.head[:]
		r.Magic = wire.MagicExtendedRequest
		if len(q.write) > 0 || q.cmd == wire.CmdWrite {
			r.Flags |= wire.CmdFlagPayloadLen
		}
		wire.PutExtendedRequest(head, r)
	} else {
		wire.PutRequest(head, r)
	}
	s.w.Write(head)
	_, err := s.w.Write(q.write)
	if s.queued.Add(-1) == 0 {
		err = s.w.Flush() // returns an earlier error too
	}
	return err
}
