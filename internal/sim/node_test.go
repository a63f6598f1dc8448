package sim

import (
	"errors"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
)

var (
	errLate     = errors.New("no answer")
	errFenced   = errors.New("fenced")
	errPosition = errors.New("position")
	errBoot     = errors.New("booted anew")
	errOver     = errors.New("the owner can do no more")
	errConflict = errors.New("a compare did not hold")
	errLease    = errors.New("the lease has ended")
	errGone     = errors.New("the segment is deleted")
	errMissing  = errors.New("not there")
)

// rec is a record of a log. Its address stands for its MAC: for what it says and for
// all before it.
type rec struct {
	before *rec
	pos    id.Pos
	epoch  id.Epoch

	// Of an operation: content fp and value tag of blocks, or a mark.
	first, n int
	tag, fp  uint32
	mark     id.Snapshot

	// Of a result: how far it covers the operations, and what became of blocks.
	through id.Pos
	updates []update
	patches []patch
}

type update struct {
	block int
	entry entry
}

// patch says where a chunk has moved.
type patch struct {
	block    int
	from, to entry
}

// node is a data node: its logs.
type node struct {
	place
	w      *world
	number id.Node
	boot   logset.Boot
	logs   [disksMax + 1]nodeLog
	lies   bool // some of its syncs do nothing, and say that they did
}

type nodeLog struct {
	epoch  id.Epoch
	fenced id.Epoch // as told by the world, whatever the node makes of it
	turn   uint64
	s      [datanode.Streams]stream
}

// stream holds records from position first on. Those before stable were synced, those
// before sure survive power: the same, unless the node lies.
type stream struct {
	first  id.Pos
	recs   []*rec
	stable id.Pos
	sure   id.Pos
}

func newStream(first id.Pos) stream { return stream{first: first, stable: first, sure: first} }

func (s *stream) end() id.Pos { return s.first + id.Pos(len(s.recs)) }

func (s *stream) has(r *rec) bool {
	return r.pos < s.first || r.pos < s.end() && s.recs[r.pos-s.first] == r
}

func newNode(w *world, number id.Node) *node {
	n := &node{w: w, number: number, boot: logset.Boot{1}, place: place{number: int(number) + 1}}
	n.empty()
	return n
}

func (n *node) empty() {
	for d := range n.logs {
		n.logs[d] = nodeLog{}
		for s := range n.logs[d].s {
			n.logs[d].s[s] = newStream(1)
		}
	}
}

// power is lost: with it some of what was not synced, and the machine boots. If syncs have
// lied, records that say so may be left: then the node does not serve, and is made anew,
// without a log. Or nothing says so, as all that came after is gone too.
func (n *node) power() {
	before := n.boot
	n.boot[1]++
	if n.boot[1] == 0 {
		n.boot[2]++
	}
	n.down = max(n.down, n.w.Now+n.w.Span(0, n.w.Span(1, 2e9)))
	lied := false
	for d := range n.logs {
		for i := range n.logs[d].s {
			s := &n.logs[d].s[i]
			keep := int(s.sure - s.first)
			s.recs = s.recs[:keep+n.w.Rand.IntN(len(s.recs)-keep+1)]
			lied = lied || s.end() < s.stable
			s.stable, s.sure = s.end(), s.end()
		}
	}
	if lied {
		n.w.count.Lies++
	}
	if lied && (n.w.flaw == anewUnsaid || n.w.Rand.IntN(2) == 0) {
		n.empty()
		if n.w.flaw == anewUnsaid {
			n.boot = before
		}
		n.down = max(n.down, n.w.Now+n.w.Span(time.Second, 10*time.Second))
	}
	if n.w.index.at == &n.place {
		n.w.index.power()
	}
}

func (n *node) allow(d id.Disk, boot logset.Boot, e id.Epoch) error {
	if boot != n.boot {
		return errBoot
	}
	if e < n.logs[d].epoch && n.w.flaw != epochUnchecked {
		return errFenced
	}
	return nil
}

// joined is what a node says when it is fenced.
type joined struct {
	boot logset.Boot
	ends logset.Ends
}

func (n *node) fence(d id.Disk, e id.Epoch) (joined, error) {
	l := &n.logs[d]
	if e < l.epoch {
		return joined{}, errFenced
	}
	if n.w.flaw != servedUnfenced {
		l.epoch = e
	}
	l.fenced = max(l.fenced, e)
	n.stable(d)
	l.turn++
	j := joined{n.boot, logset.Ends{Turn: l.turn}}
	for s := range l.s {
		j.ends.First[s], j.ends.End[s] = l.s[s].first, l.s[s].end()
	}
	return j, nil
}

func (n *node) stable(d id.Disk) {
	lies := n.lies && n.w.chance(2)
	for i := range n.logs[d].s {
		s := &n.logs[d].s[i]
		s.stable = s.end()
		if !lies {
			s.sure = s.end()
		}
	}
}

func (n *node) sync(d id.Disk, boot logset.Boot, e id.Epoch) error {
	err := n.allow(d, boot, e)
	if err == nil && n.w.flaw != syncForgotten {
		n.stable(d)
	}
	return err
}

// add appends records, all or none.
func (n *node) add(d id.Disk, boot logset.Boot, e id.Epoch, s datanode.Stream, recs []*rec) error {
	if err := n.allow(d, boot, e); err != nil {
		return err
	}
	l := &n.logs[d]
	if recs[0].pos != l.s[s].end() {
		return errPosition
	}
	if e < l.fenced {
		n.w.fail("node %d takes record %d of disk %d under epoch %d, it was fenced with %d", n.number, recs[0].pos, d, e, l.fenced)
	}
	l.s[s].recs = append(l.s[s].recs, recs...)
	return nil
}

func (n *node) trim(d id.Disk, boot logset.Boot, e id.Epoch, s datanode.Stream, through id.Pos) error {
	if err := n.allow(d, boot, e); err != nil {
		return err
	}
	t := &n.logs[d].s[s]
	if through >= t.first && through < t.end() {
		t.recs = t.recs[through+1-t.first:]
		t.first = through + 1
		t.stable, t.sure = max(t.stable, t.first), max(t.sure, t.first)
	}
	return nil
}

// reset throws streams away and says where they go on.
func (n *node) reset(d id.Disk, boot logset.Boot, e id.Epoch, turn uint64, first [datanode.Streams]id.Pos) error {
	if err := n.allow(d, boot, e); err != nil {
		return err
	}
	l := &n.logs[d]
	if turn != l.turn {
		return errPosition
	}
	whole := !slices.Contains(first[:], 0)
	for s, at := range first {
		if at != 0 && !whole && at <= l.s[s].end() {
			return errPosition
		}
	}
	l.turn++
	for s, at := range first {
		if at != 0 {
			l.s[s] = newStream(at)
		}
	}
	n.w.count.Resets++
	return nil
}

// read returns a copy of a stream.
func (n *node) read(d id.Disk, boot logset.Boot, e id.Epoch, s datanode.Stream) (stream, error) {
	if err := n.allow(d, boot, e); err != nil {
		return stream{}, err
	}
	t := n.logs[d].s[s]
	t.recs = slices.Clone(t.recs)
	return t, nil
}
