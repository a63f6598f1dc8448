package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/reclaim"
)

// usage reads how much of each segment is held, and notes what follows from it.
func (h *Host) usage(ctx context.Context) ([]datanode.SegmentUse, error) {
	began := time.Now()
	var all []datanode.SegmentUse
	for after := id.Segment(0); ; {
		reply, err := h.node.Usage(ctx, &datanode.UsageRequest{After: after})
		if err != nil {
			return nil, fmt.Errorf("read the use of segments: %w", err)
		}
		all = append(all, reply.Segments...)
		if !reply.More || len(reply.Segments) == 0 {
			break
		}
		after = all[len(all)-1].Segment
	}
	c := &h.cleaner
	c.unfinished, c.waiting = false, make(map[id.Disk]bool)
	poor, spare := h.poor(), int64(0)
	c.objects = [2]int64{0, c.objects[0]}
	for i := range all {
		u := &all[i]
		if u.Kind == datanode.KindObject && u.LiveSlots > 0 {
			c.objects[0] += u.StoredBytes
		}
		if u.LiveSlots > 0 && h.pool.Stripes.Poor(u.Segment) && !h.pool.Stripes.Leaves(u.Segment) {
			spare++
		}
		switch u.State {
		case datanode.StateLive:
			_, bad := c.damaged[u.Segment]
			c.unfinished = c.unfinished || poor != nil && !bad && u.Kind == datanode.KindChunks && u.LiveSlots > 0 && poor(u.Segment)
		case datanode.StateCondemned:
			_, bad := c.damaged[u.Segment]
			c.unfinished = c.unfinished || !bad
		case datanode.StateForwarded:
			c.unfinished = true
			for _, d := range u.Disks {
				c.waiting[d.Disk] = true
			}
		}
	}
	c.noteSince()
	c.spare.Store(spare)
	c.lookNext.Store(nextLook(began))
	c.lookedAt.Store(began.UnixNano())
	h.account(all)
	return all, h.keep(ctx)
}

// poor tells which segments lie so that a node's loss is a loss, and could lie better now;
// nil: none can. What leaves a node its disks move.
func (h *Host) poor() func(id.Segment) bool {
	if !h.pool.Stripes.Usual() {
		return nil
	}
	return func(s id.Segment) bool { return h.pool.Stripes.Poor(s) && !h.pool.Stripes.Leaves(s) }
}

// mustLook reports whether the segments are to be looked at: at the start, again and again
// for a while after a data node has come back, as what was written without it, by any host,
// is to lie better, and from then on until all does.
func (h *Host) mustLook() bool {
	looked := h.cleaner.lookedAt.Load()
	if looked == 0 {
		return true
	}
	several, ok := h.node.(datanode.Several)
	if !ok || !h.anySpare() {
		return false
	}
	back := several.Returned()
	if back.Before(h.began) { // one may have come back just before
		back = h.began
	}
	after := time.Unix(0, looked).Sub(back)
	return after < 0 || after < returnedTime && time.Since(back) > 2*after ||
		h.cleaner.spare.Load() > 0 && time.Now().UnixNano() >= h.cleaner.lookNext.Load()
}

// noteSince notes since when each disk is waited for.
func (c *cleaner) noteSince() {
	for d := range c.since {
		if !c.waiting[d] {
			delete(c.since, d)
		}
	}
	for d := range c.waiting {
		if c.since == nil {
			c.since = make(map[id.Disk]time.Time)
		}
		if _, known := c.since[d]; !known {
			c.since[d] = time.Now()
		}
	}
}

// maps returns what the newest checkpoints take. Every other time what they have
// replaced is held too.
func (c *cleaner) maps() int64 {
	if c.objects[1] == 0 {
		return c.objects[0]
	}
	return min(c.objects[0], c.objects[1])
}

// keep has admission leave what reclaim needs in a full pool.
func (h *Host) keep(ctx context.Context) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	if st.FreeBytes > 0 { // or else the difference does not say what the node keeps
		h.cleaner.kept = st.SpareBytes - st.FreeBytes
	}
	var capacity int64
	for _, s := range st.Spindles {
		capacity += s.CapacityBytes
	}
	h.pool.Space.Keep(ctx, max(reclaim.Keep(h.cleaner.maps(), capacity)-h.cleaner.kept, 0))
	return nil
}

// state describes the pool to Decide.
func (k *cycle) state(ctx context.Context) (*reclaim.State, error) {
	h, c := k.h, &k.h.cleaner
	segments, err := h.usage(ctx)
	if err != nil {
		return nil, err
	}
	st, err := h.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	s := &reclaim.State{
		Segments: segments, Geometry: h.pool.Geometry, Free: st.FreeBytes, Spare: st.SpareBytes + h.pool.Space.Kept(),
		Maps:   c.maps(),
		Urgent: k.mode == cleanUrgent, Full: k.mode == cleanFull, Skip: make(map[id.Segment]bool), Poor: h.poor(), Keeper: h.keeper(),
	}
	c.live.Store(reclaim.Live(segments, s.Geometry))
	s.Low = h.low(st)
	if s.Urgent {
		s.Low = max(s.Low/2, k.start+1) + h.pool.Space.Lacks() // and then a write is admitted
	}
	h.skip(s)
	k.report.Waiting = 0
	for i := range segments {
		if segments[i].State == datanode.StateForwarded {
			k.report.Waiting++
		}
	}
	return s, nil
}

// skip names the segments that cannot be emptied: a chunk does not open, or a
// disk that holds slots would not follow.
func (h *Host) skip(s *reclaim.State) {
	c := &h.cleaner
	for seg, at := range c.damaged {
		if time.Since(at) >= damagedTime {
			delete(c.damaged, seg)
			continue
		}
		s.Skip[seg] = true
	}
	stuck := make(map[id.Disk]bool)
	for i := range s.Segments {
		u := &s.Segments[i]
		if h.pool.Stripes.Leaves(u.Segment) {
			s.Skip[u.Segment] = true
			continue
		}
		for _, d := range u.Disks {
			is, known := stuck[d.Disk]
			if !known {
				is = !h.follows(d.Disk)
				stuck[d.Disk] = is
			}
			if is {
				s.Skip[u.Segment] = true
			}
		}
	}
}

// follows reports whether a disk can pass and give up what has moved.
func (h *Host) follows(d id.Disk) bool {
	if m := h.cleaner.mover; m != nil && m.Disk == d {
		return true // what it holds it is about to give up
	}
	h.mu.Lock()
	e, host := h.byID[d], h.owners[d].host
	h.mu.Unlock()
	if e == nil || h.dependents(d) > 0 {
		return false
	}
	if errors.Is(e.err, ErrElsewhere) {
		since, waits := h.cleaner.since[d]
		return host != "" && (!waits || time.Since(since) < followTime)
	}
	return e.disk != nil && e.disk.Err() == nil
}

// awaited returns the disks of this host that another one, which empties segments,
// waits for: they hold slots of segments that were forwarded. The warden knows them
// anyhow.
func (h *Host) awaited(ctx context.Context) (map[id.Disk]bool, error) {
	if h.opts.Sole || h.isWarden(h.owning.term.Load()) {
		return nil, nil
	}
	forwards, err := h.node.Forwards(ctx, &datanode.ForwardsRequest{})
	if err != nil || len(forwards.Forwards) == 0 {
		return nil, err
	}
	if err := h.lockSweep(ctx); err != nil {
		return nil, err
	}
	defer h.unlockSweep()
	if _, err := h.usage(ctx); err != nil {
		return nil, err
	}
	return maps.Clone(h.cleaner.waiting), nil
}
