package sim

import (
	"math/bits"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

const slotsMax = 16

// index is the index of a data node, and the segments that it knows: by the rules of
// datanode/index.
type index struct {
	w    *world
	at   *place
	boot int
	// fenced is each disk's newest epoch.
	fenced [disksMax + 2]id.Epoch
	segs   []*segment // by number
	gone   map[id.Segment]bool
	// undo takes back what was not synced, the last first: power may.
	undo []func()
}

// segment has chunks, or is a checkpoint.
type segment struct {
	number id.Segment
	fps    []uint32
	ckpt   *mapState
	births []birth
	lists  [disksMax + 2]list
	state  datanode.State
	moves  []move
}

type birth struct {
	disk  id.Disk
	epoch id.Epoch
	bits  uint32
}

// list says what a disk needs of a segment.
type list struct {
	there     bool
	last, set seqno
	bits      uint32
}

type seqno struct {
	epoch id.Epoch
	seq   uint64
}

func (a seqno) less(b seqno) bool { return a.epoch < b.epoch || a.epoch == b.epoch && a.seq < b.seq }

// move says where a slot's chunk is.
type move struct {
	slot    int
	segment id.Segment
	to      int
}

func (x *index) find(n id.Segment) *segment {
	i, ok := slices.BinarySearchFunc(x.segs, n, func(s *segment, n id.Segment) int { return int(int64(s.number) - int64(n)) })
	if !ok {
		return nil
	}
	return x.segs[i]
}

// keep remembers a segment as it is, so that it can be taken back.
func (x *index) keep(s *segment) {
	old := *s
	old.moves = slices.Clone(s.moves)
	x.undo = append(x.undo, func() { *s = old })
}

func (x *index) sync() { x.undo = x.undo[:0] }

// power takes back some of what was not synced.
func (x *index) power() {
	x.boot++
	keep := x.w.Rand.IntN(len(x.undo) + 1)
	for i := len(x.undo) - 1; i >= keep; i-- {
		x.undo[i]()
	}
	x.sync()
}

func (x *index) fence(d id.Disk, e id.Epoch) error {
	if e < x.fenced[d] {
		return errFenced
	}
	x.fenced[d] = e
	return nil
}

func (x *index) allow(d id.Disk, e id.Epoch) error {
	if e < x.fenced[d] {
		return errFenced
	}
	return nil
}

// heldBy returns the slots that a disk holds.
func (s *segment) heldBy(d id.Disk) uint32 {
	l := &s.lists[d]
	held := l.bits
	for _, b := range s.births {
		if b.disk == d && (!l.there || b.epoch > l.set.epoch) {
			held |= b.bits
		}
	}
	return held
}

func (s *segment) held() (all uint32) {
	for d := range s.lists {
		all |= s.heldBy(id.Disk(d))
	}
	return all
}

// hit is where a chunk is; slot -1: nowhere.
type hit struct {
	segment id.Segment
	slot    int
}

// lookup finds chunks and registers them for the disk.
func (x *index) lookup(d id.Disk, e id.Epoch, seq uint64, fps []uint32) (hits []hit, boot int, err error) {
	if err := x.allow(d, e); err != nil {
		return nil, 0, err
	}
	for _, fp := range fps {
		h := hit{0, -1}
		for _, s := range x.segs {
			slot := slices.Index(s.fps, fp)
			l := &s.lists[d]
			if slot < 0 || s.state != datanode.StateLive || l.there && (seqno{e, seq}).less(l.set) {
				continue
			}
			h = hit{s.number, slot}
			if x.w.flaw != lookupUnheld {
				x.keep(s)
				if !l.there {
					*l = list{there: true}
				}
				l.bits |= 1 << slot
				if l.last.less(seqno{e, seq}) {
					l.last = seqno{e, seq}
				}
			}
			x.w.count.Hits++
			break
		}
		hits = append(hits, h)
	}
	return hits, x.boot, nil
}

// publish makes segments known, and all that was registered before stable.
func (x *index) publish(boot int, segs ...*segment) error {
	if boot >= 0 && boot != x.boot {
		return errBoot // what was looked up may be registered no more
	}
	for _, s := range segs {
		if x.gone[s.number] || x.find(s.number) != nil {
			continue
		}
		own := *s // what is told again is not what was told
		own.births = slices.Clone(s.births)
		i, _ := slices.BinarySearchFunc(x.segs, own.number, func(s *segment, n id.Segment) int { return int(int64(s.number) - int64(n)) })
		x.segs = slices.Insert(x.segs, i, &own)
	}
	x.sync()
	return nil
}

// listed is what a disk says that it needs of a segment.
type listed struct {
	segment id.Segment
	bits    uint32
}

// setLists replaces a disk's lists.
func (x *index) setLists(d id.Disk, e id.Epoch, seq uint64, lists []listed) error {
	if err := x.allow(d, e); err != nil {
		return err
	}
	said := make(map[id.Segment]bool, len(lists))
	for _, l := range lists {
		said[l.segment] = true
		if s := x.find(l.segment); s == nil && l.bits != 0 {
			return errGone
		}
	}
	// What is moved comes before its copies: segments are emptied into newer ones.
	lists = slices.Clone(lists)
	slices.SortFunc(lists, func(a, b listed) int { return int(int64(a.segment) - int64(b.segment)) })
	var stale error
	for _, l := range lists {
		s := x.find(l.segment)
		if s == nil {
			continue
		}
		at := seqno{e, seq}
		old := &s.lists[d]
		if old.there && !old.last.less(at) {
			stale = errConflict
			continue
		}
		x.keep(s)
		bits := l.bits
		for _, source := range x.segs { // what is held of a source is owed of its copies
			bits |= source.copies(s.number, source.heldBy(d))
		}
		*old = list{true, at, at, bits}
		x.spread(d, s, at, said)
	}
	x.sync()
	return stale
}

// copies returns the slots of a target that have copies of slots.
func (s *segment) copies(target id.Segment, of uint32) (bits uint32) {
	for _, m := range s.moves {
		if m.segment == target && of>>m.slot&1 != 0 {
			bits |= 1 << m.to
		}
	}
	return bits
}

// spread makes a disk hold the copies of what it holds of a segment in transit, and
// settles what state that is in.
func (x *index) spread(d id.Disk, s *segment, at seqno, said map[id.Segment]bool) {
	if s.state == datanode.StateLive {
		return
	}
	var done []id.Segment
	for _, m := range s.moves {
		if slices.Contains(done, m.segment) {
			continue
		}
		done = append(done, m.segment)
		t := x.find(m.segment)
		if t == nil {
			continue
		}
		bits := s.copies(m.segment, s.heldBy(d))
		l := &t.lists[d]
		if !l.there && bits == 0 {
			continue
		}
		x.keep(t)
		grown := bits&^l.bits != 0
		l.there, l.bits = true, l.bits|bits
		if !said[m.segment] && l.last.less(at) {
			l.last = at
		}
		if grown {
			x.spread(d, t, seqno{}, nil)
		}
	}
	x.settle(s)
}

func (x *index) settle(s *segment) {
	var moved uint32
	for _, m := range s.moves {
		moved |= 1 << m.slot
	}
	switch {
	case s.state == datanode.StateLive:
	case len(s.moves) > 0 && s.held()&^moved == 0:
		s.state = datanode.StateForwarded
	default:
		s.state = datanode.StateCondemned
	}
}

// segmentsOf returns the segments of which a disk holds something.
func (x *index) segmentsOf(d id.Disk, e id.Epoch) (of []id.Segment, err error) {
	if err := x.allow(d, e); err != nil {
		return nil, err
	}
	for _, s := range x.segs {
		if s.heldBy(d) != 0 {
			of = append(of, s.number)
		}
	}
	return of, nil
}

func (x *index) condemn(e id.Epoch, numbers []id.Segment) (condemned []*segment, err error) {
	if err := x.allow(moverDisk, e); err != nil {
		return nil, err
	}
	for _, n := range numbers {
		s := x.find(n)
		if s == nil || s.ckpt != nil {
			continue
		}
		if s.state == datanode.StateLive {
			x.keep(s)
			s.state = datanode.StateCondemned
			x.w.count.Condemned++
		}
		if s.state == datanode.StateCondemned {
			now := *s
			now.moves = slices.Clone(s.moves)
			condemned = append(condemned, &now)
		}
	}
	x.sync()
	return condemned, nil
}

// forwarding is moves out of one segment.
type forwarding struct {
	from  id.Segment
	moves []move
}

// forward records moves into a segment: who holds what was moved holds the copy.
func (x *index) forward(e id.Epoch, target id.Segment, all []forwarding) error {
	if err := x.allow(moverDisk, e); err != nil {
		return err
	}
	t := x.find(target)
	if t == nil || t.state != datanode.StateLive {
		return errGone
	}
	for _, f := range all {
		s := x.find(f.from)
		if s == nil {
			continue // nobody holds anything of it
		}
		if s.state == datanode.StateLive {
			return errConflict
		}
		x.keep(s)
		for _, m := range f.moves {
			if !slices.ContainsFunc(s.moves, func(o move) bool { return o.slot == m.slot }) {
				s.moves = append(s.moves, m)
			}
		}
		for d := range s.lists {
			if x.w.flaw != copyUnheld && s.heldBy(id.Disk(d)) != 0 {
				x.spread(id.Disk(d), s, seqno{}, nil)
			}
		}
		x.settle(s)
		x.w.count.Copied += len(f.moves)
	}
	x.sync()
	return nil
}

// forwards returns all moves, which are stable then.
func (x *index) forwards() (all []forwarding) {
	x.sync()
	for _, s := range x.segs {
		if len(s.moves) > 0 {
			all = append(all, forwarding{s.number, slices.Clone(s.moves)})
		}
	}
	return all
}

// reclaim deletes what nobody holds.
func (x *index) reclaim() {
	x.sync()
	var freed []id.Segment
	x.segs = slices.DeleteFunc(x.segs, func(s *segment) bool {
		if s.held() != 0 {
			return false
		}
		x.gone[s.number] = true
		freed = append(freed, s.number)
		return true
	})
	for _, n := range freed {
		x.w.Mark(uint64(n))
		x.w.count.Freed++
		for _, s := range x.segs {
			s.moves = slices.DeleteFunc(s.moves, func(m move) bool { return m.segment == n })
			x.settle(s)
		}
	}
	if len(freed) > 0 {
		x.w.freed(freed)
	}
}

// usage is what reclaim plans with.
func (x *index) usage() (all []datanode.SegmentUse) {
	for _, s := range x.segs {
		u := datanode.SegmentUse{
			Segment: s.number, Kind: datanode.KindChunks, State: s.state, Slots: len(s.fps), LiveSlots: bits.OnesCount32(s.held()),
			SealedBytes: int64(len(s.fps)) * slotBytes, StoredBytes: int64(len(s.fps))*slotBytes*3/2 + 3*datanode.BlockBytes,
		}
		if s.ckpt != nil {
			u.Kind, u.Slots, u.StoredBytes = datanode.KindObject, 1, 1<<20
		}
		all = append(all, u)
	}
	return all
}

const slotBytes = 256 << 10
