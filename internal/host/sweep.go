package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

// sweepLoop passes over disks that changed and have become quiet, or when it is
// asked to, and reclaims what no disk needs.
func (h *Host) sweepLoop() {
	defer h.work.Done()
	tick := time.NewTicker(h.opts.IdleTime / 4)
	defer tick.Stop()
	space := time.NewTicker(h.opts.IdleTime / 16) // by default 0.6 s: writes take space fast
	defer space.Stop()
	for {
		var err error
		select {
		case <-h.life.Done():
			return
		case <-h.sweep:
			err = h.Sweep(h.life)
		case s := <-h.suspects:
			err = h.repair(h.life, s)
		case <-tick.C:
			err = errors.Join(h.tend(h.life, false), h.expire(h.life, time.Now()), h.sweepIdle(h.life))
		case <-space.C:
			err = h.cleanLow(h.life)
		}
		if err != nil && h.life.Err() == nil {
			h.logRetried("background pass failed, will retry", err)
		}
	}
}

// suspected notes a segment for repair; it does not block.
func (h *Host) suspected(s id.Segment) {
	select {
	case h.suspects <- s:
	default:
	}
}

// lockSweep waits for the turn of a sweep, a repair or a verify; unlockSweep ends
// it.
func (h *Host) lockSweep(ctx context.Context) error {
	select {
	case h.sweeping <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.life.Done():
		return ErrClosed
	}
}

func (h *Host) unlockSweep() { <-h.sweeping }

// repair restores the fragments of a segment that are missing or damaged on
// spindles that work. Nothing is reclaimed meanwhile, so that a fragment is not
// restored behind a deletion.
func (h *Host) repair(ctx context.Context, s id.Segment) error {
	if err := h.lockSweep(ctx); err != nil {
		return err
	}
	defer h.unlockSweep()
	reply, err := h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: []id.Segment{s}})
	if err != nil {
		return err
	}
	if d := reply.Segments[0]; !d.Known || d.State == datanode.StateDeleting {
		return nil // deleted since, or about to be
	}
	h.refreshHealth(ctx)
	report, err := h.pool.Stripes.Check(ctx, s, true)
	if errors.Is(err, datanode.ErrNotFound) {
		return nil // deleted since
	}
	if report != nil {
		h.noteDamage(report)
	}
	return err
}

// sweepIdle sweeps the disks that changed since their last pass and are idle.
// While the index is incomplete it also sweeps those that have not passed since.
func (h *Host) sweepIdle(ctx context.Context) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	awaited, err := h.awaited(ctx)
	if err != nil {
		return err
	}
	leaving, err := h.leaving(ctx)
	if err != nil {
		return err
	}
	var due []*export
	for _, e := range h.serving() {
		swept, passed := h.lastPass(e)
		stated := st.Index.Complete || passed == st.Index.Incarnation+1
		if !stated || leaving[e.rec.ID] || (h.owes(e) || awaited[e.rec.ID]) && h.rested(e) || h.idle(e) && changes(e.disk) != swept ||
			!h.opts.Sole && passed == 0 && h.idle(e) { // an earlier owner may have left something
			due = append(due, e)
		}
	}
	if len(due) == 0 && st.Index.Complete {
		return nil // or else it may be called complete by now: what hindered that has ended
	}
	return h.sweepDisks(ctx, due, st.Index, true)
}

// changes counts what may have left something for a pass to give up.
func changes(d *disk.Disk) int64 {
	s := d.Stats()
	return s.Destages + s.DestagesLost + s.Checkpoints
}

func (h *Host) lastPass(e *export) (sweptAt int64, passed uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.sweptAt, e.passed
}

// Sweep passes over all disks, completes the index if it was not, and reclaims.
func (h *Host) Sweep(ctx context.Context) error {
	if err := h.tend(ctx, true); err != nil {
		return err
	}
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	return h.sweepDisks(ctx, h.exports(), st.Index, false)
}

// sweepDisks passes over disks; paced leaves half of the time to others.
func (h *Host) sweepDisks(ctx context.Context, exports []*export, index datanode.IndexStatus, paced bool) error {
	if err := h.lockSweep(ctx); err != nil {
		return err
	}
	defer h.unlockSweep()
	h.cleaner.paced = paced
	defer func() { h.cleaner.paced = false }()
	err := h.pass(ctx, exports, index)
	_, uerr := h.usage(ctx) // for figures
	return errors.Join(err, uerr)
}

// pass passes over disks and reclaims. A disk that cannot pass holds what it
// held, and does not keep what others give up from being reclaimed. It is called
// under lockSweep.
func (h *Host) pass(ctx context.Context, exports []*export, index datanode.IndexStatus) error {
	var errs []error
	for _, e := range h.passOrder(exports) {
		if e.disk == nil || h.dependents(e.rec.ID) > 0 {
			continue // a scan of a base gives nothing up until its clones have passed
		}
		before, report, err := h.passDisk(ctx, e, index)
		if errors.Is(err, datanode.ErrLogFull) {
			// Patches are results. Not destageAll: it may want the sweep's lock.
			if err = h.relieveLog(ctx, h.destageOnce); err == nil {
				before, report, err = h.passDisk(ctx, e, index)
			}
		}
		if err != nil {
			if !errors.Is(err, disk.ErrClosed) { // removed meanwhile
				errs = append(errs, err)
			}
			continue
		}
		if report.Held {
			continue // by a clone that was just made
		}
		if !index.Complete {
			if err := h.state(ctx, e, index.Incarnation); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		h.mu.Lock()
		e.passed, e.sweptAt = index.Incarnation+1, before
		h.mu.Unlock()
		if err := h.passed(ctx, e, report); err != nil {
			errs = append(errs, err)
		}
	}
	warden, err := h.beWarden(ctx)
	if err != nil || !warden {
		return errors.Join(append(errs, err)...)
	}
	if err := h.completeIndex(ctx, index); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if _, err := h.mover(ctx, index, false); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, h.reclaim(ctx))...)
}

// passDisk passes over one disk; before counts the changes that it takes account of.
func (h *Host) passDisk(ctx context.Context, e *export, index datanode.IndexStatus) (before int64, report *disk.PassReport, err error) {
	before = changes(e.disk)
	o := disk.PassOptions{Describe: !index.Complete, Exists: h.existingOf(e), Pace: h.pacePass()}
	giveUp, err := h.drainPass(ctx, &o)
	if err != nil {
		return 0, nil, err
	}
	defer giveUp()
	if report, err = e.disk.Pass(ctx, o); err == nil {
		if h.rehomed.Add(report.RehomedBytes); report.RehomedBytes > 0 {
			h.drainNext.Store(0) // for what there was no room, and what is given back
		}
	}
	return before, report, err
}

// completeIndex calls the index complete if every disk of the catalog has
// passed in its incarnation (I13), whoever had it, and has removed disks and the mover
// give up what they hold. The catalog is read first: what is made later needs
// nothing that it does not hold by births and look-ups, or its base for it.
func (h *Host) completeIndex(ctx context.Context, index datanode.IndexStatus) error {
	if index.Complete {
		return nil
	}
	if busy, err := h.rebuildBusy(ctx); err != nil || busy {
		return err // segments may not be known yet
	}
	recs, err := h.catalog.disks(ctx)
	if err != nil {
		return err
	}
	stated, err := h.catalog.stated(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if n, ok := stated[rec.ID]; !ok || n != index.Incarnation {
			return nil
		}
	}
	if err := errors.Join(h.releaseRemoved(ctx, nil), h.releaseMover(ctx)); err != nil {
		return err
	}
	err = h.node.CompleteIndex(ctx, &datanode.CompleteIndexRequest{Incarnation: index.Incarnation})
	if err == nil {
		h.log.Info("the index is complete again: every disk has stated what it needs")
	}
	return err
}

// reclaim frees the segments that nothing needs. It is called under lockSweep.
func (h *Host) reclaim(ctx context.Context) error {
	for {
		reply, err := h.node.Reclaim(ctx, &datanode.ReclaimRequest{})
		if err != nil {
			return fmt.Errorf("reclaim segments: %w", err)
		}
		h.cleaner.deleted += len(reply.Deleted)
		if len(reply.Deleted) > 0 {
			h.log.Debug("reclaimed segments", "count", len(reply.Deleted))
		}
		if !reply.More {
			return nil
		}
	}
}
