package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
	"plinth/nbd/nbdtest"
)

// fake is a server in the test's hands: run gets its end of the connection.
// The client's end is returned. Both are closed, and run has ended, when the
// test ends.
func fake(t *testing.T, run func(net.Conn)) net.Conn {
	t.Helper()
	before := runtime.NumGoroutine()
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { run(theirs) })
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
		wg.Wait()
		for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
			}
		}
	})
	return ours
}

func greeting(t testing.TB, flags uint16) []byte {
	return nbdtest.Encode(t, wire.MagicInit, wire.MagicOption, flags)
}

// discard reads n bytes and reports success.
func discard(c net.Conn, n int) bool {
	for b := make([]byte, 1); n > 0; n-- {
		if _, err := c.Read(b); err != nil {
			return false
		}
	}
	return true
}

const flagsAll = wire.FlagHasFlags | wire.FlagSendFlush | wire.FlagSendFUA | wire.FlagSendTrim | wire.FlagSendWriteZeroes

// goBytes is a GO with the empty name as this client sends it: header, name
// length, count, three requests.
const goBytes = wire.OptionHeaderBytes + 4 + 2 + 6

// enter takes the server's part of a handshake.
func enter(t testing.TB, c net.Conn, size uint64, flags uint16) bool {
	c.Write(greeting(t, wire.HandshakeFixedNewstyle|wire.HandshakeNoZeroes))
	if !discard(c, 4+goBytes) {
		return false
	}
	_, err := c.Write(nbdtest.Encode(t, wire.MagicOptionReply, wire.OptGo, wire.RepInfo, uint32(12), wire.InfoExport, size, flags,
		wire.MagicOptionReply, wire.OptGo, wire.RepAck, uint32(0)))
	return err == nil
}

// request reads a request's header; ok is false at the connection's end.
func request(c net.Conn) (typ, flags uint16, cookie uint64, n uint32, ok bool) {
	b := make([]byte, wire.RequestBytes)
	for got := 0; got < len(b); {
		k, err := c.Read(b[got:])
		if err != nil {
			return 0, 0, 0, 0, false
		}
		got += k
	}
	h := wire.DecodeRequest(b)
	return h.Type, h.Flags, h.Cookie, uint32(h.Length), true
}

func open(t *testing.T, conn net.Conn, o client.Options) *client.Client {
	t.Helper()
	c, err := client.NewClient(t.Context(), conn, "", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A server without GO is entered with EXPORT_NAME, padded or not.
func TestFallsBackToExportName(t *testing.T) {
	for _, flags := range []uint16{wire.HandshakeFixedNewstyle, wire.HandshakeFixedNewstyle | wire.HandshakeNoZeroes} {
		conn := fake(t, func(c net.Conn) {
			c.Write(greeting(t, flags))
			discard(c, 4+goBytes)
			c.Write(nbdtest.Encode(t, wire.MagicOptionReply, wire.OptGo, wire.RepErrUnsup, uint32(0)))
			discard(c, wire.OptionHeaderBytes)
			b := nbdtest.Encode(t, uint64(12345), wire.FlagHasFlags)
			if flags&wire.HandshakeNoZeroes == 0 {
				b = append(b, make([]byte, wire.ExportNamePadBytes)...)
			}
			c.Write(b)
			_, _, cookie, n, _ := request(c)
			c.Write(nbdtest.Encode(t, wire.MagicReply, uint32(0), cookie, bytes.Repeat([]byte{9}, int(n))))
		})
		c := open(t, conn, client.Options{})
		want := client.Info{Size: 12345, Flags: wire.FlagHasFlags, MinBlockSize: 1, PreferredBlockSize: 4096, PayloadBytesMax: nbd.PayloadBytesMax}
		if c.Info() != want || c.Size() != want.Size {
			t.Errorf("info %+v, want %+v", c.Info(), want)
		}
		b := make([]byte, 10)
		if err := c.ReadAt(t.Context(), b, 0); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{9}, 10)) {
			t.Errorf("read %x, %v", b, err)
		}
		for _, err := range []error{c.Flush(t.Context()), c.Trim(t.Context(), 0, 1, false), c.Zero(t.Context(), 0, 1, true, false)} {
			if !errors.Is(err, client.ErrUnsupported) {
				t.Errorf("asked for what was not offered: %v", err)
			}
		}
	}
}

func TestHostileHandshakes(t *testing.T) {
	ok := greeting(t, wire.HandshakeFixedNewstyle|wire.HandshakeNoZeroes)
	reply := func(opt, typ uint32, data ...any) []byte {
		payload := nbdtest.Encode(t, data...)
		return nbdtest.Encode(t, wire.MagicOptionReply, opt, typ, uint32(len(payload)), payload)
	}
	ack := reply(wire.OptGo, wire.RepAck)
	export := func(size uint64, flags uint16) []byte {
		return reply(wire.OptGo, wire.RepInfo, wire.InfoExport, size, flags)
	}
	for _, test := range []struct {
		name string
		sent [][]byte
		want error // nil: any
	}{
		{"nothing", nil, nil},
		{"oldstyle", [][]byte{nbdtest.Encode(t, wire.MagicInit, uint64(0x420281861253), make([]byte, 200))}, client.ErrProtocol},
		{"http", [][]byte{[]byte("HTTP/1.1 400 Bad Request\r\n\r\n")}, client.ErrProtocol},
		{"newstyle that is not fixed", [][]byte{greeting(t, 0)}, client.ErrProtocol},
		{"reply magic", [][]byte{ok, make([]byte, 20)}, client.ErrProtocol},
		{"reply to another option", [][]byte{ok, reply(wire.OptInfo, wire.RepAck)}, client.ErrProtocol},
		{"reply of 4 GiB", [][]byte{ok, nbdtest.Encode(t, wire.MagicOptionReply, wire.OptGo, wire.RepInfo, uint32(1<<32-1))}, client.ErrProtocol},
		{"reply of an unknown type", [][]byte{ok, reply(wire.OptGo, 77)}, client.ErrProtocol},
		{"information of one byte", [][]byte{ok, reply(wire.OptGo, wire.RepInfo, uint8(0))}, client.ErrProtocol},
		{"short EXPORT", [][]byte{ok, reply(wire.OptGo, wire.RepInfo, wire.InfoExport, uint64(1)), ack}, client.ErrProtocol},
		{"short BLOCK_SIZE", [][]byte{ok, export(1, flagsAll), reply(wire.OptGo, wire.RepInfo, wire.InfoBlockSize, uint32(1)), ack}, client.ErrProtocol},
		{"payload of 0", [][]byte{ok, export(1, flagsAll), reply(wire.OptGo, wire.RepInfo, wire.InfoBlockSize, uint32(1), uint32(1), uint32(0)), ack}, client.ErrProtocol},
		{"no EXPORT", [][]byte{ok, ack}, client.ErrProtocol},
		{"negative size", [][]byte{ok, export(1<<63, flagsAll), ack}, client.ErrProtocol},
		{"no flags", [][]byte{ok, export(1, 0), ack}, client.ErrProtocol},
		{"unknown export", [][]byte{ok, reply(wire.OptGo, wire.RepErrUnknown, "no")}, nbd.ErrUnknownExport},
		{"shutdown", [][]byte{ok, reply(wire.OptGo, wire.RepErrShutdown)}, nbd.ErrShutdown},
	} {
		conn := fake(t, func(c net.Conn) {
			for i, b := range test.sent {
				if i == 1 {
					discard(c, 4+goBytes)
				}
				c.Write(b)
			}
			c.Close()
		})
		c, err := client.NewClient(t.Context(), conn, "", client.Options{})
		if err == nil {
			c.Close()
			t.Errorf("%s: opened %+v", test.name, c.Info())
		} else if test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

// A server that goes on for ever is cut off.
func TestEndlessListEnds(t *testing.T) {
	entry := nbdtest.Encode(t, wire.MagicOptionReply, wire.OptList, wire.RepServer, uint32(8004), uint32(4000), make([]byte, 8000))
	conn := fake(t, func(c net.Conn) {
		c.Write(greeting(t, wire.HandshakeFixedNewstyle))
		discard(c, 4+wire.OptionHeaderBytes)
		for {
			if _, err := c.Write(entry); err != nil {
				return
			}
		}
	})
	if _, err := client.ListConn(t.Context(), conn, client.Options{}); !errors.Is(err, client.ErrProtocol) {
		t.Error(err)
	}
}

func TestSilentServer(t *testing.T) {
	silent := func(c net.Conn) { discard(c, 1) }
	if _, err := client.NewClient(t.Context(), fake(t, silent), "", client.Options{HandshakeTimeout: 20 * time.Millisecond}); err == nil {
		t.Error("opened")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.NewClient(ctx, fake(t, silent), "", client.Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestHostileReplies(t *testing.T) {
	for _, test := range []struct {
		name  string
		reply func(cookie uint64) []byte
		want  error
	}{
		{"magic", func(cookie uint64) []byte { return nbdtest.Encode(t, uint32(1), uint32(0), cookie) }, client.ErrProtocol},
		{"unknown slot", func(uint64) []byte { return nbdtest.Encode(t, wire.MagicReply, uint32(0), uint64(1<<32-1)) }, client.ErrProtocol},
		{"slot not in flight", func(cookie uint64) []byte { return nbdtest.Encode(t, wire.MagicReply, uint32(0), cookie+1) }, client.ErrProtocol},
		{"another use of the slot", func(cookie uint64) []byte { return nbdtest.Encode(t, wire.MagicReply, uint32(0), cookie+1<<32) }, client.ErrProtocol},
		{"payload cut short", func(cookie uint64) []byte {
			return nbdtest.Encode(t, wire.MagicReply, uint32(0), cookie, make([]byte, 99))
		}, client.ErrClosed},
	} {
		conn := fake(t, func(c net.Conn) {
			enter(t, c, 1<<20, flagsAll)
			_, _, cookie, _, _ := request(c)
			c.Write(test.reply(cookie))
			c.Close()
		})
		c := open(t, conn, client.Options{})
		err := c.ReadAt(t.Context(), make([]byte, 100), 0)
		if !errors.Is(err, test.want) || !errors.Is(err, client.ErrClosed) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if err := c.Flush(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("%s: then a flush: %v", test.name, err)
		}
	}
}

// An abandoned call's buffer is not touched, and its slot is used again only
// after its reply has come.
func TestAbandonedCall(t *testing.T) {
	answer := make(chan struct{})
	conn := fake(t, func(c net.Conn) {
		enter(t, c, 1<<20, flagsAll)
		for first := true; ; first = false {
			_, _, cookie, n, ok := request(c)
			if !ok {
				return
			}
			if first {
				<-answer
			}
			c.Write(nbdtest.Encode(t, wire.MagicReply, uint32(0), cookie, bytes.Repeat([]byte{9}, int(n))))
		}
	})
	c := open(t, conn, client.Options{InFlightMax: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	b := make([]byte, 1000)
	if err := c.ReadAt(ctx, b, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := c.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the only slot was free: %v", err)
	}
	close(answer)
	d := make([]byte, 10)
	if err := c.ReadAt(t.Context(), d, 0); err != nil || !bytes.Equal(d, bytes.Repeat([]byte{9}, 10)) {
		t.Errorf("read %x, %v", d, err)
	}
	if !bytes.Equal(b, make([]byte, 1000)) {
		t.Error("an abandoned call's buffer was filled")
	}
}

// Errors name the call; FUA becomes a flush where the server has none; what is
// longer than a request is split.
func TestCalls(t *testing.T) {
	type call struct {
		typ, flags uint16
		n          uint32
	}
	var calls []call
	errno := uint32(0)
	conn := fake(t, func(c net.Conn) {
		enter(t, c, 1<<62, flagsAll&^wire.FlagSendFUA)
		for {
			typ, flags, cookie, n, ok := request(c)
			if !ok {
				return
			}
			if typ == wire.CmdWrite {
				discard(c, int(n))
			}
			calls = append(calls, call{typ, flags, n})
			c.Write(binary.BigEndian.AppendUint64(nbdtest.Encode(t, wire.MagicReply, errno), cookie))
		}
	})
	c := open(t, conn, client.Options{})
	if err := c.WriteAt(t.Context(), make([]byte, 3), 0, true); err != nil {
		t.Error(err)
	}
	if err := c.Zero(t.Context(), 5, 3<<30-5, false, false); err != nil {
		t.Error(err)
	}
	errno = uint32(nbd.ENOSPC)
	err := c.Trim(t.Context(), 5, 9, false)
	var refused *client.Error
	if !errors.As(err, &refused) || *refused != (client.Error{Op: "trim", Off: 5, N: 9, Errno: nbd.ENOSPC}) || !errors.Is(err, nbd.ENOSPC) {
		t.Error(err)
	}
	c.Close()
	want := []call{{wire.CmdWrite, 0, 3}, {wire.CmdFlush, 0, 0},
		{wire.CmdWriteZeroes, wire.CmdFlagNoHole, 1 << 30}, {wire.CmdWriteZeroes, wire.CmdFlagNoHole, 1 << 30},
		{wire.CmdWriteZeroes, wire.CmdFlagNoHole, 1<<30 - 5}, {wire.CmdTrim, 0, 9}}
	if len(calls) != len(want) {
		t.Fatalf("calls %+v", calls)
	}
	for i := range want {
		if calls[i] != want[i] {
			t.Errorf("call %d: %+v, want %+v", i, calls[i], want[i])
		}
	}
}
