package index

import (
	"cmp"
	"context"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// Condemn makes live segments of chunks misses. It blocks for a sync. Errors:
// ErrInvalid, ErrFenced.
func (x *Index) Condemn(_ context.Context, r *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	if err := checkOwner(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	if len(r.Segments) > datanode.SegmentsMax {
		return nil, invalid("%d segments", len(r.Segments))
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	if err := x.deps.CheckEpoch(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	condemned, err := x.condemn(r.Segments)
	if err != nil {
		return nil, err
	}
	if err := x.store.Sync(); err != nil {
		return nil, err
	}
	return &datanode.CondemnReply{Condemned: condemned}, nil
}

// condemn does so in one step: a registration either comes before it, and is
// stable with it, or finds the segment condemned.
func (x *Index) condemn(segments []id.Segment) ([]id.Segment, error) {
	x.rows.Lock()
	defer x.rows.Unlock()
	if !x.super.Load().complete {
		return nil, nil
	}
	c := x.change()
	x.holds.Lock()
	defer x.holds.Unlock()
	count, slots := len(x.transit), 0
	for _, t := range x.transit {
		slots += t.slots
	}
	var condemned []id.Segment
	for _, s := range segments {
		row, err := c.segment(s)
		if err != nil {
			c.drop()
			return nil, err
		}
		if row == nil || row.kind != datanode.KindChunks {
			continue
		}
		n := row.slotCount()
		if row.state == datanode.StateLive && count < datanode.TransitMax && slots+n <= datanode.TransitSlotsMax {
			count, slots = count+1, slots+n
			row.state = datanode.StateCondemned
			set(c.batch, segmentKey(keySegment, s), row.encode())
			c.putTransit(s, newTransit(n, nil))
		}
		if row.state == datanode.StateCondemned && !slices.Contains(condemned, s) {
			condemned = append(condemned, s)
		}
	}
	return condemned, c.commit()
}

// Forward records moves and has their copies held by all who hold what was
// moved. It blocks for a sync. Errors: ErrInvalid, ErrFenced, ErrGone.
func (x *Index) Forward(_ context.Context, r *datanode.ForwardRequest) error {
	if err := checkOwner(r.Disk, r.Epoch); err != nil {
		return err
	}
	from, err := movesBySource(r)
	if err != nil {
		return err
	}
	if err := x.store.Enter(); err != nil {
		return err
	}
	defer x.store.Leave()
	if err := x.deps.CheckEpoch(r.Disk, r.Epoch); err != nil {
		return err
	}
	if err := x.forward(r.Segment, from); err != nil {
		return err
	}
	return x.store.Sync()
}

// movesBySource checks a request and returns its moves by segment, each by slot.
func movesBySource(r *datanode.ForwardRequest) ([][]datanode.Move, error) {
	if r.Segment == 0 || len(r.Moves) > datanode.MovesMax {
		return nil, invalid("%d moves into segment %s", len(r.Moves), r.Segment)
	}
	moves := slices.SortedFunc(slices.Values(r.Moves), func(a, b datanode.Move) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.Slot, b.Slot))
	})
	var out [][]datanode.Move
	start := 0
	for i := range moves {
		m := &moves[i]
		if m.From == 0 || m.From == r.Segment || m.Slot >= id.SlotsMax || m.To >= id.SlotsMax {
			return nil, invalid("move of segment %s, slot %d to segment %s, slot %d", m.From, m.Slot, r.Segment, m.To)
		}
		if i > 0 && m.From == moves[i-1].From && m.Slot == moves[i-1].Slot {
			return nil, invalid("two moves of segment %s, slot %d", m.From, m.Slot)
		}
		if i+1 == len(moves) || moves[i+1].From != m.From {
			out = append(out, moves[start:i+1])
			start = i + 1
		}
	}
	return out, nil
}

func (x *Index) forward(target id.Segment, from [][]datanode.Move) error {
	x.rows.Lock()
	defer x.rows.Unlock()
	c := x.change()
	x.holds.Lock()
	defer x.holds.Unlock()
	if err := c.forwardAll(target, from); err != nil {
		c.drop()
		return err
	}
	return c.commit()
}

func (c *change) forwardAll(target id.Segment, from [][]datanode.Move) error {
	row, err := c.segment(target)
	if err != nil {
		return err
	}
	gone, err := c.x.gone(target)
	switch {
	case err != nil:
		return err
	case gone || row != nil && row.state == datanode.StateDeleting:
		return datanode.Errorf(datanode.ErrGone, "forward to segment %s", target)
	case row == nil || row.state != datanode.StateLive || row.kind != datanode.KindChunks:
		return invalid("forward to segment %s, which is not live or not of chunks", target)
	}
	copies, err := c.x.slots(target)
	if err != nil {
		return err
	}
	for _, moves := range from {
		if err := c.forward(target, copies, moves); err != nil {
			return err
		}
	}
	return nil
}

// forward records the moves out of one segment.
func (c *change) forward(target id.Segment, copies []datanode.SlotEntry, moves []datanode.Move) error {
	source := moves[0].From
	row, err := c.segment(source)
	if err != nil {
		return err
	}
	gone, err := c.x.gone(source)
	if err != nil {
		return err
	}
	if gone || row != nil && row.state == datanode.StateDeleting {
		return nil // nobody holds anything of it
	}
	t := c.transitOf(source)
	if row == nil || t == nil {
		return invalid("forward of segment %s, which is not condemned", source)
	}
	had, err := c.x.slots(source)
	if err != nil {
		return err
	}
	merged := slices.Clone(t.moves)
	for i := range moves {
		m := &moves[i]
		if int(m.Slot) >= row.slotCount() {
			return invalid("forward of segment %s: slot %d of %d", source, m.Slot, row.slotCount())
		}
		if err := checkCopy(m, slotEntry(had, m.Slot), slotEntry(copies, m.To)); err != nil {
			return err
		}
		if _, ok := t.to(m.Slot); !ok {
			merged = append(merged, datanode.SlotMove{Slot: m.Slot, To: id.Ref{Segment: target, Slot: m.To, Location: m.Location}})
		}
	}
	slices.SortFunc(merged, func(a, b datanode.SlotMove) int { return cmp.Compare(a.Slot, b.Slot) })
	c.putTransit(source, newTransit(t.slots, merged))
	holders, err := c.x.holders(source, row, c.lists)
	if err != nil {
		return err
	}
	for i := range holders {
		if err := c.spread(holders[i].Disk, source); err != nil {
			return err
		}
	}
	return c.settle(source)
}

func slotEntry(slots []datanode.SlotEntry, s id.Slot) *datanode.SlotEntry {
	i, ok := slices.BinarySearchFunc(slots, s, func(e datanode.SlotEntry, s id.Slot) int { return cmp.Compare(e.Slot, s) })
	if !ok {
		return nil
	}
	return &slots[i]
}

// checkCopy tells whether a move leads to a slot that is there and, as far as is
// known, of the same chunk: after a rebuild the table of its old segment may lack
// it.
func checkCopy(m *datanode.Move, old, copied *datanode.SlotEntry) error {
	if copied == nil || copied.Location != m.Location {
		return invalid("forward of segment %s, slot %d: slot %d is not there", m.From, m.Slot, m.To)
	}
	if old != nil && old.Fingerprint != copied.Fingerprint {
		return invalid("forward of segment %s, slot %d: slot %d has another chunk", m.From, m.Slot, m.To)
	}
	return nil
}

const (
	forwardsPage = 64
	// forwardsMax bounds a page to some 130 MB where each segment has the most slots
	// it can have; 2,000 slots each are 8 MB.
	forwardsMax = 256
)

// Forwards walks the moves of segments that are condemned or forwarded. What it
// tells is stable, so it blocks for a sync where there is something: a disk that
// is told makes its map name copies that only the record of the moves has held for
// it. Errors: ErrInvalid.
func (x *Index) Forwards(_ context.Context, r *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	max, err := page(r.Max, forwardsPage, forwardsMax)
	if err != nil {
		return nil, err
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	reply := &datanode.ForwardsReply{}
	_, upper := span([]byte{keyMoves})
	err = x.scan(append(segmentKey(keyMoves, r.After), 0), upper, func(key, value []byte) (bool, error) {
		moves, err := decodeMoves(value)
		if err != nil || len(moves) == 0 {
			return true, err
		}
		reply.More = len(reply.Forwards) == max
		if !reply.More {
			reply.Forwards = append(reply.Forwards, datanode.Forward{From: id.Segment(lastNumber(key)), Moves: moves})
		}
		return !reply.More, nil
	})
	if err == nil && len(reply.Forwards) > 0 {
		err = x.store.Sync()
	}
	if err != nil {
		return nil, err
	}
	return reply, nil
}
