package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

const (
	// retryTime is the pause after background work that failed.
	retryTime = time.Second
	// logShareMax is the share of the log, in percent, above which those disks
	// that hold its oldest file are destaged and checkpointed.
	logShareMax = 50
	// logShareAdopt is that above which the warden takes the disks at once that nobody
	// has: what their log holds nobody else can give up.
	logShareAdopt = 75
	// reliefWaitMax bounds how long a relief waits for a verify, which may take
	// hours; writes wait for it.
	reliefWaitMax = 10 * time.Second
)

// destageLoop destages what is buffered, at intervals or when nudged, and makes
// the checkpoints that are due.
func (h *Host) destageLoop() {
	defer h.work.Done()
	tick := time.NewTicker(h.opts.DestageInterval)
	defer tick.Stop()
	for {
		select {
		case <-h.life.Done():
			return
		case <-tick.C:
		case <-h.nudge:
		}
		// What hinders one disk must not keep the others from checkpoints, without
		// which the log fills up.
		err := h.destageAll(h.life)
		err = errors.Join(err, h.checkpointDue(h.life, errors.Is(err, datanode.ErrLogFull)))
		if err != nil && h.life.Err() == nil {
			h.logRetried("background destaging failed, will retry", err)
			select {
			case <-h.life.Done():
			case <-time.After(retryTime):
			}
		}
	}
}

// destageAll moves what was buffered at the call into segments. What was
// admitted fits, but crashes and failures may have left garbage in its place, and
// then it is collected first.
func (h *Host) destageAll(ctx context.Context) error {
	err := h.destageOnce(ctx)
	if !errors.Is(err, datanode.ErrNoSpace) {
		return err
	}
	if err := h.collect(ctx); err != nil {
		return err
	}
	return h.destageOnce(ctx)
}

// destageOnce runs rounds until what was buffered at the call is in segments. A
// disk that hinders its own is left out of the rest.
func (h *Host) destageOnce(ctx context.Context) error {
	disks := h.disks()
	for _, d := range disks {
		d.GiveUp() // if it has failed
		d.Rotate()
	}
	var errs []error
	for ctx.Err() == nil {
		disks = slices.DeleteFunc(disks, func(d *disk.Disk) bool { return !d.Frozen() })
		if len(disks) == 0 {
			return errors.Join(errs...)
		}
		before := make(map[*disk.Disk]int64, len(disks))
		for _, d := range disks {
			before[d] = d.Stats().Destages
		}
		h.refreshHealth(ctx)
		if err := h.pool.Destage(ctx, disks); err != nil {
			errs = append(errs, err)
			disks = slices.DeleteFunc(disks, func(d *disk.Disk) bool { return d.Stats().Destages == before[d] })
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// refreshHealth tells the stripes which spindles work.
func (h *Host) refreshHealth(ctx context.Context) {
	if st, err := h.node.Status(ctx); err == nil {
		h.pool.Stripes.UpdateHealth(st.Spindles)
		h.avoidDraining(st.Spindles)
	}
}

// checkpointDue makes a checkpoint of each disk that has many updates without
// one, or some and is idle, or whose newest one lies where a node's loss is its loss, or
// whose results hold the oldest file of a log that is filling up. With full, for a log that has refused an append, results in any
// file of such a log count: also those of other disks hold the reserve that a
// result needs, and only checkpoints give them up. The warden adopts whom nobody has. Between a move and the passes
// that follow it only a full log has them made: passes make their own.
func (h *Host) checkpointDue(ctx context.Context, full bool) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	var errs []error
	if full || st.Log.UsedBytes*100 > st.Log.CapacityBytes*logShareAdopt {
		errs = append(errs, h.adoptFree(ctx, true))
	}
	pins := make(map[id.Disk]bool)
	if st.Log.UsedBytes*100 > st.Log.CapacityBytes*logShareMax {
		for _, s := range st.Streams {
			if s.Stream == datanode.Results && (s.Pins || full) {
				pins[s.Disk] = true
			}
		}
	}
	if h.cleaner.moving.Load() && !full {
		return errors.Join(errs...)
	}
	for _, e := range h.serving() {
		updates, results := e.disk.CheckpointDue()
		if updates >= h.opts.CheckpointUpdates || results > 0 && (h.idle(e) || pins[e.rec.ID]) || e.disk.CheckpointPoor() {
			if err := e.disk.Checkpoint(ctx); !errors.Is(err, disk.ErrClosed) { // removed meanwhile
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// idle reports whether no round has changed the disk for IdleTime.
func (h *Host) idle(e *export) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := e.disk.Stats().Destages; n != e.destages {
		e.destages, e.quietFrom = n, time.Now()
	}
	return time.Since(e.quietFrom) >= h.opts.IdleTime
}

// relieve makes room in the log and on the spindles: it destages all, and where
// that is not enough makes checkpoints, or passes and reclaims. Callers share a
// relief that began after they came. What hinders one step does not keep it from
// the next.
func (h *Host) relieve(ctx context.Context) error {
	came := time.Now()
	h.reliefMu.Lock()
	defer h.reliefMu.Unlock()
	if h.life.Err() != nil {
		return disk.ErrClosed
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if h.relieved.After(came) {
		return h.reliefErr
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.life, cancel)() // Close waits for the writes that wait for this
	h.reliefFor.Store(came.UnixNano())
	defer h.reliefFor.Store(0)
	began := time.Now()
	err := errors.Join(h.relieveLog(ctx, h.destageAll), h.relieveSpindles(ctx))
	if ctx.Err() == nil { // or else it is another caller's turn
		h.relieved, h.reliefErr = began, err
	}
	return err
}

// relieveLog makes room in the log: it destages and makes the checkpoints that give
// results up. Where those of other disks hold the room that a round's own need, the
// round fails, and goes on after the checkpoints.
func (h *Host) relieveLog(ctx context.Context, destage func(context.Context) error) error {
	err := destage(ctx)
	errs := []error{h.checkpointDue(ctx, true)}
	if errors.Is(err, datanode.ErrLogFull) {
		err = destage(ctx)
		errs = append(errs, h.checkpointDue(ctx, true))
	}
	return errors.Join(append(errs, err)...)
}

// relieveSpindles makes space if the spindles are nearly full.
func (h *Host) relieveSpindles(ctx context.Context) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	var capacity int64
	for _, s := range st.Spindles {
		capacity += s.CapacityBytes
	}
	if st.FreeBytes-h.pool.Space.Lacks() >= max(h.low(st), min(reliefBytes, capacity/8)) {
		return nil
	}
	return h.collect(ctx)
}

// collect frees what is dead and empties segments until more is free than before
// and enough, or no more can be had.
func (h *Host) collect(ctx context.Context) error {
	h.cleaner.hurry.Add(1)
	defer h.cleaner.hurry.Add(-1)
	if err := h.lockRelief(ctx); err != nil {
		return err
	}
	defer h.unlockSweep()
	k := &cycle{h: h, mode: cleanUrgent, report: &ReclaimReport{}}
	return k.clean(ctx)
}

// lockRelief is lockSweep for who has writes waiting: passes and moves that are
// under way hurry, but a verify does not.
func (h *Host) lockRelief(ctx context.Context) error {
	for {
		wait, cancel := context.WithTimeout(ctx, reliefWaitMax)
		err := h.lockSweep(wait)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if h.cleaner.verifying.Load() {
			return fmt.Errorf("wait for the end of a verify: %w", err)
		}
	}
}

// Quiesce destages everything and makes checkpoints: a start after it has
// nothing to replay.
func (h *Host) Quiesce(ctx context.Context) error {
	errs := []error{h.relieveLog(ctx, h.destageAll)}
	for _, d := range h.disks() {
		if d.Err() == nil {
			errs = append(errs, d.Checkpoint(ctx))
		}
	}
	return errors.Join(errs...)
}
