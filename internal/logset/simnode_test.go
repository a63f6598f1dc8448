package logset

import (
	"errors"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"time"
)

// simNode is a data node's log of one disk.
type simNode struct {
	w      *world
	number id.Node
	boot   Boot
	cut    time.Duration // nobody reaches it before
	epoch  id.Epoch
	turn   uint64
	log    [datanode.Streams]simStream
	disk   struct { // what a loss of power leaves
		epoch id.Epoch
		log   [datanode.Streams]simStream
	}
}

// simStream holds records from position first on.
type simStream struct {
	first id.Pos
	recs  []rec
}

func (s *simStream) end() id.Pos { return s.first + id.Pos(len(s.recs)) }

func newSimNode(w *world, number id.Node) *simNode {
	n := &simNode{w: w, number: number, boot: Boot{1}}
	for s := range n.log {
		n.log[s].first = 1
	}
	n.sync()
	return n
}

var (
	errFenced   = errors.New("fenced")
	errPosition = errors.New("position")
	errBoot     = errors.New("booted anew")
)

// has tells whether the log has a record with all before it. Records that were
// trimmed were not needed.
func (n *simNode) has(s datanode.Stream, pos id.Pos, r rec) bool {
	t := &n.log[s]
	return pos < t.first || pos < t.end() && t.recs[pos-t.first] == r
}

func (n *simNode) sync() {
	n.disk.epoch, n.disk.log = n.epoch, n.log
	for s := range n.log {
		n.disk.log[s].recs = slices.Clone(n.log[s].recs)
	}
}

// reboot loses some of what was not synced.
func (n *simNode) reboot() {
	n.w.reboots++
	n.boot[1]++
	if n.boot[1] == 0 {
		n.boot[2]++
	}
	n.epoch = n.disk.epoch
	for s := range n.log {
		old, now := n.disk.log[s], &n.log[s]
		// A log without the reset, or with some of what came after.
		if now.first == old.first && len(now.recs) > len(old.recs) && slices.Equal(now.recs[:len(old.recs)], old.recs) {
			now.recs = now.recs[:len(old.recs)+n.w.Rand.IntN(len(now.recs)-len(old.recs)+1)]
		} else {
			now.first, now.recs = old.first, slices.Clone(old.recs)
		}
	}
	n.sync()
}

func (n *simNode) allow(boot Boot, e id.Epoch) error {
	if boot != n.boot {
		return errBoot
	}
	if e < n.epoch && n.w.flaw != noFence {
		return errFenced
	}
	return nil
}

func (n *simNode) fence(e id.Epoch, again bool) (Boot, Ends, error) {
	if e < n.epoch || e == n.epoch && !again {
		return Boot{}, Ends{}, errFenced
	}
	n.epoch = e
	n.sync()
	n.turn++
	ends := Ends{Turn: n.turn}
	for s := range n.log {
		ends.First[s], ends.End[s] = n.log[s].first, n.log[s].end()
	}
	boot := n.boot
	if n.w.flaw == hiddenBoot {
		boot = Boot{1}
		for _, m := range n.w.row { // whatever is expected
			if m.Node == n.number {
				boot = m.Boot
			}
		}
	}
	return boot, ends, nil
}

// appendRecs adds records at a position, all or none.
func (n *simNode) appendRecs(s datanode.Stream, at id.Pos, recs []rec) error {
	t := &n.log[s]
	if at != t.end() {
		return errPosition
	}
	t.recs = append(slices.Clone(t.recs), recs...)
	return nil
}

func (n *simNode) trim(s datanode.Stream, through id.Pos) {
	t := &n.log[s]
	if through >= t.first && through < t.end() {
		t.recs = slices.Clone(t.recs[through+1-t.first:])
		t.first = through + 1
	}
}

// reset throws streams away and says where they go on: all of them, or those that end
// before.
func (n *simNode) reset(turn uint64, first [datanode.Streams]id.Pos) error {
	if turn != n.turn && n.w.flaw != lateReset {
		return errPosition
	}
	whole := !slices.Contains(first[:], 0)
	for s, at := range first {
		if at != 0 && !whole && at <= n.log[s].end() {
			return errPosition
		}
	}
	n.turn++ // a turn has one
	for s, at := range first {
		if at != 0 {
			n.log[s] = simStream{first: at}
		}
	}
	return nil
}
