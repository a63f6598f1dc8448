package disk

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
	"plinth/internal/vfsx/crashfs"
)

// TestSimSplitTrim trims a large, mapped run and then cuts it into short runs by
// single writes, as who makes a file system does: what comes of the layer must
// still fit one batch of the map.
func TestSimSplitTrim(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	const chunks = blockmap.UpdatesMax + 8*smallTrimChunksMax
	h.ok(d.Resize(t.Context(), chunks*4096))
	h.ok(h.round(d))
	// What is mapped is not read, so it need not be there.
	b := blockmap.Batch{}
	for lba := id.LBA(0); lba < chunks; lba++ {
		e := blockmap.Entry{Ref: id.Ref{Segment: 1 << 40, Location: 1}}
		if b.Updates = append(b.Updates, blockmap.Update{LBA: lba, Entry: e}); len(b.Updates) == blockmap.UpdatesMax || lba == chunks-1 {
			h.ok(d.m.Apply(&b, d.state.marshal()))
			b.Updates = b.Updates[:0]
		}
	}
	h.ok(d.Trim(t.Context(), 0, d.Size(), false))
	p := make([]byte, 4096)
	p[0] = 1
	for lba := int64(0); lba < chunks; lba += smallTrimChunksMax {
		h.ok(d.WriteAt(t.Context(), p, lba*4096, false))
	}
	h.ok(h.round(d))
	h.ok(d.Close())
	d = h.open(h.session(), 1)
	got := make([]byte, 4096)
	for lba := int64(0); lba < chunks; lba += smallTrimChunksMax / 2 {
		h.ok(d.ReadAt(t.Context(), got, lba*4096))
		if want := byte(1 - lba/(smallTrimChunksMax/2)%2); got[0] != want {
			t.Fatalf("chunk %d begins with %d, want %d", lba, got[0], want)
		}
	}
}

// TestTrimAfterResize appends a trim up to the end of the disk when the disk has
// grown since the trim was asked for, and something was written there: the trim
// must not reach beyond its range.
func TestTrimAfterResize(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	const end = houseDiskBytes + 512
	h.ok(d.Resize(t.Context(), end))
	trim := logrec.Op{Type: logrec.TypeTrim, Off: houseDiskBytes, Len: 512} // as Trim makes it
	h.ok(d.Resize(t.Context(), houseDiskBytes+4096))
	p := bytes.Repeat([]byte{7}, 512)
	h.ok(d.WriteAt(t.Context(), p, end, false))
	_, err := d.submit(t.Context(), 0, []pending{{op: trim, data: logrec.AppendRange(nil, trim.Off, trim.Len)}})
	h.ok(err)
	for range 2 {
		got := make([]byte, len(p))
		h.ok(d.ReadAt(t.Context(), got, end))
		if !bytes.Equal(got, p) {
			t.Fatal("the trim took what was written beyond its end")
		}
		h.ok(d.Close())
		d = h.open(h.session(), 1)
	}
}

// TestDamagedBuffer damages a chunk in the write buffer: the write that meets it
// fails the disk, and every charge is given back once.
func TestDamagedBuffer(t *testing.T) {
	h := newHouse(t, nil)
	p := h.session()
	d := h.open(p, 1)
	chunk := bytes.Repeat([]byte{1, 2, 3, 4}, 1024)
	h.ok(d.WriteAt(t.Context(), chunk, 0, false))
	d.mu.Lock()
	sealed := d.active().entries[0].sealed
	sealed[len(sealed)-1] ^= 1
	d.mu.Unlock()
	h.fails("write", d.WriteAt(t.Context(), chunk[:8], 0, false), ErrFailed)
	h.fails("read", d.ReadAt(t.Context(), chunk, 0), ErrFailed)
	h.ok(d.Close())
	if n := p.Space.Charged(); n != 0 {
		t.Fatalf("%d bytes are charged for nothing", n)
	}
}

// TestLayersAreForgotten looks for what a round leaves in memory.
func TestLayersAreForgotten(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	for range 3 {
		h.ok(d.WriteAt(t.Context(), make([]byte, 100), 0, false))
		d.Rotate()
	}
	layers := d.layers
	h.ok(h.round(d))
	for i, l := range layers {
		if l != nil && l != d.active() {
			t.Fatalf("layer %d is still referred to", i)
		}
	}
}

// TestGiveUp fails a disk whose buffer is all that may be charged: other disks
// must not wait for it.
func TestGiveUp(t *testing.T) {
	h := newHouse(t, nil)
	p := h.session()
	p.Space.opts.ChargedBytesMax = 1 << 20
	d, other := h.open(p, 1), h.open(p, 2)
	c := newContent(3)
	chunk := bytes.Repeat([]byte{9}, 4096)
	for off := int64(0); p.Space.Charged()+d.chunkCharge() <= 1<<20; off += 4096 {
		h.ok(d.WriteAt(t.Context(), chunk, off, false))
		copy(c.data[off:], chunk)
	}
	p.Space.opts.Nudge = func() {
		h.fails("failed disk", d.fail(datanode.ErrDead), ErrFailed)
		go d.GiveUp()
	}
	h.ok(other.WriteAt(t.Context(), chunk, 0, false))
	h.fails("read", d.ReadAt(t.Context(), chunk, 0), ErrFailed)
	h.ok(d.Close())
	h.ok(other.Close())
	if n := p.Space.Charged(); n != 0 {
		t.Fatalf("%d bytes are charged for nothing", n)
	}
	h.same(h.open(h.session(), 1), c)
}

// TestReliefFails lets relief fail, and lets others take what it gave: what a
// write gets is ErrNoSpace, or space, and nothing else.
func TestReliefFails(t *testing.T) {
	h := newHouse(t, nil)
	full := &fullNode{Node: h.node}
	reliefs := 0
	s := NewSpace(full, SpaceOptions{Host: "host", ChargedBytesMax: 1 << 30, K: 1, M: 1, Nudge: func() {}, Relieve: func(context.Context) error {
		reliefs++
		return datanode.ErrSpindle
	}})
	h.fails("full", s.Acquire(t.Context(), 1), ErrNoSpace, datanode.ErrSpindle)
	if reliefs != 1 {
		t.Fatalf("%d reliefs with nothing to gain", reliefs)
	}
	full.takes = true
	h.ok(s.Acquire(t.Context(), 1))
	full.takes = false
	s.opts.Relieve = func(context.Context) error {
		reliefs++
		full.takes = reliefs == 3
		return nil
	}
	h.ok(s.Acquire(t.Context(), 512<<20))
	ctx, cancel := context.WithCancel(t.Context())
	s.opts.Relieve = func(context.Context) error { cancel(); return nil }
	full.takes = false
	h.fails("cancelled", s.Acquire(ctx, 256<<20), context.Canceled)
}

// TestKeepMoreThanFree: what is to be kept and is not free keeps writes out, and Lacks
// says how much more must be free for one.
func TestKeepMoreThanFree(t *testing.T) {
	h := newHouse(t, nil)
	reserve := func(host string, bytes int64) {
		h.ok(h.node.Reserve(t.Context(), &datanode.ReserveRequest{Host: host, Bytes: bytes}))
	}
	free := func() int64 {
		st, err := h.node.Status(t.Context())
		h.ok(err)
		return st.FreeBytes
	}
	s := NewSpace(h.node, SpaceOptions{Host: "host", ChargedBytesMax: 1 << 20, K: 2, M: 1, Nudge: func() {}})
	s.opts.Relieve = func(context.Context) error { return nil }
	const other, kept = 1 << 20, 1 << 20
	reserve("other", other)
	s.Keep(t.Context(), kept) // the data node keeps some for each host that it knows
	h.ok(s.Acquire(t.Context(), 4096))
	left := free()
	s.Keep(t.Context(), s.reserved+left+4096)
	lacks := s.Lacks()
	if lacks < left+4096 || lacks > left+1<<20 {
		t.Errorf("%d bytes are lacking where 4096 more are to be kept than the %d that are free", lacks, left)
	}
	h.fails("more is kept than is free", s.Acquire(t.Context(), 4096), ErrNoSpace)
	s.opts.Relieve = func(context.Context) error {
		reserve("other", other-(lacks+64<<10-left)) // more than the write takes
		return nil
	}
	h.ok(s.Acquire(t.Context(), 4096))
	if got := s.Lacks(); got != 0 {
		t.Errorf("%d bytes are lacking after an admission", got)
	}
}

// A write whose caller went away while it waited is not done: the caller may have
// sent it again, and another to the same place after that.
func TestCancelledWrite(t *testing.T) {
	h := newHouse(t, nil)
	p := h.session()
	d := h.open(p, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	block := bytes.Repeat([]byte{7}, 4096)
	h.fails("write", d.WriteAt(ctx, block, 0, false), context.Canceled)
	h.fails("part", d.WriteAt(ctx, block[:5], 4097, false), context.Canceled)
	h.fails("zero", d.Zero(ctx, 0, 4096, false), context.Canceled)
	h.fails("trim", d.Trim(ctx, 0, 4096, false), context.Canceled)
	if got := d.Stats(); got.RecordsLogged != 0 {
		t.Errorf("%+v", got)
	}
	if p.Space.Charged() != 0 {
		t.Errorf("%d bytes stay charged", p.Space.Charged())
	}
}

// fullNode refuses reservations.
type fullNode struct {
	datanode.Node
	takes bool
}

func (f *fullNode) Reserve(_ context.Context, r *datanode.ReserveRequest) error {
	if f.takes || r.Bytes == 0 {
		return nil
	}
	return datanode.ErrNoSpace
}

// TestFullLog finds the log full: a relief that hinders some disk is no reason to
// give up, the end of the session is, and neither fails the disk.
func TestFullLog(t *testing.T) {
	full := &fullLog{}
	h := newHouse(t, func(n datanode.Node) datanode.Node { full.Node = n; return full })
	p := h.session()
	d := h.open(p, 1)
	reliefs := 0
	p.Space.opts.Relieve = func(context.Context) error {
		if reliefs++; reliefs == 3 {
			full.full.Store(false)
		}
		return datanode.ErrSpindle
	}
	full.full.Store(true)
	h.ok(d.WriteAt(t.Context(), []byte("data"), 0, true))
	full.full.Store(true)
	p.Space.opts.Relieve = func(context.Context) error { return ErrClosed }
	h.fails("closing", d.WriteAt(t.Context(), []byte("DATA"), 0, true), ErrClosed)
	full.full.Store(false)
	h.ok(d.WriteAt(t.Context(), []byte("more"), 4, true))
	got := make([]byte, 8)
	h.ok(d.ReadAt(t.Context(), got, 0))
	if string(got) != "datamore" {
		t.Fatalf("read %q", got)
	}
	h.ok(d.Close())
	h.ok(h.open(h.session(), 1).ReadAt(t.Context(), got, 0))
}

// fullLog is a node whose log has no room for operations at times.
type fullLog struct {
	datanode.Node
	full atomic.Bool
}

func (f *fullLog) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if f.full.Load() && r.Class == datanode.ClassData {
		return nil, datanode.ErrLogFull
	}
	return f.Node.Append(ctx, r)
}

// TestSimResultFitsAFullLog gives up, with few operations, much of what a disk has,
// and fills the smallest log behind them: it has room for the result.
func TestSimResultFitsAFullLog(t *testing.T) {
	h := newHouseOf(t, "/node", shelf.Options{FS: crashfs.New(), LogBytes: shelf.LogBytesMin}, nil)
	st, err := h.Status(t.Context())
	h.ok(err)
	p := h.session()
	p.LogBytes, p.Space.opts.ChargedBytesMax = st.Log.CapacityBytes, st.Log.CapacityBytes/2
	p.Space.opts.Relieve = func(context.Context) error { return ErrClosed }
	d := h.open(p, 1)
	const run = smallTrimChunksMax * int64(chunk.SizeDefault)
	runs := int64(2 * zeroUpdatesMax / smallTrimChunksMax)
	h.ok(d.Resize(t.Context(), runs*run))
	same := bytes.Repeat([]byte{7}, int(chunk.SizeDefault))
	portion := bytes.Repeat(same, 256)
	for off := int64(0); off < runs*run; off += int64(len(portion)) {
		h.ok(d.WriteAt(t.Context(), portion, off, false))
		h.ok(h.round(d))
		if off%run == 0 { // which empties the log of results
			h.ok(d.Checkpoint(t.Context()))
		}
	}
	h.ok(d.Checkpoint(t.Context()))
	for i := range runs { // apart, so that each becomes entries of the map
		h.ok(d.Trim(t.Context(), i*run, run-int64(chunk.SizeDefault), false))
	}
	h.ok(d.WriteAt(t.Context(), same, 0, false))
	for {
		if err := d.Trim(t.Context(), run, int64(chunk.SizeDefault), false); errors.Is(err, ErrClosed) {
			break
		} else {
			h.ok(err)
		}
	}
	h.ok(h.round(d))
	got := make([]byte, len(portion))
	h.ok(d.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got[:len(same)], same) || !chunk.IsZero(got[len(same):]) {
		t.Error("what is read was not written")
	}
}
