package host

import (
	"context"

	"plinth/internal/reclaim"
)

// warmBytesPerSecond bounds what is read before anybody asks for it: 4 GiB come in
// half a minute, by a tenth of a core and a small share of what spindles give.
const warmBytesPerSecond = 128 << 20

// warmUp reads what was hot on disks when they were last served, one after the
// other.
func (h *Host) warmUp() {
	defer h.work.Done()
	step := h.sweeps.Pace(nil)
	pacer := reclaim.Pacer{Rate: func() int64 { return warmBytesPerSecond }}
	pause := func(ctx context.Context, bytes int64) error {
		if err := pacer.Wait(ctx, bytes); err != nil {
			return err
		}
		return step(ctx)
	}
	for _, e := range h.exports() {
		if e.disk == nil {
			continue
		}
		if err := e.disk.WarmUp(h.life, pause); err != nil {
			h.log.Debug("a disk was not warmed up", "disk", h.nameOf(e), "err", err)
		}
	}
}
