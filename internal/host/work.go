package host

import (
	"context"
	"errors"
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
	// reliefTime is how long a relief counts as just done.
	reliefTime = time.Second
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
		err := h.destageAll(h.life)
		if err == nil {
			err = h.checkpointDue(h.life)
		}
		if err != nil && h.life.Err() == nil {
			h.log.Error("background destaging failed, will retry", "err", err)
			select {
			case <-h.life.Done():
			case <-time.After(retryTime):
			}
		}
	}
}

// destageAll runs rounds until what was buffered at the call is in segments.
func (h *Host) destageAll(ctx context.Context) error {
	disks := h.disks()
	for _, d := range disks {
		d.Rotate()
	}
	for ctx.Err() == nil {
		var busy []*disk.Disk
		for _, d := range disks {
			if d.Frozen() {
				busy = append(busy, d)
			}
		}
		if len(busy) == 0 {
			return nil
		}
		h.refreshHealth(ctx)
		if err := h.pool.Destage(ctx, busy); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// refreshHealth tells the stripes which spindles work.
func (h *Host) refreshHealth(ctx context.Context) {
	if st, err := h.node.Status(ctx); err == nil {
		h.pool.Stripes.UpdateHealth(st.Spindles)
	}
}

// checkpointDue makes a checkpoint of each disk that has many updates without
// one, or some and is idle, or whose results hold the oldest file of a log that
// is filling up.
func (h *Host) checkpointDue(ctx context.Context) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	pins := make(map[id.Disk]bool)
	if st.Log.UsedBytes*100 > st.Log.CapacityBytes*logShareMax {
		for _, s := range st.Streams {
			if s.Stream == datanode.Results && s.Pins {
				pins[s.Disk] = true
			}
		}
	}
	var errs []error
	for _, e := range h.exports() {
		if e.disk == nil || e.disk.Err() != nil {
			continue
		}
		updates, results := e.disk.CheckpointDue()
		if updates >= h.opts.CheckpointUpdates || results > 0 && (h.idle(e) || pins[e.rec.ID]) {
			errs = append(errs, e.disk.Checkpoint(ctx))
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
// that is not enough makes checkpoints, or passes and reclaims. Callers share
// one relief.
func (h *Host) relieve(ctx context.Context) error {
	h.reliefMu.Lock()
	defer h.reliefMu.Unlock()
	if h.life.Err() != nil {
		return disk.ErrClosed
	}
	if time.Since(h.relieved) < reliefTime {
		return nil
	}
	defer func() { h.relieved = time.Now() }()
	if err := h.destageAll(ctx); err != nil {
		return err
	}
	if err := h.checkpointDue(ctx); err != nil {
		return err
	}
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	var capacity int64
	for _, s := range st.Spindles {
		capacity += s.CapacityBytes
	}
	if st.FreeBytes < capacity/16 {
		return h.Sweep(ctx)
	}
	return nil
}

// Quiesce destages everything and makes checkpoints: a start after it has
// nothing to replay.
func (h *Host) Quiesce(ctx context.Context) error {
	if err := h.destageAll(ctx); err != nil {
		return err
	}
	var errs []error
	for _, d := range h.disks() {
		if d.Err() == nil {
			errs = append(errs, d.Checkpoint(ctx))
		}
	}
	return errors.Join(errs...)
}
