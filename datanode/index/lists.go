package index

import (
	"cmp"
	"context"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"plinth/datanode"
	"plinth/internal/id"
)

// segmentsPage bounds a page of ListSegments.
const segmentsPage = 4096

// ListSegments walks the segments of which the disk holds slots. Errors:
// ErrInvalid, ErrFenced.
func (x *Index) ListSegments(_ context.Context, r *datanode.ListSegmentsRequest) (*datanode.ListSegmentsReply, error) {
	if err := checkOwner(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	max, err := page(r.Max, segmentsPage, segmentsPage)
	if err != nil {
		return nil, err
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	if err := x.deps.CheckEpoch(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	_, upper := span(key64(keyDisk, uint64(r.Disk)))
	reply := &datanode.ListSegmentsReply{}
	after := append(diskKey(r.Disk, r.After), 0)
	err = x.scan(after, upper, func(key, _ []byte) (bool, error) {
		reply.More = len(reply.Segments) == max
		if !reply.More {
			reply.Segments = append(reply.Segments, id.Segment(lastNumber(key)))
		}
		return !reply.More, nil
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// SetLists replaces the disk's lists, and its births up to the request's epoch,
// of the named segments. A list of a segment that the index does not know is
// kept for when it does. It blocks for a sync. Errors: ErrInvalid, ErrFenced,
// ErrGone (a list has slots of a segment that is deleted, which its owner cannot
// have held; nothing is set).
func (x *Index) SetLists(_ context.Context, r *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	if err := checkOwner(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	if err := checkLists(r.Lists); err != nil {
		return nil, err
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	if err := x.deps.CheckEpoch(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	refused, err := x.setAll(r)
	if err != nil {
		return nil, err
	}
	if err := x.store.Sync(); err != nil {
		return nil, err
	}
	return &datanode.SetListsReply{Refused: refused}, nil
}

func (x *Index) setAll(r *datanode.SetListsRequest) ([]id.Segment, error) {
	x.rows.Lock()
	defer x.rows.Unlock()
	if err := x.makeRoom(); err != nil {
		return nil, err
	}
	c := x.change()
	rows := make([]*segmentRow, len(r.Lists))
	for i := range r.Lists {
		var err error
		if rows[i], err = c.named(&r.Lists[i]); err != nil {
			c.drop()
			return nil, err
		}
	}
	x.holds.Lock()
	defer x.holds.Unlock()
	refused, err := c.setLists(r.Disk, update{r.Epoch, r.Seq}, r.Lists, rows)
	if err != nil {
		c.drop()
		return nil, err
	}
	return refused, c.commit()
}

// setLists replaces lists, under holds, and returns the segments of those that
// are newer. The numbers of copies follow when all that is said is known.
func (c *change) setLists(d id.Disk, at update, lists []datanode.List, rows []*segmentRow) (refused []id.Segment, err error) {
	var changed []id.Segment
	for _, i := range c.order(lists) {
		switch outcome, err := c.setList(d, at, &lists[i], rows[i]); {
		case err != nil:
			return nil, err
		case outcome == listNewer:
			refused = append(refused, lists[i].Segment)
		case outcome == listSet:
			changed = append(changed, lists[i].Segment)
		}
	}
	for _, s := range changed {
		if err := c.count(d, s, at); err != nil {
			return nil, err
		}
	}
	return refused, nil
}

// order returns the indexes of lists: any, but what is moved comes before its
// copies, so that what a disk holds of those follows from all it says here.
func (c *change) order(lists []datanode.List) []int {
	order := make([]int, len(lists))
	for i := range order {
		order[i] = i
	}
	if len(c.x.transit) == 0 {
		return order
	}
	c.said = make(map[id.Segment]bool, len(lists))
	depth := make(map[id.Segment]int, len(lists))
	for i := range lists {
		c.said[lists[i].Segment] = true
		c.depth(lists[i].Segment, depth)
	}
	slices.SortStableFunc(order, func(i, j int) int {
		return cmp.Compare(depth[lists[i].Segment], depth[lists[j].Segment])
	})
	return order
}

// named returns the row of a list's segment, nil if it is unknown or deleted,
// and takes in the list's slots.
func (c *change) named(l *datanode.List) (*segmentRow, error) {
	row, err := c.segment(l.Segment)
	if err != nil {
		return nil, err
	}
	bits := trimBits(l.Bits)
	if row == nil || row.state == datanode.StateDeleting {
		gone, err := c.x.gone(l.Segment)
		if err == nil && (gone || row != nil) && len(bits) > 0 {
			err = datanode.Errorf(datanode.ErrGone, "set list of segment %s", l.Segment)
		}
		return nil, err
	}
	count := row.slotCount()
	if n := len(bits); n > 0 && (n > (count+7)/8 || n == (count+7)/8 && count%8 != 0 && bits[n-1]>>(count%8) != 0) {
		return nil, invalid("list of segment %s has a slot above its %d", l.Segment, count)
	}
	if row.kind == datanode.KindObject {
		return row, nil
	}
	return row, c.fill(l.Segment, row, l.Slots)
}

// What came of an update of a list.
type listOutcome int

const (
	listSet   listOutcome = iota
	listNewer             // the list is, and stays
	listEmpty             // it is, and was
)

// setList replaces one list, under holds. Of a segment that is unknown the row is
// nil.
func (c *change) setList(d id.Disk, at update, l *datanode.List, row *segmentRow) (listOutcome, error) {
	old, err := c.list(l.Segment, d)
	if err != nil {
		return 0, err
	}
	if old != nil && !old.last.less(at) {
		return listNewer, nil
	}
	bits, err := c.owed(d, l.Segment, slices.Clone(trimBits(l.Bits)))
	if err != nil {
		return 0, err
	}
	born := row != nil && row.bornTo(d, 0)
	if old == nil && !born && len(bits) == 0 {
		return listEmpty, nil
	}
	// An empty row stays where it is what replaces a birth.
	if len(bits) > 0 || born {
		c.putList(l.Segment, d, &listRow{last: at, set: at, bits: bits})
	} else {
		c.dropList(l.Segment, d)
	}
	if len(bits) > 0 || born && row.bornTo(d, at.epoch) {
		set(c.batch, diskKey(d, l.Segment), nil)
	} else {
		del(c.batch, diskKey(d, l.Segment))
		if err := c.released(d, l.Segment, row); err != nil {
			return 0, err
		}
	}
	if err := c.spread(d, l.Segment); err != nil {
		return 0, err
	}
	return listSet, c.settle(l.Segment)
}

// released notes that a disk holds nothing of a segment any more, and whether
// anybody does. The row is nil of one that is unknown.
func (c *change) released(d id.Disk, s id.Segment, row *segmentRow) error {
	if row == nil {
		return nil
	}
	held, err := c.x.held(s, row, d)
	if err == nil && !held {
		set(c.batch, segmentKey(keyFree, s), nil)
	}
	return err
}

// list returns a disk's list of a segment as the change makes it, nil if there
// is none.
func (c *change) list(s id.Segment, d id.Disk) (*listRow, error) {
	if row, ok := c.lists[holder{s, d}]; ok {
		return row, nil
	}
	return c.x.list(s, d)
}

// putList sets a list, which is not changed afterwards.
func (c *change) putList(s id.Segment, d id.Disk, row *listRow) {
	c.noteList(s, d, row)
	set(c.batch, listKey(s, d), row.encode())
}

func (c *change) dropList(s id.Segment, d id.Disk) {
	c.noteList(s, d, nil)
	del(c.batch, listKey(s, d))
}

func (c *change) noteList(s id.Segment, d id.Disk, row *listRow) {
	if c.lists == nil {
		c.lists = map[holder]*listRow{}
	}
	c.lists[holder{s, d}] = row
}

// heldBy returns the slots that a disk holds of a segment, as the change makes
// it.
func (c *change) heldBy(d id.Disk, s id.Segment) ([]byte, error) {
	row, err := c.segment(s)
	if err != nil || row == nil {
		return nil, err
	}
	l, err := c.list(s, d)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return row.birthBits(d, 0, nil), nil
	}
	return row.birthBits(d, l.set.epoch, slices.Clone(l.bits)), nil
}

// held reports whether any disk but one holds slots of a segment. It is called
// under holds, as what it says is true only there.
func (x *Index) held(s id.Segment, row *segmentRow, except id.Disk) (bool, error) {
	cleared := map[id.Disk]id.Epoch{}
	held := false
	err := x.lists(s, func(d id.Disk, l *listRow) bool {
		cleared[d] = l.set.epoch
		held = d != except && len(l.bits) > 0
		return !held
	})
	if err != nil || held {
		return held, err
	}
	return slices.ContainsFunc(row.births, func(b datanode.Birth) bool {
		return b.Disk != except && b.Epoch > cleared[b.Disk]
	}), nil
}

// lists calls f with the lists of a segment, by disk, until f returns false.
func (x *Index) lists(s id.Segment, f func(id.Disk, *listRow) bool) error {
	lower, upper := span(segmentKey(keyList, s))
	return x.scan(lower, upper, func(key, value []byte) (bool, error) {
		row, err := decodeList(value)
		if err != nil {
			return false, err
		}
		return f(id.Disk(lastNumber(key)), row), nil
	})
}

// forget removes all lists of a segment.
func (x *Index) forget(b *pebble.Batch, s id.Segment, row *segmentRow) error {
	for _, birth := range row.births {
		del(b, diskKey(birth.Disk, s))
	}
	return x.lists(s, func(d id.Disk, _ *listRow) bool {
		del(b, listKey(s, d))
		del(b, diskKey(d, s))
		return true
	})
}
