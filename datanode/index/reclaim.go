package index

import (
	"context"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// reclaimPage is how many segments one Reclaim deletes unless told, and
	// reclaimMax at most.
	reclaimPage = 256
	reclaimMax  = 4096
	// reclaimScan bounds the candidates looked at under the locks of one call:
	// those that are held again are struck off and looked at no more.
	reclaimScan = 4096
)

// Reclaim deletes segments on which nothing is held, those with a tombstone of
// an earlier call first. A segment whose fragments cannot be deleted keeps its
// tombstone for the next call; the call fails for it only if it deletes none. It
// blocks for syncs and for the spindles. Errors: ErrInvalid, those of
// Deps.Delete and of the context.
func (x *Index) Reclaim(ctx context.Context, r *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	max, err := page(r.Max, reclaimPage, reclaimMax)
	if err != nil {
		return nil, err
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	if !x.super.Load().complete {
		return &datanode.ReclaimReply{}, nil
	}
	x.reclaim.Lock()
	defer x.reclaim.Unlock()
	doomed, err := x.marked(keyTomb, max)
	if err != nil {
		return nil, err
	}
	if len(doomed) < max {
		more, err := x.doom(max - len(doomed))
		if err != nil {
			return nil, err
		}
		doomed = append(doomed, more...)
	}
	reply := &datanode.ReclaimReply{}
	var failed error
	for _, s := range doomed {
		if err := x.deleteSegment(ctx, s); err != nil {
			x.log.Warn("cannot delete segment", "segment", s.String(), "error", err)
			failed = err
			if ctx.Err() != nil {
				break
			}
			continue
		}
		reply.Deleted = append(reply.Deleted, s)
	}
	if len(reply.Deleted) == 0 && failed != nil {
		return nil, failed
	}
	if len(reply.Deleted) > 0 {
		if err := x.store.Sync(); err != nil {
			return nil, err
		}
	}
	// What failed is left to a later call, not to one at once.
	free, err := x.marked(keyFree, 1)
	if err != nil {
		return nil, err
	}
	tombs, err := x.marked(keyTomb, 1)
	if err != nil {
		return nil, err
	}
	reply.More = len(free) > 0 || len(tombs) > 0 && failed == nil
	return reply, nil
}

// marked returns up to max segments that have a row of that kind.
func (x *Index) marked(kind byte, max int) ([]id.Segment, error) {
	var out []id.Segment
	lower, upper := span([]byte{kind})
	err := x.scan(lower, upper, func(key, _ []byte) (bool, error) {
		out = append(out, id.Segment(lastNumber(key)))
		return len(out) < max, nil
	})
	return out, err
}

// doom gives up to max candidates on which still nothing is held a stable
// tombstone, and strikes the others off.
func (x *Index) doom(max int) ([]id.Segment, error) {
	free, err := x.marked(keyFree, reclaimScan)
	if err != nil || len(free) == 0 {
		return nil, err
	}
	doomed, err := x.entomb(free, max)
	if err != nil || len(doomed) == 0 {
		return nil, err
	}
	return doomed, x.store.Sync()
}

func (x *Index) entomb(free []id.Segment, max int) ([]id.Segment, error) {
	x.rows.Lock()
	defer x.rows.Unlock()
	c := x.change()
	x.holds.Lock()
	defer x.holds.Unlock()
	var doomed []id.Segment
	for _, s := range free {
		if len(doomed) == max {
			break
		}
		del(c.batch, segmentKey(keyFree, s))
		dead, err := c.bury(s)
		if err != nil {
			c.drop()
			return nil, err
		}
		if dead {
			doomed = append(doomed, s)
		}
	}
	return doomed, c.commit()
}

// bury gives a segment on which nothing is held a tombstone, whatever its state.
func (c *change) bury(s id.Segment) (dead bool, err error) {
	row, err := c.segment(s)
	if err != nil || row == nil || row.state == datanode.StateDeleting {
		return false, err
	}
	if held, err := c.x.held(s, row, 0); err != nil || held {
		return false, err
	}
	if err := c.leave(s); err != nil {
		return false, err
	}
	row.state = datanode.StateDeleting
	set(c.batch, segmentKey(keySegment, s), row.encode())
	set(c.batch, segmentKey(keyTomb, s), nil)
	return true, nil
}

// deleteSegment removes the fragments and then the rows of a segment whose
// tombstone is stable.
func (x *Index) deleteSegment(ctx context.Context, s id.Segment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := x.deps.Delete(ctx, s); err != nil {
		return err
	}
	x.rows.Lock()
	defer x.rows.Unlock()
	c := x.change()
	if err := c.remove(s); err != nil {
		c.drop()
		return err
	}
	x.holds.Lock()
	defer x.holds.Unlock()
	return c.commit()
}

// remove takes all rows of a segment away and notes it as deleted. Nobody else
// changes its lists, as it has a tombstone.
func (c *change) remove(s id.Segment) error {
	x := c.x
	row, err := x.segment(s)
	if err != nil {
		return err
	}
	if row == nil {
		return corrupt("tombstone of an unknown segment")
	}
	slots, err := x.slots(s)
	if err != nil {
		return err
	}
	c.removePrints(s, slots)
	if err := x.forget(c.batch, s, row); err != nil {
		return err
	}
	if err := c.noteGone(s); err != nil {
		return err
	}
	for _, kind := range []byte{keySegment, keySlots, keyRecent, keyTomb, keyFree} {
		del(c.batch, segmentKey(kind, s))
	}
	c.counters.segments--
	c.counters.sealedBytes -= row.sealedBytes
	c.counters.plainBytes -= row.plainBytes
	if row.kind == datanode.KindObject {
		c.counters.objectBytes -= int64(row.dataBytes)
	}
	return nil
}

// removePrints takes the rows of a segment's slots away, in memory and in tables.
func (c *change) removePrints(s id.Segment, slots []datanode.SlotEntry) {
	for _, r := range inOrder(len(slots), func(i int) *id.Fingerprint { return &slots[i].Fingerprint }) {
		e := &slots[r.i]
		del(c.batch, printKey(e.Fingerprint, s, e.Slot))
		c.removed = append(c.removed, printedSlot(s, e))
	}
	c.counters.fingerprints -= int64(len(slots))
}

func (c *change) noteGone(s id.Segment) error {
	row := make([]byte, 1+goneRow/8)
	row[0] = rowVersion
	_, err := c.x.store.View(goneKey(s), func(v []byte) error {
		if len(v) != len(row) || v[0] != rowVersion {
			return corrupt("row of deleted segments")
		}
		row = slices.Clone(v)
		return nil
	})
	n := s.Number() % goneRow
	row[1+n>>3] |= 1 << (n & 7)
	set(c.batch, goneKey(s), row)
	return err
}
