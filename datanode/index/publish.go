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
	known    map[id.Segment]bool     // segments made known by it
	added    map[id.Fingerprint]bool // fingerprints that had no row before it

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
		known: map[id.Segment]bool{}, added: map[id.Fingerprint]bool{},
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
	rows, err := c.x.prints()
	if err != nil {
		return err
	}
	defer rows.close()
	merged := have
	for _, r := range inOrder(len(slots), func(i int) *id.Fingerprint { return &slots[i].Fingerprint }) {
		e := &slots[r.i]
		at, found := slices.BinarySearchFunc(have, e.Slot, func(h datanode.SlotEntry, t id.Slot) int { return int(h.Slot) - int(t) })
		if found && (have[at].Fingerprint != e.Fingerprint || have[at].Location != e.Location) {
			c.x.log.Warn("slot is known with another content", "segment", s.String(), "slot", e.Slot,
				"has", have[at].Fingerprint.String(), "got", e.Fingerprint.String())
			continue
		}
		if !found {
			if len(merged) == len(have) {
				merged = slices.Clone(have)
			}
			merged = append(merged, *e)
			row.sealedBytes += int64(e.Location.Len())
			row.plainBytes += int64(e.PlainBytes)
			c.counters.sealedBytes += int64(e.Location.Len())
			c.counters.plainBytes += int64(e.PlainBytes)
		}
		if err := c.putPrint(rows, s, e); err != nil {
			return err
		}
	}
	if len(merged) > len(have) {
		slices.SortFunc(merged, func(a, b datanode.SlotEntry) int { return int(a.Slot) - int(b.Slot) })
		set(c.batch, segmentKey(keySlots, s), encodeSlots(merged))
		set(c.batch, segmentKey(keySegment, s), row.encode())
	}
	return nil
}

// putPrint writes the row of a slot unless there is one. rows was opened before
// the change put any.
func (c *change) putPrint(rows *prints, s id.Segment, e *datanode.SlotEntry) error {
	known, there := false, false
	err := rows.each(&e.Fingerprint, func(r id.Ref) bool {
		known = true
		there = r == id.Ref{Segment: s, Slot: e.Slot, Location: e.Location}
		return !there && r.Segment <= s
	})
	if err != nil || there {
		return err
	}
	if !known && !c.added[e.Fingerprint] {
		c.added[e.Fingerprint] = true
		c.counters.fingerprints++
	}
	set(c.batch, printKey(e.Fingerprint, s, e.Slot), encodePrint(e.Location))
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
