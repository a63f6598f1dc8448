package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/rebuild"
)

// partaking is what a host does for the rebuild of another one, the warden: its row in the
// registry, under its lease, says what it was given and what it has done.
type partaking struct {
	term     *term
	work     *rebuild.Work
	revision uint64 // of the row
	put      time.Time
	rows     *rowWatch
}

// partake does what the warden gives this host to do while a pass goes on, and returns how long to
// wait until the next look.
func (h *Host) partake(ctx context.Context, t *term) (time.Duration, error) {
	x := &h.rebuild
	if x.lead != nil {
		h.stopSharing()
	}
	if h.opts.Sole { // it waits for a host that was there before it
		return rebuildReadTime, h.loadRebuild(ctx)
	}
	h.takeTold()
	x.mu.Lock()
	running := x.row.Running()
	var pass time.Time
	if running {
		pass = x.row.Pass.Began
	}
	x.mu.Unlock()
	if p := x.part; p != nil && (!running || p.term != t || !p.work.Pass.Equal(pass)) {
		h.stopSharing()
		if !running {
			return rebuildReadTime, h.dropRow(ctx)
		}
	}
	if !running {
		return rebuildReadTime, nil
	}
	if x.part == nil {
		if err := h.offerPart(ctx, t, pass); err != nil {
			return 0, err
		}
	}
	return h.stepPart(ctx, x.part)
}

// offerPart puts this host's row: it takes part.
func (h *Host) offerPart(ctx context.Context, t *term, pass time.Time) error {
	key := restoreKey(h.opts.Name)
	now, err := h.catalog.getEntry(ctx, key)
	if err != nil {
		return err
	}
	p := &partaking{term: t, work: &rebuild.Work{Pass: pass, Began: time.Now().UTC()}}
	if now != nil {
		p.revision = now.Revision // of an earlier session, or pass
	}
	if err := h.putPart(ctx, p); err != nil {
		return err
	}
	p.rows = h.watchRows(key, key)
	h.rebuild.part = p
	return nil
}

// putPart puts the row, which is as this host has read it last.
func (h *Host) putPart(ctx context.Context, p *partaking) error {
	value, err := p.work.Marshal()
	if err != nil {
		return err
	}
	key := restoreKey(h.opts.Name)
	revision, err := h.catalog.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: key, Revision: p.revision}}, Puts: []datanode.Put{{Key: key, Value: value, Lease: p.term.lease}},
	}, key, value)
	if err != nil {
		return fmt.Errorf("tell the warden how far the rebuild is here: %w", err)
	}
	p.revision, p.put = revision, time.Now()
	return nil
}

// stepPart takes the row as it is and tells of what was done since.
func (h *Host) stepPart(ctx context.Context, p *partaking) (time.Duration, error) {
	x, key := &h.rebuild, restoreKey(h.opts.Name)
	e, there, at := p.rows.get(key)
	switch {
	case there && e.Revision > p.revision:
		work, err := rebuild.ParseWork(e.Value)
		if err != nil || !work.Began.Equal(p.work.Began) || e.Lease != p.term.lease {
			h.stopSharing() // another one's
			return rebuildStepTime, err
		}
		p.work, p.revision = work, e.Revision
	case !there && at > p.revision:
		h.stopSharing()
		return rebuildStepTime, nil
	}
	ended, further := x.crew.follow(p.work, p.term)
	if ended || further && time.Since(p.put) >= rebuildSaveTime {
		err := h.putPart(ctx, p)
		switch {
		case errors.Is(err, datanode.ErrConflict): // the watch brings what it is now
			return rebuildStepTime, nil
		case err != nil:
			h.log.Warn("the warden is not told how far the rebuild is here, will retry", "err", err)
		}
	}
	if len(p.work.Tasks) > 0 {
		return rebuildStepTime, nil
	}
	return rebuildLookTime, nil
}
