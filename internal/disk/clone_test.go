package disk

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// openUnder opens disk n as a clone that reads an image until it has a record.
func (h *house) openUnder(p *Pool, n id.Disk, under *Image) *Disk {
	h.Helper()
	h.epochs[n]++
	d, err := Open(h.Context(), p, Config{
		ID: n, Name: "clone", Bytes: 1, Chunk: chunk.SizeDefault, Suite: chunk.AES256GCM, Epoch: h.epochs[n], MACKey: h.mac, Under: under,
		Map: blockmap.Options{FS: crashfs.New(), Dir: "/clone"},
	})
	h.ok(err)
	h.Cleanup(func() { d.Close() })
	return d
}

// record records a clone's checkpoint.
func (h *house) record(parent *Disk, s id.Snapshot, clone id.Disk) {
	h.Helper()
	value, ok, err := parent.CloneRecord(h.Context(), s)
	h.ok(err)
	if !ok {
		h.Fatal("the snapshot is in no checkpoint")
	}
	_, err = h.node.RegistryCommit(h.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: CheckpointKey(clone), Value: value}}})
	h.ok(err)
}

// TestCloneAtOnce writes to and reads a clone from its first moment, through the
// moment in which it gets a map of its own, while its parent is overwritten,
// passes and is reclaimed.
func TestCloneAtOnce(t *testing.T) {
	const workers, share = 3, houseDiskBytes / 4
	h, _, c := bentHouse(t)
	p := h.session()
	parent := h.open(p, 1)
	h.fill(parent, c, 40)
	h.snap(1, parent)
	h.ok(h.round(parent))
	want := bytes.Clone(c.data)
	parent.HoldLists()
	under, err := parent.At(t.Context(), 1)
	h.ok(err)
	d := h.openUnder(p, 2, under)
	if d.Size() != houseDiskBytes {
		t.Fatalf("the clone has %d bytes", d.Size())
	}
	h.same(d, &content{data: want})
	if err := d.Independent(t.Context()); err == nil {
		t.Fatal("independent without a checkpoint")
	}

	var stop atomic.Bool
	var running sync.WaitGroup
	for w := range workers { // each on its part of the disk
		mine := newContent(uint64(w))
		mine.data = want[w*share : (w+1)*share]
		running.Go(func() {
			for i := 0; i < 300 && !stop.Load(); i++ {
				off := mine.rng.IntN(share - 9000)
				if i%3 == 0 {
					for j := range mine.data[off : off+5000] {
						mine.data[off+j] = byte(mine.rng.Uint32())
					}
					h.ok(d.WriteAt(t.Context(), mine.data[off:off+5000], int64(w*share+off), false))
				}
				got := make([]byte, 9000)
				h.ok(d.ReadAt(t.Context(), got, int64(w*share+off)))
				if !bytes.Equal(got, mine.data[off:off+9000]) {
					t.Errorf("worker %d reads something else at %d", w, off)
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	h.fill(parent, c, 40)
	h.ok(h.round(parent))
	h.ok(h.round(d)) // does nothing
	h.ok(d.Checkpoint(t.Context()))
	report, err := d.Pass(t.Context(), PassOptions{})
	h.ok(err)
	if !report.Held {
		t.Error("a clone without a map has passed")
	}
	none, err := d.View(t.Context(), nil)
	h.ok(err)
	h.ok(none.Each(t.Context(), 0, ^id.Segment(0), func(n *Need) error { return errors.New(n.String()) }))
	none.Close()
	h.snap(5, d)
	h.ok(parent.Checkpoint(t.Context()))
	h.record(parent, 1, 2)
	report, err = parent.Pass(t.Context(), PassOptions{})
	h.ok(err)
	if !report.Held {
		t.Error("the parent has given something up")
	}
	h.ok(h.reclaim(t.Context()))
	h.ok(d.Independent(t.Context()))
	h.ok(under.Close())
	time.Sleep(5 * time.Millisecond)
	h.ok(h.round(d))
	stop.Store(true)
	running.Wait()
	h.same(d, &content{data: want})
	h.ok(d.Independent(t.Context())) // again: nothing

	report, err = d.Pass(t.Context(), PassOptions{})
	h.ok(err)
	if report.Held {
		t.Error("the clone's pass is held")
	}
	parent.ReleaseLists()
	h.ok(parent.Close())
	h.epochs[1]++
	_, err = h.node.Fence(t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: h.epochs[1]})
	h.ok(err)
	h.ok(Release(t.Context(), h.node, 1, h.epochs[1]))
	h.ok(h.reclaim(t.Context()))
	h.same(d, &content{data: want})
	h.ok(d.Close())
	d = h.open(h.session(), 2)
	h.same(d, &content{data: want})
	h.useUp(d, &content{want, c.rng})
}

// TestCloneRecordMismatch refuses a record that is not of the snapshot that the
// clone reads.
func TestCloneRecordMismatch(t *testing.T) {
	h, _, c := bentHouse(t)
	p := h.session()
	parent := h.open(p, 1)
	h.fill(parent, c, 5)
	h.snap(1, parent)
	h.ok(parent.Resize(t.Context(), houseDiskBytes*2))
	h.snap(2, parent)
	h.ok(h.round(parent))
	h.ok(parent.Checkpoint(t.Context()))
	parent.HoldLists()
	under, err := parent.At(t.Context(), 1)
	h.ok(err)
	d := h.openUnder(p, 2, under)
	h.record(parent, 2, 2)
	h.fails("another snapshot", d.Independent(t.Context()), ErrCorrupt)
	h.same(d, c)
	h.record(parent, 1, 2)
	h.ok(d.Independent(t.Context()))
	h.same(d, c)
}
