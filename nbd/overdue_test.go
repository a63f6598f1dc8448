package nbd_test

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

// A device that does not hear its context's end: the client gets its error, and
// what the device does too late can not undo what is written after it.
func TestDeviceIgnoresDeadline(t *testing.T) {
	g := newGate()
	var holds atomic.Bool
	holds.Store(true)
	m := memory.New(mib)
	h := serve(t, "unix", nbd.Options{RequestTimeout: 300 * time.Millisecond}, nbd.Export{Name: "disk", MultiConn: true, Device: &nbdtest.Probe{
		Device: m, Before: func(_ context.Context, c nbdtest.Call) error {
			if (c.Op == "write" || c.Op == "read") && c.Off == 0 && holds.Load() {
				return g.wait(context.Background(), c)
			}
			return nil
		}}})
	a, b := h.raw(t), h.raw(t)
	a.Enter("disk")
	b.Enter("disk")
	a.Request(0, wire.CmdRead, 1, 0, 4, nil)
	a.Expect(uint32(nbd.EIO), 1)
	b.Request(0, wire.CmdWrite, 2, 8, 4, []byte("free")) // a read in the way is none
	b.Expect(0, 2)

	a.Request(0, wire.CmdWrite, 3, 0, 4, []byte("late"))
	a.Expect(uint32(nbd.EIO), 3)
	for i, r := range []*nbdtest.Raw{a, b} {
		cookie := uint64(10 * (i + 1))
		r.Request(0, wire.CmdWrite, cookie, 0, 4, []byte("next"))
		r.Expect(uint32(nbd.EIO), cookie)
		r.Request(0, wire.CmdTrim, cookie+1, 4096, 4096, nil)
		r.Expect(uint32(nbd.EIO), cookie+1)
		r.Request(0, wire.CmdFlush, cookie+2, 0, 0, nil)
		r.Expect(0, cookie+2)
		r.Request(0, wire.CmdRead, cookie+3, 8, 4, nil)
		r.Expect(0, cookie+3)
		if got := r.Receive(4); string(got) != "free" {
			t.Errorf("read %q", got)
		}
	}
	holds.Store(false)
	g.open()
	eventually(t, func() bool {
		b.Request(0, wire.CmdWrite, 30, 0, 4, []byte("next"))
		errno, _ := b.Reply()
		return errno == 0
	})
	got := make([]byte, 4)
	if err := m.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, []byte("next")) {
		t.Errorf("%q on the device, %v", got, err)
	}
}
