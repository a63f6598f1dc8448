package index

import (
	"context"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"plinth/datanode"
	"plinth/internal/id"
)

// change is a set of rows that come about in one step, made under rows.
type change struct {
	x        *Index
	batch    *pebble.Batch
	counters counters
	known    map[id.Segment]bool // segments made known by it
	added    []printed           // rows of fingerprints, to be in memory first
	removed  []printed

	// What it makes of other rows, for those of its steps that read them again.
	rows    map[id.Segment]*segmentRow
	lists   map[holder]*listRow // nil: none
	transit map[id.Segment]*transit
	said    map[id.Segment]bool // named by the SetLists that it is, if there are moves
}

// holder names a disk's list of a segment.
type holder struct {
	segment id.Segment
	disk    id.Disk
}

func (x *Index) change() *change {
	return &change{
		x: x, batch: x.store.DB.NewBatch(), counters: *x.counters.Load(),
		known: map[id.Segment]bool{},
	}
}

// commit applies the change together with the counters and closes it. It is
// not yet stable.
func (c *change) commit() error {
	if c.counters != *c.x.counters.Load() {
		set(c.batch, []byte{keyCounters}, c.counters.encode())
	}
	if err := c.x.store.Commit(c.batch); err != nil {
		return err
	}
	c.x.recent.change(c.removed, c.added)
	c.x.counters.Store(&c.counters)
	for s, t := range c.transit { // which holds guards
		if t == nil {
			delete(c.x.transit, s)
		} else {
			c.x.transit[s] = t
		}
	}
	return nil
}

// segment returns a segment's row as the change makes it, nil if it is not known.
func (c *change) segment(s id.Segment) (*segmentRow, error) {
	if row, ok := c.rows[s]; ok {
		return row, nil
	}
	row, err := c.x.segment(s)
	if err != nil {
		return nil, err
	}
	if c.rows == nil {
		c.rows = map[id.Segment]*segmentRow{}
	}
	c.rows[s] = row
	return row, nil
}

// drop closes a change without applying it.
func (c *change) drop() { c.batch.Close() }

// Publish makes segments known, each held by its births, and with them every
// earlier Lookup's registrations stable. A segment that is known takes in the
// slots it lacks. It blocks for a sync. Errors: ErrInvalid, ErrGone (of one
// segment; none is then published).
func (x *Index) Publish(_ context.Context, r *datanode.PublishRequest) error {
	if len(r.Segments) > datanode.SegmentsMax {
		return invalid("%d segments", len(r.Segments))
	}
	for i := range r.Segments {
		if err := checkEntry(&r.Segments[i]); err != nil {
			return err
		}
	}
	if err := x.store.Enter(); err != nil {
		return err
	}
	defer x.store.Leave()
	if len(r.Segments) > 0 {
		if err := x.publishAll(r.Segments); err != nil {
			return err
		}
	}
	return x.store.Sync()
}

func (x *Index) publishAll(entries []datanode.SegmentEntry) error {
	x.rows.Lock()
	defer x.rows.Unlock()
	if err := x.makeRoom(); err != nil {
		return err
	}
	c := x.change()
	for i := range entries {
		if err := c.publish(&entries[i]); err != nil {
			c.drop()
			return err
		}
	}
	return c.commit()
}

func (c *change) publish(e *datanode.SegmentEntry) error {
	h := &e.Header
	if c.known[h.Segment] {
		return nil // named twice in one call
	}
	gone, err := c.x.gone(h.Segment)
	if err != nil {
		return err
	}
	row, err := c.segment(h.Segment)
	if err != nil {
		return err
	}
	switch {
	case gone || row != nil && row.state == datanode.StateDeleting:
		return datanode.Errorf(datanode.ErrGone, "publish segment %s", h.Segment)
	case row != nil && (row.kind != h.Kind || !slices.Equal(row.births, h.Births)):
		return invalid("segment %s is known with another header", h.Segment)
	case row == nil:
		row = c.insert(e)
	}
	c.known[h.Segment] = true
	if h.Kind == datanode.KindObject {
		return nil
	}
	return c.fill(h.Segment, row, e.Slots)
}

// insert makes a new segment's row, and the disks it is born to hold it.
func (c *change) insert(e *datanode.SegmentEntry) *segmentRow {
	h := &e.Header
	row := &segmentRow{
		state: datanode.StateLive, kind: h.Kind, k: h.K, m: h.M,
		dataBytes: h.DataBytes, fragmentBytes: e.FragmentBytes, births: slices.Clone(h.Births),
	}
	set(c.batch, segmentKey(keySegment, h.Segment), row.encode())
	for _, b := range h.Births {
		set(c.batch, diskKey(b.Disk, h.Segment), nil)
	}
	c.counters.segments++
	if h.Kind == datanode.KindObject {
		c.counters.objectBytes += int64(h.DataBytes)
	}
	return row
}

// fill takes in the slots that a live segment's table lacks, each with its row.
// One whose row was lost gets it again.
func (c *change) fill(s id.Segment, row *segmentRow, slots []datanode.SlotEntry) error {
	if len(slots) == 0 {
		return nil
	}
	if err := checkSlots(s, slots, row.slotCount()); err != nil {
		return err
	}
	have, err := c.x.slots(s)
	if err != nil {
		return err
	}
	merged := have
	var known []int
	for i := range slots {
		e := &slots[i]
		switch h := slotEntry(have, e.Slot); {
		case h == nil:
			merged = append(merged, *e)
			row.sealedBytes += int64(e.Location.Len())
			row.plainBytes += int64(e.PlainBytes)
			c.counters.sealedBytes += int64(e.Location.Len())
			c.counters.plainBytes += int64(e.PlainBytes)
			c.counters.fingerprints++
			c.added = append(c.added, printedSlot(s, e))
		case h.Fingerprint == e.Fingerprint && h.Location == e.Location:
			known = append(known, i)
		default:
			c.x.log.Warn("slot is known with another content", "segment", s.String(), "slot", e.Slot,
				"has", h.Fingerprint.String(), "got", e.Fingerprint.String())
		}
	}
	if len(merged) > len(have) {
		slices.SortFunc(merged, func(a, b datanode.SlotEntry) int { return int(a.Slot) - int(b.Slot) })
		set(c.batch, segmentKey(keySlots, s), encodeSlots(merged))
		set(c.batch, segmentKey(keySegment, s), row.encode())
		set(c.batch, segmentKey(keyRecent, s), nil)
	}
	return c.mend(s, slots, known)
}

// mend adds the rows of those slots of a segment that should have one and do not.
func (c *change) mend(s id.Segment, slots []datanode.SlotEntry, which []int) error {
	if len(which) == 0 {
		return nil
	}
	rows, err := c.x.prints()
	if err != nil {
		return err
	}
	defer rows.close()
	for _, r := range inOrder(len(which), func(i int) *id.Fingerprint { return &slots[which[i]].Fingerprint }) {
		p, there := printedSlot(s, &slots[which[r.i]]), false
		err := rows.each(&p.print, func(r id.Ref) bool {
			there = r == p.ref
			return !there && r.Segment <= s
		})
		if err != nil {
			return err
		}
		if !there {
			c.added = append(c.added, p)
			set(c.batch, segmentKey(keyRecent, s), nil)
		}
	}
	return nil
}

// Adopt publishes segments that were found on spindles and are known by their
// headers only. Their births hold them, so that their owners' next passes decide.
// One that the index deleted gets a tombstone instead, so that the next Reclaim
// removes what came back of it. Known ones are left. It blocks for a sync.
func (x *Index) Adopt(ctx context.Context, entries []datanode.SegmentEntry) error {
	if err := x.store.Enter(); err != nil {
		return err
	}
	defer x.store.Leave()
	for part := range slices.Chunk(entries, datanode.SegmentsMax) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := x.adopt(part); err != nil {
			return err
		}
	}
	return x.store.Sync()
}

func (x *Index) adopt(entries []datanode.SegmentEntry) error {
	x.rows.Lock()
	defer x.rows.Unlock()
	c := x.change()
	for i := range entries {
		e := entries[i]
		e.Slots = nil
		s := e.Header.Segment
		err := checkEntry(&e)
		row, err1 := x.segment(s)
		gone, err2 := x.gone(s)
		if err := errors.Join(err, err1, err2); err != nil {
			c.drop()
			return err
		}
		if row != nil || c.known[s] {
			continue
		}
		c.known[s] = true
		row = c.insert(&e)
		if gone {
			row.state = datanode.StateDeleting
			set(c.batch, segmentKey(keySegment, s), row.encode())
			set(c.batch, segmentKey(keyTomb, s), nil)
		}
	}
	return c.commit()
}
