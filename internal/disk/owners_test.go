package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"plinth/datanode"
	"plinth/datanode/datanodetest"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// eachNode runs a test on a data node in process, and on one as through a wire.
func eachNode(t *testing.T, test func(h *house, seed uint64)) {
	seed := rand.Uint64()
	for name, wrap := range map[string]func(datanode.Node) datanode.Node{
		"in process":      nil,
		"through a codec": func(n datanode.Node) datanode.Node { return datanodetest.Codec(n, seed) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			test(newHouse(t, wrap), seed)
		})
	}
}

// TestFencedOwner lets an owner lose its disk and then do each thing that
// changes something durable. Each is refused, the disk fails, and the new owner
// has all that was acknowledged, before and after its own rounds and passes.
func TestFencedOwner(t *testing.T) {
	acts := []struct {
		name string
		do   func(h *house, d *Disk) error
	}{
		{"write", func(h *house, d *Disk) error { return d.WriteAt(h.Context(), []byte("x"), 9, false) }},
		{"flush", func(h *house, d *Disk) error { return d.Flush(h.Context()) }},
		{"round", func(h *house, d *Disk) error { return h.round(d) }},
		{"checkpoint", func(h *house, d *Disk) error { return d.Checkpoint(h.Context()) }},
		{"pass", func(h *house, d *Disk) error { _, err := d.Pass(h.Context(), PassOptions{}); return err }},
	}
	eachNode(t, func(h *house, seed uint64) {
		a, b := h.session(), h.session()
		for i, act := range acts {
			n := id.Disk(i + 1)
			c := newContent(seed + uint64(i))
			old := h.open(a, n)
			h.fill(old, c, 10)
			h.ok(h.round(old))
			h.ok(old.Checkpoint(h.Context()))
			h.fill(old, c, 10)
			h.ok(h.round(old)) // a result that no checkpoint has
			h.fill(old, c, 10) // operations that no result has
			now := h.open(b, n)
			h.same(now, c)
			h.fails(act.name, act.do(h, old), datanode.ErrFenced)
			h.dead(act.name, old)
			h.same(now, c)
			h.useUp(now, c)
			h.ok(old.Close())
			h.same(h.open(a, n), c)
		}
	})
}

// dead tests that a disk serves no more, and says why.
func (h *house) dead(after string, d *Disk) {
	h.Helper()
	ctx := h.Context()
	h.fails("read after "+after, d.ReadAt(ctx, make([]byte, 4096), 0), ErrFailed, datanode.ErrFenced)
	h.fails("write after "+after, d.WriteAt(ctx, make([]byte, 5), 0, true), ErrFailed, datanode.ErrFenced)
	h.fails("flush after "+after, d.Flush(ctx), ErrFailed, datanode.ErrFenced)
	h.fails("checkpoint after "+after, d.Checkpoint(ctx), ErrFailed)
	_, err := d.Pass(ctx, PassOptions{})
	h.fails("pass after "+after, err, ErrFailed)
	if d.Rotate(); d.Frozen() {
		h.Fatalf("after %s the disk still asks for rounds", after)
	}
	h.ok(d.pool.Destage(ctx, []*Disk{d})) // leaves it alone
}

// useUp lets an owner do all it can, so that what another one broke shows.
func (h *house) useUp(d *Disk, c *content) {
	h.Helper()
	h.fill(d, c, 10)
	h.ok(h.round(d))
	h.ok(d.Checkpoint(h.Context()))
	_, err := d.Pass(h.Context(), PassOptions{})
	h.ok(err)
	h.ok(h.reclaim(h.Context()))
	h.same(d, c)
}

// TestFencedCalls sends what an owner would send next, as it is on the wire.
func TestFencedCalls(t *testing.T) {
	eachNode(t, func(h *house, seed uint64) {
		c := newContent(seed)
		old := h.open(h.session(), 1)
		h.fill(old, c, 10)
		h.ok(h.round(old))
		h.ok(old.Checkpoint(h.Context()))
		h.fill(old, c, 5)
		held, err := old.heldSegments(h.Context())
		h.ok(err)
		revision := old.checkpoint.revision
		now := h.open(h.session(), 1)
		ctx, n, epoch := h.Context(), h.node, old.Epoch()
		record := func(stream datanode.Stream, pos id.Pos) error {
			_, err := n.Append(ctx, &datanode.AppendRequest{
				Disk: 1, Epoch: epoch, Stream: stream, Class: datanode.ClassMark,
				Records: []datanode.Record{{Pos: pos, Type: uint8(logrec.TypeTrim), Data: logrec.AppendRange(nil, 0, 4096)}},
			})
			return err
		}
		_, lists := n.SetLists(ctx, &datanode.SetListsRequest{Disk: 1, Epoch: epoch, Seq: 1 << 40, Lists: []datanode.List{{Segment: held[0]}}})
		_, look := n.Lookup(ctx, &datanode.LookupRequest{Disk: 1, Epoch: epoch, Seq: 1 << 40, Fingerprints: make([]id.Fingerprint, 1)})
		_, checkpoint := n.RegistryCommit(ctx, &datanode.RegistryTxn{
			Guards: []datanode.Guard{{Disk: 1, Epoch: epoch}}, Compares: []datanode.Compare{{Key: CheckpointKey(1), Revision: revision}},
			Puts: []datanode.Put{{Key: CheckpointKey(1), Value: []byte("{}")}},
		})
		_, registry := n.RegistryCommit(ctx, &datanode.RegistryTxn{
			Guards: []datanode.Guard{{Disk: 1, Epoch: epoch}}, Deletes: []string{CheckpointKey(1)},
		})
		for what, err := range map[string]error{
			"append":     record(datanode.Ops, now.next),
			"result":     record(datanode.Results, now.state.result+1),
			"list":       lists,
			"look-up":    look,
			"checkpoint": checkpoint,
			"registry":   registry,
			"trim": n.TrimLog(ctx, &datanode.TrimLogRequest{
				Disk: 1, Epoch: epoch, Stream: datanode.Ops, Through: now.next - 1,
			}),
			"sync": n.Sync(ctx, &datanode.SyncRequest{Disk: 1, Epoch: epoch}),
			"drop": n.DropLog(ctx, &datanode.DropLogRequest{Disk: 1, Epoch: epoch}),
		} {
			if !errors.Is(err, datanode.ErrFenced) {
				t.Errorf("%s: %v", what, err)
			}
		}
		h.useUp(now, c)
	})
}

// TestTakeovers lets owners take a disk from each other while writers, rounds,
// checkpoints and passes of the last one run. Each writer numbers its writes;
// what an owner acknowledged, the next one has.
func TestTakeovers(t *testing.T) {
	const writers, owners, slotBytes = 3, 5, 64 << 10
	eachNode(t, func(h *house, seed uint64) {
		var acked [writers]uint64 // the number of the last write that was acknowledged
		read := func(d *Disk, w int) uint64 {
			p := make([]byte, slotBytes)
			h.ok(d.ReadAt(h.Context(), p, int64(w)*slotBytes))
			first := binary.BigEndian.Uint64(p)
			for i := 512; i < slotBytes; i += 512 {
				if n := binary.BigEndian.Uint64(p[i:]); n != first {
					h.Fatalf("writer %d: sector %d is of write %d, the first of %d", w, i/512, n, first)
				}
			}
			return first
		}
		var running sync.WaitGroup
		var old *Disk
		for o := range owners {
			d := h.open(h.session(), 1) // fences the last one
			running.Wait()
			if old != nil {
				h.ok(old.Close())
			}
			old = d
			for w := range writers {
				got := read(d, w)
				if got < acked[w] || got > acked[w]+1 {
					h.Fatalf("owner %d: writer %d was told of write %d, the disk has %d", o, w, acked[w], got)
				}
				acked[w] = got
			}
			started := make(chan struct{}, writers)
			for w := range writers {
				running.Go(func() { writeNumbers(h, d, w, slotBytes, &acked[w], started) })
			}
			running.Go(func() { workUntilFenced(h, d) })
			if o == owners-1 {
				break
			}
			for range writers {
				<-started
			}
		}
		last := h.open(h.session(), 1)
		running.Wait()
		for w := range writers {
			if got := read(last, w); got < acked[w] || got > acked[w]+1 {
				h.Fatalf("writer %d was told of write %d, the disk has %d", w, acked[w], got)
			}
		}
	})
}

// writeNumbers writes rising numbers over one region until the disk is fenced.
func writeNumbers(h *house, d *Disk, w, bytes int, acked *uint64, started chan<- struct{}) {
	ctx := context.WithoutCancel(h.Context())
	p := make([]byte, bytes)
	for i := 0; ; i++ {
		for j := 0; j < bytes; j += 512 {
			binary.BigEndian.PutUint64(p[j:], *acked+1)
		}
		if err := d.WriteAt(ctx, p, int64(w*bytes), i%4 == 0); err != nil {
			if !errors.Is(err, datanode.ErrFenced) || !errors.Is(err, ErrFailed) {
				h.Errorf("write: %v", err)
			}
			if i <= 8 {
				started <- struct{}{}
			}
			return
		}
		if *acked++; i == 8 {
			started <- struct{}{}
		}
	}
}

func workUntilFenced(h *house, d *Disk) {
	ctx := context.WithoutCancel(h.Context())
	for {
		err := h.round(d)
		if err == nil {
			err = d.Checkpoint(ctx)
		}
		if err == nil {
			_, err = d.Pass(ctx, PassOptions{})
		}
		if err == nil {
			err = h.reclaim(ctx)
		}
		if err != nil {
			if !errors.Is(err, datanode.ErrFenced) {
				h.Errorf("background work: %v", err)
			}
			return
		}
	}
}
