package host

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/reclaim"
)

const (
	// reliefBytes is the free space below which a relief makes more, on all but
	// small pools: what a large write may have to reserve.
	reliefBytes = 128 << 20
	// idleCyclesMax bounds the cycles of one clean, in turn, that move nothing.
	idleCyclesMax = 2
	// damagedTime is how long a segment with a chunk that did not open is let alone.
	damagedTime = time.Hour
	// statusTime is how long a figure of free space is good for pacing.
	statusTime = 250 * time.Millisecond
	// followTime is how long a disk of another host may take to follow what has moved
	// before segments that it holds slots of are let alone: it may not open there.
	followTime = 10 * time.Minute
	// returnedTime is how long after a data node has come back hosts may still write as if
	// it had not.
	returnedTime = 30 * time.Second
)

// cleaner is what reclaim keeps from cycle to cycle.
type cleaner struct {
	// hurry counts those who wait for space: nothing is paced meanwhile.
	hurry atomic.Int32
	// verifying: the turn of sweeps is a verify's, which does not hurry.
	verifying atomic.Bool
	// moving: chunks have moved, and the passes that follow need room for
	// checkpoints: nobody else makes one unless the log is full.
	moving atomic.Bool
	// live is what the spindles have that is needed, in bytes, as of the last
	// passes; 0: not known yet.
	live atomic.Int64
	// cycles, moved (chunks) and movedBytes count since the start.
	cycles, moved, movedBytes atomic.Int64

	// lookedAt is when this host looked at the segments, Unix ns; 0: not since the start.
	// spare is how many lay in spare layouts then and were needed, lookNext when to look
	// again if there are some.
	lookedAt, lookNext, spare atomic.Int64

	// The rest belongs to who has lockSweep.

	mover    *reclaim.Mover
	moverOf  *wardenship // for which its epoch was claimed
	released bool        // what movers of earlier sessions held
	paced    bool
	deleted  int // segments, ever
	damaged  map[id.Segment]time.Time
	// waiting are the disks that hold slots of segments that were forwarded; since
	// when others look at that they have not done so with disks of other hosts.
	waiting    map[id.Disk]bool
	since      map[id.Disk]time.Time
	unfinished bool      // some are condemned or forwarded
	kept       int64     // bytes that the data node keeps from reservations
	objects    [2]int64  // bytes of checkpoints' segments, now and the last time
	notBefore  time.Time // of the background's next cycle
	pace       paceState
}

// cleaning says why space is made.
type cleaning int

const (
	cleanBackground cleaning = iota // little is free
	cleanAsked                      // somebody asked: the same, and at full speed
	cleanUrgent                     // somebody waits
	cleanFull                       // as much as can be had
)

// low returns the free bytes below which space is to be made.
func (h *Host) low(st *datanode.Status) int64 {
	total := st.FreeBytes
	for _, s := range st.Spindles {
		if s.State == datanode.SpindleOK {
			total += s.AllocatedBytes
		}
	}
	return reclaim.Low(total, h.cleaner.live.Load())
}

// cleanLow makes space in the background if little is free, or an earlier session
// left segments condemned. It takes its turn anew for each cycle.
func (h *Host) cleanLow(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := h.lockSweep(ctx); err != nil {
			return err
		}
		again, err := h.cleanOnce(ctx)
		h.unlockSweep()
		if err != nil || !again {
			return err
		}
	}
	return ctx.Err()
}

func (h *Host) cleanOnce(ctx context.Context) (again bool, err error) {
	c := &h.cleaner
	if warden, err := h.beWarden(ctx); err != nil || !warden {
		return false, err
	}
	st, err := h.node.Status(ctx)
	if err != nil || !st.Index.Complete {
		return false, err
	}
	if h.mustLook() {
		h.refreshHealth(ctx)
		if _, err := h.usage(ctx); err != nil {
			return false, err
		}
	}
	if st.FreeBytes >= h.low(st) && !c.unfinished || time.Now().Before(c.notBefore) {
		return false, nil
	}
	began := time.Now()
	k := &cycle{h: h, mode: cleanBackground, report: &ReclaimReport{}}
	again, err = k.run(ctx)
	if (!k.enough || !h.opts.Sole) && !again || err != nil {
		// There is nothing to gain, or something hinders.
		c.notBefore = time.Now().Add(max(h.opts.IdleTime, 4*time.Since(began)))
	}
	return again && err == nil, err
}

// clean runs until there is enough, or no more is to be gained. It is called under
// lockSweep. Errors of single disks do not end it.
func (k *cycle) clean(ctx context.Context) error {
	var errs []error
	for idle := 0; idle <= idleCyclesMax; {
		again, err := k.run(ctx)
		if err != nil {
			errs = append(errs, err)
		}
		if !again || ctx.Err() != nil {
			break
		}
		if idle++; k.moved > 0 { // every plan gains something
			idle = 0
		}
	}
	return errors.Join(errs...)
}

// cycle is the state of cycles that belong together.
type cycle struct {
	h      *Host
	mode   cleaning
	report *ReclaimReport
	begun  bool
	start  int64 // bytes free when the first one began
	moved  int64 // chunks, by the last one
	enough bool  // is free
	extra  int   // passes without a plan, in turn
}

// run passes over the disks for which there is something to do, frees what is
// dead, plans, and carries the plan out; the passes of the next run free what it
// emptied. It reports whether there should be a next one.
func (k *cycle) run(ctx context.Context) (again bool, err error) {
	h, c := k.h, &k.h.cleaner
	st, err := h.node.Status(ctx)
	if err != nil {
		return false, err
	}
	if !k.begun {
		k.start = st.FreeBytes
	}
	c.paced = k.mode == cleanBackground
	defer func() { c.paced = false }()
	due := h.dueForSpace(k.mode == cleanFull && !k.begun)
	k.begun, k.moved = true, 0
	before := c.deleted
	errs := []error{h.pass(ctx, due, st.Index)}
	c.moving.Store(false)
	k.report.Deleted += c.deleted - before
	s, err := k.state(ctx)
	if err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	k.enough = s.Free >= s.Low
	if k.mode == cleanUrgent && k.enough {
		return false, errors.Join(errs...)
	}
	plan := reclaim.Decide(s)
	if k.mode == cleanFull && st.Index.Complete && h.isWarden(h.owning.term.Load()) {
		errs = append(errs, h.releaseStrangers(ctx, s.Segments))
	}
	warden, err := h.beWarden(ctx)
	if err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	if !warden {
		plan = &reclaim.Plan{Why: "another host empties segments for the pool"}
	}
	if !st.Index.Complete {
		plan = &reclaim.Plan{Why: "the index is incomplete: nothing is condemned before every disk has passed"}
	}
	if len(plan.Condemn) == 0 {
		if k.report.Plan == nil {
			k.report.Plan = plan
		}
		// What a pass has patched is in a new checkpoint: the old one goes with
		// the next pass, and there may be room then.
		k.extra++
		again = k.extra <= idleCyclesMax && (k.mode == cleanFull || !k.enough) && len(h.dueForSpace(false)) > 0
		return again, errors.Join(errs...)
	}
	k.extra = 0
	again, err = k.carryOut(ctx, s, plan)
	return again, errors.Join(append(errs, err)...)
}

// carryOut empties the segments of a plan.
func (k *cycle) carryOut(ctx context.Context, s *reclaim.State, plan *reclaim.Plan) (again bool, err error) {
	h, c := k.h, &k.h.cleaner
	m, err := h.mover(ctx, datanode.IndexStatus{Complete: true}, true)
	if err != nil {
		return false, err
	}
	m.Pace = h.paceMove(k.mode == cleanBackground)
	segments := make([]id.Segment, len(plan.Condemn))
	for i := range plan.Condemn {
		segments[i] = plan.Condemn[i].Segment
	}
	h.log.Debug("reclaim", "segments", len(segments), "move", plan.MoveBytes, "gain", plan.GainBytes, "why", plan.Why)
	h.refreshHealth(ctx)
	c.moving.Store(true)
	moved, err := m.Move(ctx, segments)
	if err != nil {
		c.moving.Store(false)
		c.released = false // it may hold a target still
	}
	if errors.Is(err, datanode.ErrFenced) {
		c.mover = nil // another session took the number over: claim it anew
	}
	c.unfinished = true
	c.awaitAll(s.Segments, segments)
	r := k.report
	r.Plan = plan
	r.Cycles++
	r.Condemned += moved.Condemned
	r.MovedChunks += moved.Chunks
	r.MovedBytes += moved.Bytes
	k.moved = moved.Chunks
	c.cycles.Add(1)
	c.moved.Add(moved.Chunks)
	c.movedBytes.Add(moved.Bytes)
	for _, d := range moved.Damaged {
		h.log.Error("a segment cannot be emptied", "segment", d.Segment, "slot", d.Slot, "err", d.Err)
		if c.damaged == nil {
			c.damaged = make(map[id.Segment]time.Time)
		}
		c.damaged[d.Segment] = time.Now()
		r.Damaged = append(r.Damaged, d.Segment)
	}
	// What has been forwarded is freed in any case.
	return err == nil || moved.Targets > 0, err
}

// awaitAll notes the disks that hold slots of segments which were emptied.
func (c *cleaner) awaitAll(uses []datanode.SegmentUse, emptied []id.Segment) {
	for i := range uses {
		if u := &uses[i]; slices.Contains(emptied, u.Segment) {
			for _, d := range u.Disks {
				c.waiting[d.Disk] = true
			}
		}
	}
}

// dueForSpace returns the disks whose pass may give something up, or all.
func (h *Host) dueForSpace(all bool) []*export {
	var due []*export
	for _, e := range h.serving() {
		swept, passed := h.lastPass(e)
		if all || passed == 0 || h.owes(e) || changes(e.disk) != swept || h.cleaner.waiting[e.rec.ID] {
			due = append(due, e)
		}
	}
	return due
}
