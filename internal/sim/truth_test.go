package sim

import (
	"cmp"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// truth is what is so of a disk, whoever knows it: the records that were acknowledged,
// by stream from position 1 on, and what they make of its blocks.
type truth struct {
	begun     bool
	removed   bool
	base, now [blocks]uint32
	acked     [datanode.Streams][]*rec
	flushed   [datanode.Streams]int
	snaps     map[id.Snapshot][blocks]uint32
	newest    id.Epoch // the newest epoch that served
	lostPower bool     // all nodes of a row have lost power since they were in sync

	since   id.Epoch // what is in the history was answered under this epoch or a later one
	initial [blocks]uint32
	reads   [blocks][]access
}

// access is a read, or the part of a write, of one block: between two stamps.
type access struct {
	tag        uint32
	begun, end uint64
}

func (r *truth) begin(base [blocks]uint32) {
	*r = truth{begun: true, base: base, now: base, initial: base, snaps: make(map[id.Snapshot][blocks]uint32)}
}

// apply changes the blocks as a record says.
func (r *truth) apply(c *rec) {
	if c.mark != 0 {
		r.snaps[c.mark] = r.now
		return
	}
	for b := c.first; b < c.first+c.n; b++ {
		r.now[b] = c.tag
	}
}

// add is told that an owner acknowledges a record.
func (r *truth) add(w *world, k *disk, s datanode.Stream, c *rec) {
	w.Mark(uint64(k.d)<<40 | uint64(s)<<32 | uint64(c.pos))
	all := &r.acked[s]
	if r.newest != k.epoch {
		if int(c.pos) > len(*all) || (*all)[c.pos-1] != c {
			w.fail("epoch %d acknowledges record %d of stream %d of disk %d, which epoch %d has not", k.epoch, c.pos, s, k.d, r.newest)
		}
		return
	}
	if int(c.pos) != len(*all)+1 {
		w.fail("epoch %d acknowledges record %d of stream %d of disk %d after %d", k.epoch, c.pos, s, k.d, len(*all))
		return
	}
	*all = append(*all, c)
	if s == datanode.Ops {
		r.apply(c)
	}
}

func (r *truth) synced(e id.Epoch, through [datanode.Streams]int) {
	for s, n := range through {
		if e == r.newest && n <= len(r.acked[s]) {
			r.flushed[s] = max(r.flushed[s], n)
		}
	}
}

// found compares what a new owner finds in the log with what was acknowledged. What is
// found beyond that is seen from now on.
func (r *truth) found(w *world, k *disk, logs *[datanode.Streams]stream) {
	r.newest = k.epoch
	cut := false
	for s := range logs {
		t := &logs[s]
		have := int(t.end()) - 1
		if have < len(r.acked[s]) {
			if have < r.flushed[s] || !r.lostPower {
				w.fail("epoch %d found %d records of stream %d of disk %d; %d were acknowledged, %d flushed, all lost power: %v",
					k.epoch, have, s, k.d, len(r.acked[s]), r.flushed[s], r.lostPower)
				return
			}
			r.acked[s], cut = r.acked[s][:have], true
			w.count.LostPower++
		}
		if n := len(r.acked[s]); n > 0 && !t.has(r.acked[s][n-1]) {
			w.fail("epoch %d found another record %d of stream %d of disk %d than was acknowledged", k.epoch, n, s, k.d)
			return
		}
		for pos := id.Pos(len(r.acked[s])) + 1; pos < t.end(); pos++ {
			c := t.recs[pos-t.first]
			r.acked[s] = append(r.acked[s], c)
			if s == int(datanode.Ops) && !cut {
				r.apply(c)
			}
		}
	}
	r.lostPower = false
	if cut {
		r.again(w, k)
	}
}

// again begins another history: what power took was not flushed, and is not there.
func (r *truth) again(w *world, k *disk) {
	r.check(w, k.d)
	snaps := r.snaps
	r.now, r.snaps = r.base, make(map[id.Snapshot][blocks]uint32)
	for _, c := range r.acked[datanode.Ops] {
		r.apply(c)
	}
	for s, of := range w.reg.snaps {
		if of == k.d && (snaps[s] != r.snaps[s] || !slices.ContainsFunc(r.acked[datanode.Ops], func(c *rec) bool { return c.mark == s })) {
			w.fail("snapshot %d of disk %d was lost, or changed", s, k.d)
		}
	}
	r.since, r.initial, r.reads = k.epoch, r.now, [blocks][]access{}
}

// read notes what a client was told, of a read or of a write.
func (r *truth) read(e id.Epoch, b int, a access) {
	if e >= r.since {
		r.reads[b] = append(r.reads[b], a)
	}
}

// zone is when the operations of one value were: the first had ended at low, and the
// last began at high. If low is after high they may all have been at one instant between.
type zone struct{ low, high uint64 }

// check finds out whether each block is a register: whether there is an order of reads
// and writes, each between its beginning and its end, in which each read is of the write
// before it. Values are unique, so that is so exactly if no two zones that go forward
// overlap, and none that goes backward lies within one that goes forward.
func (r *truth) check(w *world, d id.Disk) {
	if !r.begun || w.wrong != nil {
		return
	}
	for b := range r.reads {
		if tag, ok := r.register(w, b); !ok {
			w.fail("block %d of disk %d is no register: see value %d", b, d, tag)
			return
		}
	}
}

func (r *truth) register(w *world, b int) (uint32, bool) {
	reads := r.reads[b]
	slices.SortFunc(reads, func(x, y access) int { return cmp.Or(cmp.Compare(x.tag, y.tag), cmp.Compare(x.begun, y.begun)) })
	var forward, backward []zone
	for i := 0; i < len(reads); {
		tag, z, begun := reads[i].tag, zone{}, uint64(0)
		if tag != r.initial[b] { // that was written before all
			o := w.ops[tag]
			if o == nil {
				return tag, false
			}
			begun = o.begun
			z = zone{cmp.Or(o.end, 1<<63), begun}
		}
		for ; i < len(reads) && reads[i].tag == tag; i++ {
			a := &reads[i]
			if a.end < begun {
				return tag, false
			}
			z = zone{min(z.low, a.end), max(z.high, a.begun)}
		}
		if z.low < z.high {
			forward = append(forward, z)
		} else {
			backward = append(backward, zone{z.high, z.low})
		}
	}
	slices.SortFunc(forward, func(x, y zone) int { return cmp.Compare(x.low, y.low) })
	for i, z := range forward {
		if i > 0 && z.low < forward[i-1].high {
			return r.at(reads, z), false
		}
	}
	for _, z := range backward {
		i, _ := slices.BinarySearchFunc(forward, z.low, func(f zone, low uint64) int { return cmp.Compare(f.low, low) })
		if i > 0 && z.high < forward[i-1].high {
			return r.at(reads, z), false
		}
	}
	return 0, true
}

// at names the value of a zone, for the report.
func (r *truth) at(reads []access, z zone) uint32 {
	for _, a := range reads {
		if a.begun == z.low || a.begun == z.high || a.end == z.low || a.end == z.high {
			return a.tag
		}
	}
	return 0
}
