package host

import (
	"context"
	"time"

	"plinth/internal/reclaim"
)

// paceState is what pacing last looked at.
type paceState struct {
	at         time.Time // of the figures
	free, low  int64
	stored     int64 // bytes that users had stored, ever
	foreground int64 // bytes per second
	share      reclaim.Share
}

// paceMove returns what copies wait for: CPU time, and those of the background
// their rate.
func (h *Host) paceMove(background bool) func(context.Context, int64) error {
	step := h.paceSweep()
	pacer := reclaim.Pacer{Rate: h.rate}
	return func(ctx context.Context, bytes int64) error {
		if background {
			if err := pacer.Wait(ctx, bytes); err != nil {
				return err
			}
		}
		return step(ctx)
	}
}

// rate returns how fast chunks may be moved now.
func (h *Host) rate() int64 {
	p := &h.cleaner.pace
	if since := time.Since(p.at); since >= statusTime {
		if st, err := h.node.Status(h.life); err == nil {
			p.free, p.low = st.FreeBytes, h.low(st)
		}
		stored := int64(0)
		for _, e := range h.serving() {
			stored += e.disk.Stats().DedupeMisses * int64(e.rec.Chunk)
		}
		if !p.at.IsZero() {
			now := int64(float64(max(stored-p.stored, 0)) / since.Seconds())
			p.foreground = (3*p.foreground + now) / 4
		}
		p.stored, p.at = stored, time.Now()
	}
	return reclaim.Rate(&reclaim.PaceState{
		Free: p.free, Low: p.low, Foreground: p.foreground, Urgent: h.cleaner.hurry.Load() > 0,
	})
}

// pacePass returns what makes a pass keep to its share of the CPU time, and one of
// the background leave half of the time to others.
func (h *Host) pacePass() func(context.Context, int) error {
	step := h.paceSweep()
	return func(ctx context.Context, _ int) error {
		if err := h.cleaner.pace.share.Wait(ctx, !h.cleaner.paced || h.cleaner.hurry.Load() > 0); err != nil {
			return err
		}
		return step(ctx)
	}
}
