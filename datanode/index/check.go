package index

import (
	"errors"

	"plinth/datanode"
	"plinth/internal/id"
)

func invalid(format string, args ...any) error {
	return datanode.Errorf(datanode.ErrInvalid, format, args...)
}

func checkOwner(d id.Disk, e id.Epoch) error {
	if d == 0 || e == 0 {
		return invalid("disk %d under epoch %d", d, e)
	}
	return nil
}

// page returns the size of a page: max, the default for 0, the largest above.
func page(max, def, largest int) (int, error) {
	if max < 0 {
		return 0, invalid("a page of %d", max)
	}
	if max == 0 {
		max = def
	}
	return min(max, largest), nil
}

var errBirths = errors.New("births are not 1 to 64 runs of slots")

// checkBirths tells whether births are what a segment can have.
func checkBirths(births []datanode.Birth) error {
	if len(births) < 1 || len(births) > datanode.BirthsMax || slotCount(births) > id.SlotsMax {
		return errBirths
	}
	for _, b := range births {
		if b.Disk == 0 || b.Epoch == 0 || b.Slots == 0 {
			return errBirths
		}
	}
	return nil
}

func checkEntry(e *datanode.SegmentEntry) error {
	h := &e.Header
	if h.Segment == 0 || h.Kind != datanode.KindChunks && h.Kind != datanode.KindObject {
		return invalid("segment %s of kind %d", h.Segment, h.Kind)
	}
	if h.K == 0 || int(h.K)+int(h.M) > datanode.WidthMax || h.DataBytes > id.SegmentBytesMax ||
		e.FragmentBytes > datanode.FragmentBytesMax {
		return invalid("segment %s: %d+%d fragments of %d bytes for %d", h.Segment, h.K, h.M, e.FragmentBytes, h.DataBytes)
	}
	if err := checkBirths(h.Births); err != nil {
		return invalid("segment %s: %v", h.Segment, err)
	}
	if h.Kind == datanode.KindObject {
		return nil // its slot has no fingerprint, and what is said of it is not kept
	}
	return checkSlots(h.Segment, e.Slots, slotCount(h.Births))
}

// checkSlots tells whether slots ascend, lie below count and have content.
func checkSlots(s id.Segment, slots []datanode.SlotEntry, count int) error {
	for i := range slots {
		e := &slots[i]
		switch {
		case int(e.Slot) >= count:
			return invalid("segment %s: slot %d of %d", s, e.Slot, count)
		case i > 0 && e.Slot <= slots[i-1].Slot:
			return invalid("segment %s: slot %d after %d", s, e.Slot, slots[i-1].Slot)
		case e.Fingerprint == id.Fingerprint{} || e.Location.Len() == 0:
			return invalid("segment %s: slot %d has no fingerprint or no length", s, e.Slot)
		}
	}
	return nil
}

func checkLists(lists []datanode.List) error {
	if len(lists) > datanode.SegmentsMax {
		return invalid("%d lists", len(lists))
	}
	seen := make(map[id.Segment]bool, len(lists))
	for i := range lists {
		l := &lists[i]
		if l.Segment == 0 || seen[l.Segment] || len(l.Bits) > bitsBytesMax {
			return invalid("list of segment %s, named twice or of %d bytes", l.Segment, len(l.Bits))
		}
		seen[l.Segment] = true
		if err := checkSlots(l.Segment, l.Slots, id.SlotsMax); err != nil {
			return err
		}
	}
	return nil
}
