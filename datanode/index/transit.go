package index

import (
	"cmp"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// transit is what is known of a condemned or forwarded segment besides its row.
// It is not changed once made.
type transit struct {
	slots   int
	moves   []datanode.SlotMove // by slot
	targets []id.Segment        // of the moves, each once
}

func newTransit(slots int, moves []datanode.SlotMove) *transit {
	t := &transit{slots: slots, moves: moves}
	for i := range moves {
		if s := moves[i].To.Segment; !slices.Contains(t.targets, s) {
			t.targets = append(t.targets, s)
		}
	}
	return t
}

// to returns where a slot's chunk is, if it was moved.
func (t *transit) to(s id.Slot) (id.Ref, bool) {
	i, ok := slices.BinarySearchFunc(t.moves, s, func(m datanode.SlotMove, s id.Slot) int { return cmp.Compare(m.Slot, s) })
	if !ok {
		return id.Ref{}, false
	}
	return t.moves[i].To, true
}

// copies returns the slots of target that have copies of the given slots.
func (t *transit) copies(target id.Segment, of []byte) []byte {
	var bits []byte
	for i := range t.moves {
		if m := &t.moves[i]; m.To.Segment == target && hasBit(of, m.Slot) {
			bits = setBit(bits, m.To.Slot)
		}
	}
	return bits
}

// covers reports whether all of the given slots have moves.
func (t *transit) covers(bits []byte) bool {
	left := popcount(bits)
	for i := range t.moves {
		if hasBit(bits, t.moves[i].Slot) {
			left--
		}
	}
	return left == 0
}

// transitOf returns what the change makes of a segment in transit, nil if it is
// not in transit. It is called under holds, as all that follows.
func (c *change) transitOf(s id.Segment) *transit {
	if t, ok := c.transit[s]; ok {
		return t
	}
	return c.x.transit[s]
}

// putTransit sets what is known of a segment in transit; nil ends that.
func (c *change) putTransit(s id.Segment, t *transit) {
	if c.transit == nil {
		c.transit = map[id.Segment]*transit{}
	}
	c.transit[s] = t
	if t == nil {
		del(c.batch, segmentKey(keyMoves, s))
		return
	}
	set(c.batch, segmentKey(keyMoves, s), encodeMoves(t.moves))
}

// sources returns the segments that have moves into one, in order.
func (c *change) sources(target id.Segment) []id.Segment {
	var out []id.Segment
	for s := range c.x.transit {
		if t := c.transitOf(s); t != nil && slices.Contains(t.targets, target) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// depth is the number of moves that a chunk may have behind it in a segment.
// Moves go from what is not live to what was live then, so there are no rings;
// many ways may lead to one segment, so known has what was found already.
func (c *change) depth(s id.Segment, known map[id.Segment]int) int {
	if n, ok := known[s]; ok {
		return n
	}
	deepest := 0
	for _, source := range c.sources(s) {
		deepest = max(deepest, 1+c.depth(source, known))
	}
	known[s] = deepest
	return deepest
}

// owed adds to bits the slots of a segment that a disk must hold for what it
// holds of others.
func (c *change) owed(d id.Disk, s id.Segment, bits []byte) ([]byte, error) {
	for _, source := range c.sources(s) {
		held, err := c.heldBy(d, source)
		if err != nil {
			return nil, err
		}
		bits = orBits(bits, c.transitOf(source).copies(s, held))
	}
	return bits, nil
}

// spread makes a disk hold the copies of what it holds of a segment in transit.
func (c *change) spread(d id.Disk, s id.Segment) error {
	t := c.transitOf(s)
	if t == nil || len(t.moves) == 0 {
		return nil
	}
	held, err := c.heldBy(d, s)
	if err != nil {
		return err
	}
	for _, target := range t.targets {
		old, err := c.list(target, d)
		if err != nil {
			return err
		}
		copies := t.copies(target, held)
		row := &listRow{}
		if old != nil {
			row = &listRow{last: old.last, set: old.set, bits: orBits(slices.Clone(old.bits), copies)}
		} else if row.bits = copies; len(copies) == 0 {
			continue
		}
		if old != nil && len(row.bits) == len(old.bits) && popcount(row.bits) == popcount(old.bits) {
			continue
		}
		c.putList(target, d, row)
		set(c.batch, diskKey(d, target), nil)
		if err := c.spread(d, target); err != nil {
			return err
		}
		if err := c.settle(target); err != nil {
			return err
		}
	}
	return nil
}

// count counts an update of a disk's list of a segment as one of its lists of the
// copies, unless the change names them itself: an older update, late, must not take
// from the copies what this one relies on.
func (c *change) count(d id.Disk, s id.Segment, at update) error {
	t := c.transitOf(s)
	if t == nil {
		return nil
	}
	for _, target := range t.targets {
		l, err := c.list(target, d)
		if err != nil {
			return err
		}
		if l != nil && !c.said[target] && l.last.less(at) {
			c.putList(target, d, &listRow{last: at, set: l.set, bits: l.bits})
		}
	}
	return nil
}

// settle sets a segment in transit to forwarded if all that is held of it was
// moved, to condemned otherwise.
func (c *change) settle(s id.Segment) error {
	t := c.transitOf(s)
	if t == nil {
		return nil
	}
	row, err := c.segment(s)
	if err != nil || row == nil {
		return err
	}
	holders, err := c.x.holders(s, row, c.lists)
	if err != nil {
		return err
	}
	state := datanode.StateForwarded
	if len(t.moves) == 0 {
		state = datanode.StateCondemned
	}
	for i := range holders {
		if !t.covers(holders[i].Bits) {
			state = datanode.StateCondemned
		}
	}
	if row.state != state {
		row.state = state
		set(c.batch, segmentKey(keySegment, s), row.encode())
	}
	return nil
}

// leave ends what is known of a segment that gets a tombstone: its own moves, and
// those into it, of slots that nobody can hold any more.
func (c *change) leave(s id.Segment) error {
	for _, source := range c.sources(s) {
		t := c.transitOf(source)
		kept := slices.DeleteFunc(slices.Clone(t.moves), func(m datanode.SlotMove) bool { return m.To.Segment == s })
		c.putTransit(source, newTransit(t.slots, kept))
		if err := c.settle(source); err != nil {
			return err
		}
	}
	if c.transitOf(s) != nil {
		c.putTransit(s, nil)
	}
	return nil
}

// loadTransit reads the moves. What should not be, moves into segments that are
// not there and copies that are not held, is put right.
func (x *Index) loadTransit() error {
	c := x.change()
	lower, upper := span([]byte{keyMoves})
	err := x.scan(lower, upper, func(key, value []byte) (bool, error) {
		s := id.Segment(lastNumber(key))
		moves, err := decodeMoves(value)
		if err != nil {
			return false, err
		}
		row, err := x.segment(s)
		if err != nil {
			return false, err
		}
		if row == nil || row.state == datanode.StateLive || row.state == datanode.StateDeleting {
			x.log.Warn("moves of a segment that is not condemned", "segment", s.String())
			del(c.batch, key)
			return true, nil
		}
		x.transit[s] = newTransit(row.slotCount(), moves)
		return true, nil
	})
	if err == nil {
		err = c.mendMoves()
	}
	if err != nil {
		c.drop()
		return err
	}
	if c.batch.Empty() {
		c.drop()
		return nil
	}
	return c.commit()
}

// mendMoves drops moves whose target is not there, and has every copy held.
func (c *change) mendMoves() error {
	for s, t := range c.x.transit {
		there := map[id.Segment]bool{}
		for _, target := range t.targets {
			row, err := c.segment(target)
			if err != nil {
				return err
			}
			there[target] = row != nil && row.state != datanode.StateDeleting
		}
		kept := slices.DeleteFunc(slices.Clone(t.moves), func(m datanode.SlotMove) bool { return !there[m.To.Segment] })
		if len(kept) < len(t.moves) {
			c.x.log.Warn("moves into segments that are not there", "segment", s.String(), "moves", len(t.moves)-len(kept))
			c.putTransit(s, newTransit(t.slots, kept))
		}
	}
	for s := range c.x.transit {
		row, err := c.segment(s)
		if err != nil {
			return err
		}
		holders, err := c.x.holders(s, row, c.lists)
		if err != nil {
			return err
		}
		for i := range holders {
			if err := c.spread(holders[i].Disk, s); err != nil {
				return err
			}
		}
		if err := c.settle(s); err != nil {
			return err
		}
	}
	return nil
}
