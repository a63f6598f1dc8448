package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// snap takes a snapshot of each disk at one instant; numbers are first, first+1, …
func (h *house) snap(first id.Snapshot, disks ...*Disk) []int64 {
	h.Helper()
	rs := make([]MarkRequest, len(disks))
	for i, d := range disks {
		rs[i] = MarkRequest{d, first + id.Snapshot(i)}
	}
	sizes, err := MarkAll(h.Context(), rs)
	h.ok(err)
	for _, r := range rs {
		r.Disk.Settled(r.Snapshot)
	}
	return sizes
}

// shows tests that a snapshot reads as want; it must be destaged.
func (h *house) shows(d *Disk, s id.Snapshot, want []byte) {
	h.Helper()
	i, err := d.At(h.Context(), s)
	h.ok(err)
	defer i.Close()
	if i.Size() != int64(len(want)) {
		h.Fatalf("disk %d, snapshot %d has %d bytes, want %d", d.ID(), s, i.Size(), len(want))
	}
	got := make([]byte, len(want))
	h.ok(i.ReadAt(h.Context(), got, 0))
	if !bytes.Equal(got, want) {
		for b := range got {
			if got[b] != want[b] {
				h.Fatalf("disk %d, snapshot %d: byte %d (chunk %d) is %d, want %d", d.ID(), s, b, b>>12, got[b], want[b])
			}
		}
	}
}

// TestSnapshot takes snapshots and looks at them in the log, in results, in a
// checkpoint, after passes and under another owner.
func TestSnapshot(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	was := map[id.Snapshot][]byte{}
	take := func(s id.Snapshot) {
		t.Helper()
		if sizes := h.snap(s, d); sizes[0] != int64(len(c.data)) {
			t.Fatalf("snapshot %d of %d bytes, want %d", s, sizes[0], len(c.data))
		}
		was[s] = bytes.Clone(c.data)
	}
	check := func() {
		t.Helper()
		for s, want := range was {
			h.shows(d, s, want)
		}
		h.same(d, c)
	}
	take(1) // of nothing
	h.fill(d, c, 20)
	take(2)
	take(3) // nothing in between
	h.fill(d, c, 5)
	h.ok(d.Close())
	d = h.open(h.session(), 1) // marks in the log
	h.ok(h.round(d))
	check()
	h.fill(d, c, 20)
	take(4)
	h.ok(h.round(d))
	check()
	h.ok(d.Close())
	d = h.open(h.session(), 1) // marks in results
	check()
	h.ok(d.Checkpoint(t.Context()))
	h.fill(d, c, 20)
	h.ok(h.round(d))
	check()
	h.useUp(d, c)
	h.ok(d.Close())
	d = h.open(h.session(), 1) // marks in a checkpoint
	check()
	delete(was, 2)
	delete(was, 4)
	_, err := d.Pass(t.Context(), PassOptions{Exists: func(context.Context) (map[id.Snapshot]bool, error) {
		return map[id.Snapshot]bool{1: true, 3: true}, nil
	}})
	h.ok(err)
	h.ok(h.reclaim(t.Context()))
	check()
	for _, s := range []id.Snapshot{2, 4, 77} {
		_, err := d.At(t.Context(), s)
		h.fails("a snapshot that is gone", err, ErrNoSnapshot, ErrCorrupt)
		if d.Marked(s) {
			t.Fatalf("snapshot %d is marked", s)
		}
	}
}

// slowMarks is a node that takes its time with marks.
type slowMarks struct{ datanode.Node }

func (n slowMarks) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	reply, err := n.Node.Append(ctx, r)
	if r.Class == datanode.ClassMark {
		time.Sleep(time.Millisecond)
	}
	return reply, err
}

// TestMarkAllOneInstant snapshots two disks while a writer writes a number to the
// one, and when that has returned to the other: no snapshot has it the other way
// round.
func TestMarkAllOneInstant(t *testing.T) {
	const rounds, writers = 10, 3
	h := newHouse(t, func(n datanode.Node) datanode.Node { return slowMarks{n} })
	p := h.session()
	a, b := h.open(p, 1), h.open(p, 2)
	var stop atomic.Bool
	var running sync.WaitGroup
	for w := range writers {
		running.Go(func() {
			buf := make([]byte, 8)
			for n := uint64(1); n <= 400 && !stop.Load(); n++ { // what may be charged
				binary.BigEndian.PutUint64(buf, n)
				h.ok(a.WriteAt(t.Context(), buf, int64(w)*4096, false))
				h.ok(b.WriteAt(t.Context(), buf, int64(w)*4096, false))
			}
		})
	}
	for i := range id.Snapshot(rounds) {
		h.snap(1+2*i, b, a)
		time.Sleep(time.Millisecond)
	}
	stop.Store(true)
	running.Wait()
	h.ok(h.round(a))
	h.ok(h.round(b))
	for i := range id.Snapshot(rounds) {
		read := func(d *Disk, s id.Snapshot, w int) uint64 {
			image, err := d.At(t.Context(), s)
			h.ok(err)
			buf := make([]byte, 8)
			h.ok(image.ReadAt(t.Context(), buf, int64(w)*4096))
			return binary.BigEndian.Uint64(buf)
		}
		for w := range writers {
			if first, second := read(a, 2+2*i, w), read(b, 1+2*i, w); second > first || first > second+1 {
				t.Fatalf("snapshot %d, writer %d: the first disk has %d, the second %d", i, w, first, second)
			}
		}
	}
}

// TestMarkAllBusy lets one of the disks wait with its log: within bounded time
// the call gives up and has marked nothing, and the disks go on.
func TestMarkAllBusy(t *testing.T) {
	h, _, c := bentHouse(t)
	p := h.session()
	a, b := h.open(p, 1), h.open(p, 2)
	h.fill(a, c, 5)
	next := a.next
	b.appendMu.Lock()
	began := time.Now()
	_, err := MarkAll(t.Context(), []MarkRequest{{a, 1}, {b, 2}})
	h.fails("busy", err, ErrBusy)
	if took := time.Since(began); took < markWaitMax || took > markWaitMax+30*time.Second {
		t.Errorf("gave up after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err = MarkAll(ctx, []MarkRequest{{a, 1}, {b, 2}})
	h.fails("left", err, context.Canceled)
	b.appendMu.Unlock()
	if a.next != next || len(a.unsettled)+len(b.unsettled) != 0 || a.Marked(1) || b.Marked(2) {
		t.Error("something was marked")
	}
	h.snap(3, b, a)
	h.ok(h.round(a))
	h.shows(a, 4, c.data)
	if _, err = MarkAll(t.Context(), []MarkRequest{{a, 5}, {a, 6}}); err == nil {
		t.Error("one disk was marked twice")
	}
	h.ok(b.Close())
	_, err = MarkAll(t.Context(), []MarkRequest{{a, 5}, {b, 6}})
	h.fails("closed", err, ErrClosed)
}

// TestHoldAll holds disks up: writes wait and nobody reads them, reads go on, and no other
// snapshot is taken. Then they go on, or serve no more.
func TestHoldAll(t *testing.T) {
	h, _, c := bentHouse(t)
	p := h.session()
	a, b := h.open(p, 1), h.open(p, 2)
	h.fill(a, c, 5)
	write := func(d *Disk, text string) <-chan error {
		done := make(chan error, 1)
		go func() { done <- d.WriteAt(t.Context(), []byte(text), 0, false) }()
		for d.queued() == 0 {
			time.Sleep(time.Millisecond)
		}
		return done
	}
	held, err := HoldAll(t.Context(), []MarkRequest{{b, 9}, {a, 8}}, 7)
	h.ok(err)
	if held.Bytes[0] != b.Size() || held.Bytes[1] != a.Size() {
		t.Errorf("sizes %d", held.Bytes)
	}
	before := bytes.Clone(c.data)
	written := write(a, "late")
	_, err = MarkAll(t.Context(), []MarkRequest{{a, 10}})
	h.fails("a disk that is held up", err, ErrBusy)
	h.same(a, c) // as it was
	h.ok(a.Flush(t.Context()))
	select {
	case err := <-written:
		t.Fatalf("a write of a disk that is held up: %v", err)
	default:
	}
	held.Release()
	held.Release()
	h.ok(<-written)
	copy(c.data, "late")
	h.same(a, c)
	if _, err = HoldAll(t.Context(), []MarkRequest{{a, 8}}, 7); err == nil {
		t.Error("a disk was marked twice for one snapshot")
	}
	h.ok(h.round(a))
	h.shows(a, 8, before)

	held, err = HoldAll(t.Context(), []MarkRequest{{a, 11}, {b, 12}}, 11)
	h.ok(err)
	written = write(a, "never")
	held.Abandon()
	h.fails("a disk that was abandoned", <-written, ErrFailed, ErrClosed)
	h.fails("a read of it", b.ReadAt(t.Context(), make([]byte, 1), 0), ErrFailed, ErrClosed)
	h.ok(a.Close())
	a = h.open(h.session(), 1)
	h.same(a, c)
}

// queued returns how many calls wait to be appended.
func (d *Disk) queued() int {
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	return len(d.queue)
}

// logFull is a node whose log refuses appends of a class or better.
type logFull struct {
	datanode.Node
	full atomic.Bool
}

func (n *logFull) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if n.full.Load() && r.Stream == datanode.Ops {
		return nil, datanode.Errorf(datanode.ErrLogFull, "no")
	}
	return n.Node.Append(ctx, r)
}

// TestMarkAllLogFull finds no room even for a mark, and beside it a writer that
// waits for room: neither fails the disk.
func TestMarkAllLogFull(t *testing.T) {
	var node *logFull
	h := newHouse(t, func(n datanode.Node) datanode.Node {
		node = &logFull{Node: n}
		return node
	})
	d, c := h.open(h.session(), 1), newContent(3)
	h.fill(d, c, 5)
	node.full.Store(true)
	_, err := MarkAll(t.Context(), []MarkRequest{{d, 1}})
	h.fails("no room", err, ErrBusy, datanode.ErrLogFull)
	written := make(chan error)
	go func() { written <- d.WriteAt(t.Context(), []byte("late"), 0, false) }()
	for d.stats.logFull.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	_, err = MarkAll(t.Context(), []MarkRequest{{d, 1}})
	h.fails("behind a writer", err, ErrBusy)
	node.full.Store(false)
	h.ok(<-written)
	copy(c.data, "late")
	h.snap(2, d)
	h.ok(h.round(d))
	h.shows(d, 2, c.data)
}

// TestAwait waits for the round that brings a snapshot to the map, as long as
// there is hope.
func TestAwait(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 5)
	h.snap(1, d)
	time.AfterFunc(20*time.Millisecond, func() { h.round(d) })
	h.shows(d, 1, c.data)
	h.snap(2, d)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	h.fails("no round", d.Await(ctx, 2), context.DeadlineExceeded)
	time.AfterFunc(20*time.Millisecond, func() { d.Close() })
	h.fails("closed", d.Await(t.Context(), 2), ErrClosed)

	d = h.open(h.session(), 1)
	time.AfterFunc(20*time.Millisecond, func() { d.fail(errors.New("dead")) })
	h.fails("failed", d.Await(t.Context(), 2), ErrFailed)
}

// TestHalfResultWithMark leaves the first record of a result whose last one has a
// mark, as an owner does that dies in between: the next one takes the snapshot
// from the log again.
func TestHalfResultWithMark(t *testing.T) {
	h, node, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 10)
	h.snap(1, d)
	want := bytes.Clone(c.data)
	h.fill(d, c, 3)
	half := logrec.Result{More: true, Through: d.layers[0].through, MAC: d.layers[0].mac, Gen: d.m.Gen(), SizeBytes: d.Size(), Updates: []logrec.Update{{LBA: 1}}}
	data := half.Append(nil)
	pos := d.state.result + 1
	h.ok(d.appendResults(t.Context(), []datanode.Record{{
		Pos: pos, Type: uint8(logrec.TypeResult), Data: data, MAC: d.results.Next(d.Epoch(), pos, logrec.TypeResult, data),
	}}))
	h.ok(d.Close())
	for range 3 {
		d = h.open(h.session(), 1)
		h.ok(h.round(d))
		h.shows(d, 1, want)
		h.same(d, c)
		h.fill(d, c, 3)
		h.ok(d.Close())
		node.keep = true // and what the results cover is in the log once more
	}
}

// TestMarkOfLongResult replays a result of two records whose last one has the
// mark.
func TestMarkOfLongResult(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 5)
	h.snap(1, d)
	l := d.layers[0]
	res := logrec.Result{Through: l.through, MAC: l.mac, Gen: d.m.Gen(), SizeBytes: l.diskBytes, Mark: l.mark}
	for i := range id.LBA(logrec.UpdatesMax + 5) {
		res.Updates = append(res.Updates, logrec.Update{LBA: i})
	}
	_, _, err := d.appendResult(t.Context(), &res)
	h.ok(err)
	h.ok(d.Close())
	d = h.open(h.session(), 1)
	h.shows(d, 1, make([]byte, houseDiskBytes)) // as this result has it
}

// TestChanges compares snapshots chunk by chunk with what the model says.
func TestChanges(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	var was [][]byte
	for i := range 5 {
		h.fill(d, c, 8)
		if i == 3 {
			h.ok(d.Resize(t.Context(), houseDiskBytes*2))
			c.data = append(c.data, make([]byte, houseDiskBytes)...)
		}
		h.snap(id.Snapshot(i+1), d)
		was = append(was, bytes.Clone(c.data))
		if i%2 == 0 {
			h.ok(h.round(d))
			_, err := d.Pass(t.Context(), PassOptions{})
			h.ok(err)
		}
	}
	h.ok(h.round(d))
	for to := range was {
		for from := range to {
			old, err := d.At(t.Context(), id.Snapshot(from+1))
			h.ok(err)
			now, err := d.At(t.Context(), id.Snapshot(to+1))
			h.ok(err)
			got := make([]bool, now.Size()>>12)
			for off := int64(0); off < now.Size(); {
				h.ok(now.Changes(t.Context(), old, off, now.Size()-off, func(n int64, dirty bool) bool {
					for i := range n >> 12 {
						got[off>>12+i] = dirty
					}
					off += n
					return true
				}))
			}
			zeros := make([]byte, 4096)
			for i := range got {
				before := zeros
				if at := i << 12; at < len(was[from]) {
					before = was[from][at : at+4096]
				}
				if want := !bytes.Equal(before, was[to][i<<12:i<<12+4096]); got[i] != want {
					t.Fatalf("from %d to %d: chunk %d changed: %v, want %v", from, to, i, got[i], want)
				}
			}
			if err := old.ReadAt(t.Context(), make([]byte, 1), old.Size()); !errors.Is(err, ErrOutOfRange) {
				t.Fatalf("a read behind the end: %v", err)
			}
		}
	}
	other := h.open(h.session(), 2)
	h.snap(99, other)
	h.ok(h.round(other))
	foreign, err := other.At(t.Context(), 99)
	h.ok(err)
	mine, err := d.At(t.Context(), 1)
	h.ok(err)
	if err := mine.Changes(t.Context(), foreign, 0, 4096, func(int64, bool) bool { return true }); err == nil {
		t.Error("snapshots of two disks were compared")
	}
	h.ok(mine.Close())
	h.fails("closed", mine.ReadAt(t.Context(), make([]byte, 1), 0), ErrClosed)
}
