package logset

import (
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// simCopy makes a node's log equal to others', call by call.
type simCopy struct {
	o     *simOwner
	a     Action
	first [datanode.Streams]id.Pos // of the sources
	end   [datanode.Streams]id.Pos // of the node
	boot  Boot
	epoch id.Epoch
	// What the node has in a stream is something else; ends before the source begins.
	other, skip bool
}

func (o *simOwner) equalize(a Action) {
	c := &simCopy{o: o, a: a, end: a.Ends.End, boot: o.machine.node(a.Node).answer.boot, epoch: o.epoch}
	c.compare(0)
}

func (c *simCopy) done(err error) {
	if err == nil {
		c.o.w.joined++
	}
	c.o.step(Equalized{c.a.Call, c.a.Node, outcomeOf(err)})
}

// release ends the copy, and what it held.
func (c *simCopy) release(held bool, err error) {
	if held {
		c.o.holding--
	}
	c.done(err)
}

// from calls the source of a stream, to the node.
func (c *simCopy) from(s int, do func(*simNode) error, then func(error)) {
	source := c.o.machine.node(c.a.From[s])
	if source.answer == nil {
		then(errLate)
		return
	}
	boot := source.answer.boot
	c.o.call(c.a.From[s], func(n *simNode) error {
		if c.o.w.flaw == hiddenBoot {
			boot = n.boot
		}
		if err := n.allow(boot, c.epoch); err != nil {
			return err
		}
		return do(n)
	}, then)
}

func (c *simCopy) to(do func(*simNode) error, then func(error)) {
	c.o.call(c.a.Node, func(n *simNode) error {
		boot := c.boot
		if c.o.w.flaw == hiddenBoot {
			boot = n.boot
		}
		if err := n.allow(boot, c.epoch); err != nil {
			return err
		}
		return do(n)
	}, then)
}

// compare looks whether the node's streams are beginnings of the sources'.
func (c *simCopy) compare(s int) {
	if s == datanode.Streams {
		c.reset()
		return
	}
	end, first := c.a.Ends.End[s], c.a.Ends.First[s]
	if c.a.From[s] == c.a.Node {
		c.compare(s + 1)
		return
	}
	var told simStream
	c.from(s, func(n *simNode) error {
		told = n.log[s]
		return nil
	}, func(err error) {
		if err != nil {
			c.done(err)
			return
		}
		theirs := told // a copy of the call may come later and tell something else
		c.first[s] = theirs.first
		switch {
		case end < theirs.first:
			c.skip = true
		case end > theirs.end() || end == theirs.first && first < end && c.a.Reset:
			c.other = true
		case first < end && end > theirs.first:
			var mine rec
			c.to(func(n *simNode) error {
				if n.log[s].end() < end || n.log[s].first >= end {
					return errPosition
				}
				mine = n.log[s].recs[end-1-n.log[s].first]
				return nil
			}, func(err error) {
				if err != nil {
					c.done(err)
					return
				}
				c.other = c.other || mine != theirs.recs[end-1-theirs.first]
				c.compare(s + 1)
			})
			return
		}
		c.compare(s + 1)
	})
}

// reset throws away what the node has, if that is something else, or is not needed
// any more.
func (c *simCopy) reset() {
	first := c.first
	switch {
	case c.other && !c.a.Reset:
		c.done(errPosition)
		return
	case !c.other && !c.skip:
		c.copy(0, false)
		return
	case !c.other:
		for s := range first {
			if first[s] <= c.end[s] {
				first[s] = 0
			}
		}
	}
	if w := c.o.w; w.chance(2) { // a copy of it is held back by the network
		n, boot := w.nodes[c.a.Node], c.boot
		w.After(w.Span(0, 8*time.Second), func() {
			if n.allow(boot, c.epoch) == nil {
				_ = n.reset(c.a.Ends.Turn, first)
			}
		})
	}
	c.to(func(n *simNode) error { return n.reset(c.a.Ends.Turn, first) }, func(err error) {
		if err != nil {
			c.done(err)
			return
		}
		for s := range first {
			c.end[s] = max(first[s], c.end[s])
			if c.other {
				c.end[s] = first[s]
			}
		}
		c.copy(0, false)
	})
}

// copy brings the node to the sources' ends; held: nothing is under way.
func (c *simCopy) copy(s int, held bool) {
	o := c.o
	switch {
	case s == datanode.Streams && !held && o.w.flaw != equalInFlight:
		o.holding++
		next := func() { c.copy(0, true) }
		if o.flight == 0 {
			next()
		} else {
			o.held = append(o.held, next)
		}
		return
	case s == datanode.Streams:
		c.to(func(n *simNode) error {
			if o.w.flaw != unsyncedCopy {
				n.sync()
			}
			return nil
		}, func(err error) {
			c.release(held, err)
		})
		return
	case c.a.From[s] == c.a.Node:
		c.copy(s+1, held)
		return
	}
	fail := func(err error) { c.release(held, err) }
	var told []rec
	at := c.end[s]
	c.from(s, func(n *simNode) error {
		t := &n.log[s]
		if at < t.first || at > t.end() {
			return errPosition
		}
		told = slices.Clone(t.recs[at-t.first:])
		return nil
	}, func(err error) {
		if err != nil {
			fail(err)
			return
		}
		more := told
		if o.w.flaw == shortCopy && len(more) > 0 {
			more = more[:len(more)-1]
		}
		if more = more[:min(len(more), 5)]; len(more) == 0 {
			c.copy(s+1, held)
			return
		}
		c.to(func(n *simNode) error { return n.appendRecs(datanode.Stream(s), at, more) }, func(err error) {
			if err != nil {
				fail(err)
				return
			}
			c.end[s] = at + id.Pos(len(more))
			c.copy(s, held)
		})
	})
}
