package host

import (
	"fmt"
	"math/bits"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
	"plinth/internal/object"
)

// leaks names what the index keeps of a segment without need (Strict): slots that
// a disk holds and does not need, segments that nobody holds, and those whose
// chunks have moved, or were to.
func (v *verify) leaks(d *datanode.SegmentDescription, needs []disk.Need) {
	if !d.Known || d.Segment.Number() >= v.newer {
		return
	}
	where := "segment " + d.Segment.String()
	leak := func(format string, args ...any) {
		v.report.add(Finding{Kind: "leak", Where: where, What: fmt.Sprintf(format, args...)})
	}
	switch d.State {
	case datanode.StateCondemned:
		leak("is condemned, and no reclaim has emptied it")
	case datanode.StateForwarded:
		leak("its chunks have moved, and a disk has not followed them")
	case datanode.StateDeleting:
		leak("its deletion has not ended")
	}
	needed := make(map[id.Disk]map[id.Slot]bool)
	for i := range needs {
		of := needed[needs[i].Disk]
		if of == nil {
			of = make(map[id.Slot]bool)
			needed[needs[i].Disk] = of
		}
		of[needs[i].Entry.Ref.Slot] = true
	}
	for disk, segments := range v.kept {
		if segments[d.Segment] {
			needed[disk] = map[id.Slot]bool{0: true}
		}
	}
	held := 0
	for _, l := range d.Lists {
		stale, first := 0, id.Slot(0)
		for i, b := range l.Bits {
			held += bits.OnesCount8(b)
			for ; b != 0; b &= b - 1 {
				slot := id.Slot(i*8 + bits.TrailingZeros8(b))
				if needed[l.Disk][slot] {
					continue
				}
				if stale == 0 {
					first = slot
				}
				stale++
			}
		}
		if stale > 0 && v.speaks(l.Disk) {
			leak("disk %d holds %d slots that it does not need, first slot %d", l.Disk, stale, first)
		}
	}
	if held == 0 && d.State == datanode.StateLive {
		leak("nobody holds anything of it")
	}
}

// keep notes the segments that a disk holds for what its map may still read.
func (v *verify) keep(view *disk.View) error {
	kept := make(map[id.Segment]bool)
	for _, o := range view.Kept {
		segments, err := object.Segments(o)
		if err != nil {
			return err
		}
		for _, s := range segments {
			kept[s] = true
		}
	}
	v.kept[view.ID()] = kept
	return nil
}

// speaks reports whether what a disk needs is all that it may hold. One that does
// not open may need anything, and one that clones rely on holds for them. One that is
// not known may have been made by another host just now.
func (v *verify) speaks(d id.Disk) bool {
	v.h.mu.Lock()
	e := v.h.byID[d]
	v.h.mu.Unlock()
	return (e == nil && v.h.opts.Sole || e != nil && e.disk != nil && e.disk.Err() == nil) && v.h.dependents(d) == 0
}
