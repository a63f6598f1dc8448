package stripe

import (
	"fmt"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
)

const blockBytes = datanode.BlockBytes

// state says what was found of a fragment.
type state uint8

const (
	unread      state = iota
	present           // there, its header is right; blocks count by their checksums
	missing           // the spindle works and does not have it
	unreachable       // the spindle does not work
	avoided           // the spindle is slow
	unreadable        // the spindle could not read it
	badHeader         // there, but no checksum could be tested
	badFields         // there under a valid header that is not this stripe's
)

func (s state) String() string {
	return [...]string{"was not read", "is present", "is missing", "is unreachable", "is slow", "is unreadable",
		"has a bad header", "has a header of other content"}[s]
}

// part is what was read of one fragment, beginning at the stripe's first block.
type part struct {
	state  state
	away   bool   // unreachable, because the spindle's node does not answer
	data   []byte // whole blocks; as read where untested
	bad    []bool // per block of data; nil for none
	bytes  uint32 // of the whole fragment, where the header is valid
	header datanode.SegmentHeader
}

// stripe is what was read of one segment, at least the same blocks of k
// fragments or all of all.
type stripe struct {
	g       Geometry
	segment id.Segment
	list    []id.Spindle
	first   int // block of the fragments at which parts begin
	blocks  int // that matter, from first on
	parts   []part
}

func newStripe(g Geometry, segment id.Segment, list []id.Spindle) *stripe {
	return &stripe{g: g, segment: segment, list: list, parts: make([]part, len(list))}
}

// take fills a part from the node's answer to a verified read.
func (st *stripe) take(index int, d *datanode.FragmentData) {
	p := &st.parts[index]
	if d.Err != nil && !d.BadHeader { // which is an error with data
		p.state, p.away = stateOf(d.Err)
		return
	}
	p.data = d.Data[:len(d.Data)/blockBytes*blockBytes]
	if d.BadHeader {
		p.state = badHeader
		return
	}
	p.state, p.bytes, p.header = present, d.Bytes, d.Header
	if h := &d.Header; h.Segment != st.segment || int(h.K) != st.g.K || int(h.M) != st.g.M {
		p.state = badFields
	}
	for _, b := range d.Bad {
		p.setBad(int(b) - st.first)
	}
}

func stateOf(err *datanode.Error) (s state, away bool) {
	switch err.Code {
	case datanode.CodeNotFound, datanode.CodeGone:
		return missing, false
	case datanode.CodeSpindle:
		return unreachable, false
	case datanode.CodeUnreachable:
		return unreachable, true
	}
	return unreadable, false
}

// setBad notes a bad block, counted from the stripe's first.
func (p *part) setBad(b int) {
	if p.bad == nil {
		p.bad = make([]bool, len(p.data)/blockBytes)
	}
	if b >= 0 && b < len(p.bad) {
		p.bad[b] = true
	}
}

// has reports whether block b was read, whatever its checksum says.
func (p *part) has(b int) bool { return (b+1)*blockBytes <= len(p.data) }

// good reports whether block b was read under a checksum that holds.
func (p *part) good(b int) bool {
	return p.state == present && p.has(b) && (p.bad == nil || !p.bad[b])
}

func (p *part) at(from, to int) []byte { return p.data[from*blockBytes : to*blockBytes] }

// count returns how many fragments are in one of the given states.
func (st *stripe) count(states ...state) int {
	n := 0
	for i := range st.parts {
		for _, s := range states {
			if st.parts[i].state == s {
				n++
			}
		}
	}
	return n
}

// failure says why the stripe does not yield what was asked for. More fragments
// missing than parity replaces, and none found, is a segment that was deleted.
// Otherwise it is ErrUnreachable if nodes that do not answer may hold what lacks,
// ErrSpindle if spindles that do not work may, and ErrCorrupt if not.
func (st *stripe) failure(what string, lacks bool) error {
	found := st.count(present, badHeader, badFields, unreadable)
	base, away := datanode.ErrCorrupt, 0
	for i := range st.parts {
		if st.parts[i].away {
			away++
		}
	}
	switch {
	case found == 0 && st.count(missing) > st.g.M:
		return datanode.Errorf(datanode.ErrNotFound, "%s", what)
	case lacks && away > 0 && st.count(present)+away >= st.g.K:
		base = datanode.ErrUnreachable
	case lacks && st.count(unreachable) > 0 && st.count(present, unreachable) >= st.g.K:
		base = datanode.ErrSpindle
	}
	var b strings.Builder
	for i := range st.parts {
		p := &st.parts[i]
		bad := 0
		for n := range p.bad {
			if p.bad[n] {
				bad++
			}
		}
		switch {
		case p.state != present && p.state != unread:
			fmt.Fprintf(&b, "; fragment %d on spindle %d %s", i, st.list[i], p.state)
		case bad > 0:
			fmt.Fprintf(&b, "; fragment %d on spindle %d has %d bad blocks", i, st.list[i], bad)
		}
	}
	return datanode.Errorf(base, "%s%s", what, b.String())
}
