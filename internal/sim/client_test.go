package sim

import (
	"time"

	"plinth/internal/id"
	"plinth/internal/owner"
)

const clientCount = 6

// client does one operation after the other, where the disk seems to be.
type client struct {
	w      *world
	number int
	at     *host
	asked  time.Duration // for a disk to be there
	turns  uint64
	waits  func() // called if the host is no more; nil: nothing is under way
}

// op is an operation of a client.
type op struct {
	d          id.Disk
	first, n   int
	tag        uint32
	begun, end uint64 // stamps; end 0: it has not ended well
}

// turn is one operation, and then the next.
func (c *client) turn() {
	w := c.w
	if w.rest {
		return
	}
	next := func(most time.Duration) { w.After(w.Span(0, most*w.slower()), c.turn) }
	d := w.someDisk()
	if d == 0 {
		next(time.Second)
		return
	}
	k := c.at.disks[d]
	if w.Now < c.at.paused || k == nil || !k.mayReply() || k.draining {
		if c.look(d); c.at.disks[d] != nil && w.Rand.IntN(4) == 0 {
			c.at = w.hosts[w.Rand.IntN(hostCount)] // who was cut off is asked too
		}
		next(60 * time.Millisecond)
		return
	}
	w.count.Ops++
	c.turns++
	turn := c.turns
	done := func(ok bool) {
		if c.turns != turn {
			return
		}
		c.turns++
		if c.waits = nil; !ok {
			c.look(d)
		}
		next(40 * time.Millisecond)
	}
	c.waits = func() { done(false) }
	x := w.Rand.IntN(100)
	w.Mark(uint64(d)<<8 | uint64(x))
	switch {
	case x < 40:
		c.read(k, done)
	case x < 78:
		c.write(k, w.Rand.IntN(6) == 0, false, done)
	case x < 84:
		c.write(k, w.Rand.IntN(3) == 0, true, done)
	case x < 90:
		k.log.begin(&logOp{sync: true, then: func(err error) { done(err == nil) }})
	case x < 92:
		c.readSnapshot(k, done)
	case x < 95 && len(w.reg.snaps) < 8:
		w.snaps++
		s := w.snaps
		c.at.spawn(k, func(t *task) { _ = k.snapshot(t, s) })
		done(true)
	case x < 97:
		w.dropSnapshot(c.at, d)
		done(true)
	case x < 98:
		c.at.spawn(k, func(t *task) {
			if s := w.someSnapshot(d); s != 0 && w.live() < disksLive {
				_ = k.clone(t, s)
			}
		})
		done(true)
	case x < 99 && w.live() > diskFirst:
		h := c.at
		h.spawn(nil, func(t *task) { _ = h.remove(t, k) })
		done(true)
	default:
		w.hosts[w.Rand.IntN(hostCount)].want(d)
		done(true)
	}
}

// slower is how much longer clients wait where operations are ahead of faults.
func (w *world) slower() time.Duration {
	if w.count.Ops*faultsWanted > (w.count.Faults+1)*opsWanted {
		return 5
	}
	return 1
}

// look goes to where the disk is, or has somebody take it.
func (c *client) look(d id.Disk) {
	w := c.w
	if w.rest {
		return
	}
	c.at = w.hosts[w.Rand.IntN(hostCount)]
	for _, h := range w.hosts {
		if k := h.disks[d]; k != nil && k.serves {
			c.at = h
			return
		}
	}
	if w.Now > c.asked && w.Now >= c.at.paused {
		c.asked = w.Now + w.Span(0, leaseTTL)
		c.at.step(owner.Adopt{Disk: d})
	}
}

func (w *world) someDisk() id.Disk {
	n := w.Rand.IntN(max(w.live(), 1))
	for d := range w.reg.disks {
		if w.reg.disks[d].there && !w.reg.disks[d].removed {
			if n--; n < 0 {
				return id.Disk(d)
			}
		}
	}
	return 0
}

func (w *world) live() (n int) {
	for d := range w.reg.disks {
		if w.reg.disks[d].there && !w.reg.disks[d].removed {
			n++
		}
	}
	return n
}

// someSnapshot returns a snapshot of a disk, 0 if there is none.
func (w *world) someSnapshot(d id.Disk) id.Snapshot {
	var all []id.Snapshot
	for s := id.Snapshot(1); s <= w.snaps; s++ {
		if w.reg.snaps[s] == d {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return 0
	}
	return all[w.Rand.IntN(len(all))]
}

func (w *world) dropSnapshot(h *host, d id.Disk) {
	if s := w.someSnapshot(d); s != 0 {
		send(h, w.reg.at, true, func() (struct{}, error) { return struct{}{}, w.reg.drop(s) }, func(struct{}, error) {})
	}
}

// reply has an answer leave, if it may: after a while in which the host may stand still.
func (c *client) reply(k *disk, done func(bool), told func()) {
	k.h.later(c.w.Span(0, time.Millisecond), func() {
		if !k.mayReply() {
			done(false)
			return
		}
		c.w.replies(k)
		told()
		done(true)
	})
}

func (c *client) read(k *disk, done func(bool)) {
	w := c.w
	b, begun := w.Rand.IntN(blocks), w.stamp()
	tag := k.read(b).tag
	c.reply(k, done, func() {
		w.Mark(uint64(tag))
		w.truth[k.d].read(k.epoch, b, access{tag, begun, w.stamp()})
	})
}

// readSnapshot reads all of a snapshot that is in the map.
func (c *client) readSnapshot(k *disk, done func(bool)) {
	w := c.w
	s := w.someSnapshot(k.d)
	at := k.m.snap(s)
	if at == nil {
		done(true)
		return
	}
	w.sameSnapshot(k.d, s, at)
	done(true)
}

// write writes a block of some content, or zeros over some.
func (c *client) write(k *disk, fua, zero bool, done func(bool)) {
	w := c.w
	w.tags++
	o := &op{d: k.d, first: w.Rand.IntN(blocks), n: 1, tag: w.tags, begun: w.stamp()}
	w.ops[o.tag] = o
	r := &rec{first: o.first, n: 1, tag: o.tag, fp: 1 + uint32(w.Rand.IntN(contents))}
	if zero {
		o.n = 1 + w.Rand.IntN(blocks-o.first)
		r.n, r.fp = o.n, 0
	}
	told := func() {
		c.reply(k, done, func() {
			o.end = w.stamp()
			for b := o.first; b < o.first+o.n; b++ {
				w.truth[k.d].read(k.epoch, b, access{o.tag, o.begun, o.end})
			}
		})
	}
	finish := func(err error) {
		if err != nil {
			done(false)
			return
		}
		told()
	}
	k.log.append(0, []*rec{r}, func(err error) {
		if err != nil || !fua {
			finish(err)
			return
		}
		k.log.begin(&logOp{sync: true, then: finish})
	})
}
