package host

import (
	"context"
	"errors"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/reclaim"
)

// ReclaimOptions tunes Reclaim. The zero value does what the background does,
// now.
type ReclaimOptions struct {
	// DryRun passes over no disk and changes nothing: the report has the plan.
	DryRun bool
	// Full empties every segment with an eighth dead or more, whatever is free.
	Full bool
}

// ReclaimReport says what a Reclaim has done or would do.
type ReclaimReport struct {
	// Plan is that of a dry run, else the last that was not empty.
	Plan *reclaim.Plan `json:"plan"`
	// Cycles counts plans that were carried out.
	Cycles int `json:"cycles"`
	// Condemned counts segments, MovedChunks and MovedBytes (sealed) what was
	// copied out of them.
	Condemned   int   `json:"condemned"`
	MovedChunks int64 `json:"moved_chunks"`
	MovedBytes  int64 `json:"moved_bytes"`
	// Deleted counts segments that were freed, FreedBytes is what the spindles
	// have less of at the end: below 0 if writes took more meanwhile.
	Deleted    int   `json:"deleted"`
	FreedBytes int64 `json:"freed_bytes"`
	// Damaged are segments that cannot be emptied: a chunk does not open. Verify
	// says more.
	Damaged []id.Segment `json:"damaged,omitempty"`
	// Waiting counts segments that were emptied and wait for the pass of a disk.
	Waiting int `json:"waiting"`
}

// ReclaimTotals is what all cycles since the start have done.
type ReclaimTotals struct {
	Cycles      int64 `json:"cycles"`
	MovedChunks int64 `json:"moved_chunks"`
	MovedBytes  int64 `json:"moved_bytes"` // sealed
}

// Reclaimed returns the totals.
func (h *Host) Reclaimed() ReclaimTotals {
	c := &h.cleaner
	return ReclaimTotals{Cycles: c.cycles.Load(), MovedChunks: c.moved.Load(), MovedBytes: c.movedBytes.Load()}
}

// Reclaim passes over the disks that changed, frees what nobody needs, and
// empties segments with few live chunks until enough is free; with Full it passes
// over all disks and empties whatever pays. Errors: ErrClosed, those of disks that
// cannot pass, which do not keep it from the others, and of the data node.
func (h *Host) Reclaim(ctx context.Context, opts ReclaimOptions) (*ReclaimReport, error) {
	var tended error
	if !opts.DryRun {
		tended = h.tend(ctx, false)
	}
	if err := h.lockSweep(ctx); err != nil {
		return nil, err
	}
	defer h.unlockSweep()
	k := &cycle{h: h, mode: cleanAsked, report: &ReclaimReport{}}
	if opts.Full {
		k.mode = cleanFull
	}
	st, err := h.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	if opts.DryRun {
		s, err := k.state(ctx)
		if err != nil {
			return nil, err
		}
		k.report.Plan = reclaim.Decide(s)
		return k.report, nil
	}
	h.cleaner.damaged = nil // perhaps it was mended
	before := allocated(st)
	err = errors.Join(tended, k.clean(ctx))
	if st, serr := h.node.Status(ctx); serr == nil {
		k.report.FreedBytes = before - allocated(st)
	}
	return k.report, err
}

// allocated returns what fragments take on all spindles.
func allocated(st *datanode.Status) (bytes int64) {
	for _, s := range st.Spindles {
		bytes += s.AllocatedBytes
	}
	return bytes
}
