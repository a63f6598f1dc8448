package client

import (
	"encoding/binary"
	"fmt"
	"io"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// statusBytesMax bounds the payload of a block status chunk, extended or not.
const statusBytesMax = 8 + 16*wire.DescriptorsMax

// chunk takes in one chunk of a structured or extended reply, and reports the
// last one. The slot is locked.
func (c *Client) chunk(s *slot, h *wire.Chunk) (last bool, err error) {
	if c.info.Form == Extended && h.Offset != uint64(s.off) {
		return false, fmt.Errorf("%w: reply for offset %d to a request at %d", ErrProtocol, h.Offset, s.off)
	}
	last = h.Flags&wire.ChunkFlagDone != 0
	switch {
	case h.Type == wire.ChunkNone && h.Length == 0 && last:
	case h.Type == wire.ChunkData && s.cmd == wire.CmdRead && h.Length > 8:
		err = c.data(s, int64(min(h.Length, 1<<62))-8)
	case h.Type == wire.ChunkHole && s.cmd == wire.CmdRead && h.Length == 12:
		err = c.hole(s)
	case h.Type == wire.ChunkBlockStatus && s.cmd == wire.CmdBlockStatus && c.info.Form == Structured,
		h.Type == wire.ChunkBlockStatusExt && s.cmd == wire.CmdBlockStatus && c.info.Form == Extended:
		err = c.status(s, h.Length)
	case h.Type&wire.ChunkError != 0:
		err = c.errorChunk(s, h.Length)
	default:
		err = fmt.Errorf("%w: chunk type %#x of %d bytes in a reply to a %s", ErrProtocol, h.Type, h.Length, opName(s.cmd))
	}
	if err != nil || !last || s.failed != nil {
		return last, err
	}
	switch {
	case s.cmd == wire.CmdRead && s.covered != s.n:
		err = fmt.Errorf("%w: %d bytes of a read of %d", ErrProtocol, s.covered, s.n)
	case s.cmd == wire.CmdBlockStatus && len(s.taken) == 0:
		err = fmt.Errorf("%w: no block status", ErrProtocol)
	}
	return last, err
}

// place checks that [off, off+n) of the export lies in the read that s asked
// for, and returns where. Overlaps are found by their sum.
func (s *slot) place(off uint64, n int64) (at int64, err error) {
	at = int64(off - uint64(s.off))
	if off < uint64(s.off) || at < 0 || at > s.n || n <= 0 || n > s.n-at || n > s.n-s.covered {
		return 0, fmt.Errorf("%w: %d bytes at %d in the reply to a read of %d at %d", ErrProtocol, n, off, s.n, s.off)
	}
	s.covered += n
	return at, nil
}

func (c *Client) data(s *slot, n int64) error {
	b, err := c.r.Peek(8)
	if err != nil {
		return err
	}
	off := binary.BigEndian.Uint64(b)
	c.r.Discard(8)
	at, err := s.place(off, n)
	if err != nil {
		return err
	}
	return c.fill(s, at, n)
}

func (c *Client) hole(s *slot) error {
	b, err := c.r.Peek(12)
	if err != nil {
		return err
	}
	off, n := binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint32(b[8:]))
	c.r.Discard(12)
	at, err := s.place(off, n)
	if err == nil && !s.abandoned {
		clear(s.read[at : at+n])
	}
	return err
}

// errorChunk keeps the first error of a reply. What follows number and text is
// of no use here.
func (c *Client) errorChunk(s *slot, n uint64) error {
	if n < 6 || n > 6+wire.StringBytesMax+64 {
		return fmt.Errorf("%w: error chunk of %d bytes", ErrProtocol, n)
	}
	b, err := c.r.Peek(6)
	if err != nil {
		return err
	}
	errno, text := binary.BigEndian.Uint32(b), binary.BigEndian.Uint16(b[4:])
	if errno == 0 || uint64(text) > n-6 {
		return fmt.Errorf("%w: error %d with text of %d bytes in %d", ErrProtocol, errno, text, n)
	}
	if s.failed == nil {
		s.failed = nbd.Errno(errno)
	}
	_, err = c.r.Discard(int(n))
	return err
}

// status takes in what one context says.
func (c *Client) status(s *slot, n uint64) error {
	head, each := uint64(4), uint64(8)
	if c.info.Form == Extended {
		head, each = 8, 16
	}
	if n < head+each || n > statusBytesMax || (n-head)%each != 0 {
		return fmt.Errorf("%w: block status of %d bytes", ErrProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return err
	}
	id, count := binary.BigEndian.Uint32(b), (n-head)/each
	if head == 8 && uint64(binary.BigEndian.Uint32(b[4:])) != count {
		return fmt.Errorf("%w: block status of %d bytes counts wrong", ErrProtocol, n)
	}
	out := Status{Context: c.contexts[id], Runs: make([]Run, 0, count)}
	if out.Context == "" {
		return fmt.Errorf("%w: block status of unknown context %d", ErrProtocol, id)
	}
	for _, t := range s.taken {
		if t.Context == out.Context {
			return fmt.Errorf("%w: two block statuses of context %q", ErrProtocol, t.Context)
		}
	}
	for b = b[head:]; len(b) > 0; b = b[each:] {
		r := Run{uint64(binary.BigEndian.Uint32(b)), uint64(binary.BigEndian.Uint32(b[4:]))}
		if each == 16 {
			r = Run{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
		}
		if r.N == 0 {
			return fmt.Errorf("%w: block status of no bytes", ErrProtocol)
		}
		out.Runs = append(out.Runs, r)
	}
	s.taken = append(s.taken, out)
	return nil
}
