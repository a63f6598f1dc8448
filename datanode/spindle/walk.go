package spindle

import (
	"plinth/datanode"
	"plinth/internal/id"
)

// Place is where a fragment lies.
type Place struct {
	Spindle id.Spindle
	Index   uint8
}

// SegmentOnSpindles is a segment as its fragments describe it.
type SegmentOnSpindles struct {
	Segment id.Segment
	// Header is what the first fragment with a sound header says; if there is
	// none, only Header.Segment is set, and Damaged.
	Header  datanode.SegmentHeader
	Damaged bool
	// FragmentBytes is the length of each fragment's data.
	FragmentBytes uint32
	// Present lists the fragments on spindles that serve, by spindle. An index
	// may be there twice, if a spindle came back after it was replaced.
	Present []Place
}

// walkPage is how many rows of a spindle a walk holds at a time.
const walkPage = 1024

// cursor is a walk's place in one spindle's catalog.
type cursor struct {
	sp   *spindle
	rows []datanode.FragmentInfo // the next ones
	next name                    // behind rows
	end  bool                    // nothing is behind rows
}

// fill makes rows hold whole segments, at least one unless the end is reached.
func (c *cursor) fill() {
	for !c.end && (len(c.rows) == 0 || c.rows[0].Segment == c.rows[len(c.rows)-1].Segment) {
		page, err := c.sp.list(c.next, walkPage)
		if err != nil || len(page) == 0 {
			c.end = true // a spindle out of service has no more fragments
			return
		}
		c.rows = append(c.rows, page...)
		last := page[len(page)-1]
		var more bool
		c.next, more = name{last.Segment, last.Index}.next()
		c.end = !more
	}
}

// Segments calls fn for each segment that has a fragment on a spindle that
// serves, in order, and reads one header of each. Segments written or deleted
// meanwhile may be missing or there. Fn may call the set, and its error ends the
// walk and is returned.
func (s *Set) Segments(fn func(SegmentOnSpindles) error) error {
	var cursors []*cursor
	for _, sp := range s.all() {
		cursors = append(cursors, &cursor{sp: sp})
	}
	for {
		next, found, err := s.nextSegment(cursors)
		if err != nil || !found {
			return err
		}
		if err := fn(next); err != nil {
			return err
		}
	}
}

func (s *Set) nextSegment(cursors []*cursor) (out SegmentOnSpindles, found bool, err error) {
	if err := s.enter(); err != nil {
		return out, false, err
	}
	defer s.life.RUnlock()
	for _, c := range cursors {
		c.fill()
		if len(c.rows) > 0 && (!found || c.rows[0].Segment < out.Segment) {
			out.Segment, found = c.rows[0].Segment, true
		}
	}
	if !found {
		return out, false, nil
	}
	out.Header.Segment, out.Damaged = out.Segment, true
	for _, c := range cursors {
		for len(c.rows) > 0 && c.rows[0].Segment == out.Segment {
			row := c.rows[0]
			c.rows = c.rows[1:]
			out.Present = append(out.Present, Place{c.sp.number, row.Index})
			if !out.Damaged {
				continue
			}
			out.FragmentBytes = row.Bytes
			if h := c.sp.describe(name{row.Segment, row.Index}); h != nil {
				out.Header, out.FragmentBytes, out.Damaged = h.SegmentHeader, h.bytes, false
			}
		}
	}
	return out, true, nil
}

// describe returns a fragment's header, or nil if it is gone or damaged.
func (sp *spindle) describe(n name) *header {
	f, failed := sp.pin(n)
	if failed != nil {
		return nil
	}
	defer sp.unpin(f)
	h, err := sp.header(f)
	if err != nil {
		sp.log.Warn("fragment has no sound header", "segment", n.segment, "index", n.index, "cause", err)
		return nil
	}
	return h
}
