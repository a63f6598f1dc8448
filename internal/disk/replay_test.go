package disk

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"plinth/datanode"
	"plinth/internal/logrec"
)

// bent is a node whose log reads are changed on their way, and whose log is not
// trimmed where it is told not to be.
type bent struct {
	datanode.Node
	read func(stream datanode.Stream, records []datanode.Record) []datanode.Record
	keep bool
}

func (b *bent) ReadLog(ctx context.Context, r *datanode.ReadLogRequest) (*datanode.ReadLogReply, error) {
	reply, err := b.Node.ReadLog(ctx, r)
	if err == nil && b.read != nil && len(reply.Records) > 0 {
		reply.Records = b.read(r.Stream, reply.Records)
	}
	return reply, err
}

func (b *bent) TrimLog(ctx context.Context, r *datanode.TrimLogRequest) error {
	if b.keep {
		return nil
	}
	return b.Node.TrimLog(ctx, r)
}

func bentHouse(t *testing.T) (*house, *bent, *content) {
	var node *bent
	h := newHouse(t, func(n datanode.Node) datanode.Node {
		node = &bent{Node: n}
		return node
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return h, node, newContent(seed)
}

// TestHalfResult appends the first record of a result of two, or what precedes one, as
// an owner does that dies in between: the next owner discards it and does the round
// again, and the one after that skips it, with and without a checkpoint.
func TestHalfResult(t *testing.T) {
	h, _, c := bentHouse(t)
	for i := range 4 {
		checkpoint, typ := i%2 == 1, logrec.TypeResult
		d := h.open(h.session(), 1)
		h.fill(d, c, 10)
		h.ok(h.round(d))
		h.fill(d, c, 10)
		half := logrec.Result{
			More: true, Through: d.next - 1, MAC: d.ops.Head(), Gen: d.m.Gen(), SizeBytes: d.Size(),
			Updates: []logrec.Update{{LBA: 1}, {LBA: 5}},
		}
		data := half.Append(nil)
		if i >= 2 {
			d.done.owner(d.Epoch(), d.next-1)
			typ, data = logrec.TypeDone, d.done.carry(d.next-1)
		}
		pos := d.state.result + 1
		h.ok(d.appendResults(t.Context(), []datanode.Record{{
			Pos: pos, Type: uint8(typ), Data: data, MAC: d.results.Next(d.Epoch(), pos, typ, data),
		}}))
		h.ok(d.Close())
		d = h.open(h.session(), 1)
		h.same(d, c)
		if d.state.result != pos {
			t.Fatalf("results go on at %d, the half one is at %d", d.state.result+1, pos)
		}
		if checkpoint {
			// The half result may have the last room that a full log has for results.
			if _, results := d.CheckpointDue(); results == 0 {
				t.Error("no checkpoint is due")
			}
			h.ok(d.Checkpoint(t.Context()))
			st, err := h.node.Status(t.Context())
			h.ok(err)
			for _, s := range st.Streams {
				if s.Stream == datanode.Results && s.Bytes > 0 {
					t.Errorf("of the results %d bytes are left behind a checkpoint", s.Bytes)
				}
			}
			h.ok(d.Close())
			d = h.open(h.session(), 1)
			h.same(d, c)
		}
		h.ok(h.round(d))
		h.fill(d, c, 3)
		h.ok(d.Close())
		d = h.open(h.session(), 1)
		h.same(d, c)
		h.useUp(d, c)
		h.ok(d.Close())
	}
}

// TestUntrimmed loses every trim of the log, as crashes right after results and
// checkpoints do: what is in map and checkpoint is not replayed twice.
func TestUntrimmed(t *testing.T) {
	h, node, c := bentHouse(t)
	node.keep = true
	for range 3 {
		d := h.open(h.session(), 1)
		h.same(d, c)
		h.fill(d, c, 10)
		h.ok(h.round(d))
		h.ok(d.Checkpoint(t.Context()))
		h.fill(d, c, 5)
		h.ok(h.round(d))
		h.fill(d, c, 5)
		h.ok(d.Close())
	}
	d := h.open(h.session(), 1)
	if got := len(d.layers); got != 1 || d.Stats().BufferedBytes == 0 {
		t.Fatalf("%d layers with %d bytes were replayed", got, d.Stats().BufferedBytes)
	}
	h.same(d, c)
}

// TestBentLog changes what a data node gives back of the log in each way that
// the chain must find out. The disk does not open, and opens again when the node
// is honest.
func TestBentLog(t *testing.T) {
	first := func(change func(r *datanode.Record)) func([]datanode.Record) []datanode.Record {
		return func(rs []datanode.Record) []datanode.Record {
			change(&rs[0])
			return rs
		}
	}
	ways := map[string]func([]datanode.Record) []datanode.Record{
		"a MAC":      first(func(r *datanode.Record) { r.MAC[3] ^= 1 }),
		"a header":   first(func(r *datanode.Record) { r.Data[0] ^= 1 }),
		"a length":   first(func(r *datanode.Record) { r.Data = r.Data[:len(r.Data)-1] }),
		"a type":     first(func(r *datanode.Record) { r.Type ^= 1 }),
		"a new type": first(func(r *datanode.Record) { r.Type = 200 }), // one that could be skipped
		"an epoch":   first(func(r *datanode.Record) { r.Epoch++ }),
		"a position": first(func(r *datanode.Record) { r.Pos++ }),
		"one left out": func(rs []datanode.Record) []datanode.Record {
			return rs[1:]
		},
		"one left out, renumbered": func(rs []datanode.Record) []datanode.Record {
			for i := range rs[1:] {
				rs[i+1].Pos--
			}
			return rs[1:]
		},
		"two changed over": func(rs []datanode.Record) []datanode.Record {
			rs[0].Data, rs[1].Data = rs[1].Data, rs[0].Data
			rs[0].MAC, rs[1].MAC = rs[1].MAC, rs[0].MAC
			rs[0].Type, rs[1].Type = rs[1].Type, rs[0].Type
			return rs
		},
	}
	h, node, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 10)
	h.ok(h.round(d))
	h.ok(d.Checkpoint(t.Context()))
	for range 3 {
		h.fill(d, c, 5)
		h.ok(h.round(d))
	}
	h.ok(d.WriteAt(t.Context(), c.data[5:9], 5, false)) // a part
	h.fill(d, c, 6)
	p := h.session()
	for _, stream := range []datanode.Stream{datanode.Ops, datanode.Results} {
		for name, way := range ways {
			node.read = func(s datanode.Stream, rs []datanode.Record) []datanode.Record {
				if s != stream {
					return rs
				}
				rs = slices.Clone(rs)
				for i := range rs {
					rs[i].Data = slices.Clone(rs[i].Data)
				}
				return way(rs)
			}
			_, err := h.tryOpen(p, 1)
			h.fails(name, err, ErrCorrupt)
			if n := p.Space.Charged(); n != 0 {
				t.Fatalf("%s: %d bytes stay charged", name, n)
			}
		}
	}
	node.read = nil
	h.same(h.open(p, 1), c)
}

// TestLostLog loses the log behind a checkpoint: the error says so, and that the
// data node goes on does not hide it.
func TestLostLog(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 10)
	h.ok(h.round(d))
	h.ok(d.Checkpoint(t.Context()))
	h.ok(d.Close())
	h.ok(h.node.DropLog(t.Context(), &datanode.DropLogRequest{Disk: 1, Epoch: d.Epoch()}))
	for range 2 {
		_, err := h.tryOpen(h.session(), 1)
		h.fails("open", err, ErrCorrupt)
		if text := err.Error(); !strings.Contains(text, "vm1") || !strings.Contains(text, "rolled back") {
			t.Fatalf("the error does not say what happened: %v", err)
		}
	}
}
