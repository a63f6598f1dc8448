package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// script is a connection to a server that sends bytes and hangs up: after the
// first `early` of them it waits until `wait` bytes were written to it.
type script struct {
	net.Conn
	in    []byte
	early int
	wait  int

	mu      sync.Mutex
	changed sync.Cond
	at      int
	written int
	closed  bool
}

func newScript(in []byte, early, wait int) *script {
	s := &script{in: in, early: early, wait: wait}
	s.changed.L = &s.mu
	return s
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.at >= s.early && s.written < s.wait && !s.closed {
		s.changed.Wait()
	}
	end := len(s.in)
	if s.at < s.early {
		end = s.early
	}
	n := copy(p, s.in[s.at:end])
	s.at += n
	if n == 0 || s.closed {
		return 0, io.EOF
	}
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written += len(p)
	s.changed.Broadcast()
	return len(p), nil
}

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
	return nil
}

func (s *script) RemoteAddr() net.Addr        { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error { return nil }

func be(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		var err error
		if b, err = binary.Append(b, binary.BigEndian, p); err != nil {
			panic(err)
		}
	}
	return b
}

var (
	greeting = be(wire.MagicInit, wire.MagicOption, wire.HandshakeFixedNewstyle|wire.HandshakeNoZeroes)
	entered  = be(wire.MagicOptionReply, wire.OptGo, wire.RepInfo, uint32(12), wire.InfoExport, uint64(1<<20), wire.FlagHasFlags,
		wire.MagicOptionReply, wire.OptGo, wire.RepAck, uint32(0))
)

func FuzzHandshake(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Join([][]byte{greeting, entered}, nil))
	f.Add(bytes.Join([][]byte{greeting, be(wire.MagicOptionReply, wire.OptGo, wire.RepErrUnsup, uint32(0), uint64(5), uint16(1))}, nil))
	f.Add(bytes.Join([][]byte{greeting, be(wire.MagicOptionReply, wire.OptList, wire.RepServer, uint32(5), uint32(1), uint8(65),
		wire.MagicOptionReply, wire.OptList, wire.RepAck, uint32(0))}, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		ctx := context.Background()
		c, err := NewClient(ctx, newScript(in, 0, 0), "", Options{})
		if err == nil {
			if i := c.Info(); i.Size < 0 || i.PayloadBytesMax == 0 || i.PayloadBytesMax > nbd.PayloadBytesMax {
				t.Errorf("info %+v", i)
			}
			c.Close()
		}
		if _, err := DescribeConn(ctx, newScript(in, 0, 0), "", Options{}); err != nil && len(err.Error()) > 4<<10 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		entries, err := ListConn(ctx, newScript(in, 0, 0), Options{})
		if len(entries) > len(in) || (err != nil && entries != nil) {
			t.Errorf("%d entries, %v", len(entries), err)
		}
	})
}

// Four reads are in flight while the server says anything. Each ends; what
// failed is an error, and a success has its payload.
func FuzzReplies(f *testing.F) {
	const calls, n = 4, 16
	cookie := func(slot uint64) uint64 { return 1<<slotBits | slot }
	ok := func(slot uint64) []byte {
		return be(wire.MagicReply, uint32(0), cookie(slot), bytes.Repeat([]byte{9}, n))
	}
	chunk := func(flags, typ uint16, slot uint64, payload ...any) []byte {
		p := be(payload...)
		return be(wire.MagicChunk, flags, typ, cookie(slot), uint32(len(p)), p)
	}
	extended := func(flags, typ uint16, slot uint64, payload ...any) []byte {
		p := be(payload...)
		return be(wire.MagicExtendedReply, flags, typ, cookie(slot), uint64(0), uint64(len(p)), p)
	}
	f.Add(byte(0), []byte{})
	f.Add(byte(0), bytes.Join([][]byte{ok(2), ok(0), ok(3), ok(1)}, nil))
	f.Add(byte(0), bytes.Join([][]byte{ok(2), ok(2)}, nil))
	f.Add(byte(0), bytes.Join([][]byte{be(wire.MagicReply, uint32(28), cookie(1)), ok(0), be(wire.MagicReply, uint32(0), cookie(3), uint8(1))}, nil))
	for form, chunk := range map[byte]func(uint16, uint16, uint64, ...any) []byte{1: chunk, 2: extended} {
		f.Add(form, bytes.Join([][]byte{chunk(1, wire.ChunkData, 1, uint64(0), make([]byte, n)), chunk(1, wire.ChunkHole, 0, uint64(0), uint32(n)),
			chunk(0, wire.ChunkData, 3, uint64(8), make([]byte, 8)), chunk(0, wire.ChunkHole, 3, uint64(0), uint32(8)), chunk(1, wire.ChunkNone, 3)}, nil))
		f.Add(form, bytes.Join([][]byte{chunk(1, wire.ChunkErr, 1, uint32(5), uint16(2), uint16(1)), chunk(0, wire.ChunkErrOffset, 0, uint32(5), uint16(0), uint64(3)),
			chunk(1, wire.ChunkNone, 0), chunk(1, wire.ChunkBlockStatus, 2, uint32(1), uint32(5), uint32(0))}, nil))
		f.Add(form, chunk(1, wire.ChunkHole, 1, uint64(1<<63), uint32(n)))
	}
	f.Fuzz(func(t *testing.T, which byte, in []byte) {
		form := Form(which % 3)
		greeting, size := greeting, wire.RequestBytes
		handshake := 4 + wire.OptionHeaderBytes + 12
		if form != Simple {
			opt := wire.OptStructuredReply
			if form == Extended {
				opt, size = wire.OptExtendedHeaders, wire.ExtendedRequestBytes
			}
			greeting = append(bytes.Clone(greeting), be(wire.MagicOptionReply, opt, wire.RepAck, uint32(0))...)
			handshake += wire.OptionHeaderBytes
		}
		early := len(greeting) + len(entered)
		s := newScript(bytes.Join([][]byte{greeting, entered, in}, nil), early, handshake+calls*size)
		c, err := NewClient(context.Background(), s, "", Options{InFlightMax: calls, Form: form, Contexts: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var successes [calls]bool
		for i := range calls {
			wg.Go(func() {
				err := c.ReadAt(context.Background(), make([]byte, n), 0)
				successes[i] = err == nil
				var refused *Error
				if err != nil && !errors.Is(err, ErrClosed) && !errors.As(err, &refused) {
					t.Errorf("error %v", err)
				}
			})
		}
		wg.Wait()
		c.Close()
		won := 0
		for _, s := range successes {
			if s {
				won++
			}
		}
		if least := []int{wire.ReplyBytes + n, wire.ChunkBytes + 12, wire.ExtendedReplyBytes + 12}[form]; won*least > len(in) {
			t.Errorf("%d reads succeeded on %d bytes", won, len(in))
		}
	})
}
