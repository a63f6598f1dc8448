package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// slot is a place for one call in flight.
type slot struct {
	// state settles who has p: the caller and the receiver change it with
	// compare-and-swap from waiting.
	state atomic.Int32
	// cookie names the use of the slot that is in flight. Written by the
	// caller before state becomes waiting.
	cookie uint64
	read   []byte     // where a read's payload goes
	n      int        // the payload's length, when read is not to be touched
	done   chan error // of 1
}

const (
	idle      = iota
	waiting   // the reply has not come
	receiving // the receiver has p
	abandoned // the caller has gone; the receiver frees the slot
)

// slotBits is where a cookie's use count begins.
const slotBits = 32

// call sends a request and waits for its reply. write is sent after the
// header; read is filled by the reply.
func (c *Client) call(ctx context.Context, cmd, flags uint16, off, n int64, read, write []byte) error {
	var i int
	select {
	case i = <-c.free:
	case <-c.gone:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
	s := &c.slots[i]
	s.cookie += 1 << slotBits
	s.cookie = s.cookie>>slotBits<<slotBits | uint64(i)
	s.read, s.n = read, len(read)
	s.state.Store(waiting)
	if err := c.send.request(cmd, flags, s.cookie, off, n, write); err != nil {
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
		if s.state.CompareAndSwap(waiting, abandoned) {
			return ctx.Err()
		}
		select { // the receiver has our buffer
		case err = <-s.done:
		case <-c.gone:
			return ctx.Err()
		}
	}
	s.state.Store(idle)
	c.free <- i
	if e, ok := err.(nbd.Errno); ok {
		return &Error{Op: opName(cmd), Off: off, N: n, Errno: e}
	}
	return err
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
	case wire.CmdWriteZeroes:
		return "write zeroes"
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
		b, err := c.r.Peek(wire.ReplyBytes)
		if err != nil {
			return err
		}
		h := wire.DecodeReply(b)
		c.r.Discard(wire.ReplyBytes)
		if h.ReplyMagic != wire.MagicReply {
			return fmt.Errorf("%w: reply magic %#x", ErrProtocol, h.ReplyMagic)
		}
		i := h.Handle & (1<<slotBits - 1)
		if i >= uint64(len(c.slots)) {
			return fmt.Errorf("%w: reply to unknown cookie %#x", ErrProtocol, h.Handle)
		}
		if err := c.finish(int(i), h); err != nil {
			return err
		}
	}
}

// finish gives a reply to its call.
func (c *Client) finish(i int, h protocol.TransmissionReplyHeader) error {
	s := &c.slots[i]
	// The state is read first: it publishes cookie.
	if st := s.state.Load(); (st != waiting && st != abandoned) || s.cookie != h.Handle {
		return fmt.Errorf("%w: reply to cookie %#x, which is not in flight", ErrProtocol, h.Handle)
	}
	var result error
	if h.Error != 0 {
		result = nbd.Errno(h.Error)
	}
	mine := s.state.CompareAndSwap(waiting, receiving)
	if s.n > 0 && h.Error == 0 {
		var err error
		if mine {
			_, err = io.ReadFull(c.r, s.read)
		} else {
			_, err = c.r.Discard(s.n)
		}
		if err != nil {
			return err
		}
	}
	if mine {
		s.done <- result
		return nil
	}
	s.read = nil
	s.state.Store(idle)
	c.free <- i
	return nil
}

// sender writes requests. Those who wait for the lock meanwhile share one
// write: the last of them flushes.
type sender struct {
	queued atomic.Int32

	mu   sync.Mutex
	w    *bufio.Writer
	head [wire.RequestBytes]byte
}

// request sends one request and its payload, which is not used after return.
func (s *sender) request(cmd, flags uint16, cookie uint64, off, n int64, payload []byte) error {
	s.queued.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	wire.PutRequest(s.head[:], protocol.TransmissionRequestHeader{
		RequestMagic: wire.MagicRequest, CommandFlags: flags, Type: cmd,
		Handle: cookie, Offset: uint64(off), Length: uint32(n),
	})
	s.w.Write(s.head[:])
	_, err := s.w.Write(payload)
	if s.queued.Add(-1) == 0 {
		err = s.w.Flush() // returns an earlier error too
	}
	return err
}
