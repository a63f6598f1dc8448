package host

import (
	"context"

	"plinth/internal/reclaim"
)

// warmBytesPerSecond bounds what is read before anybody asks for it: 4 GiB come in
// half a minute, by a tenth of a core and a small share of what spindles give.
const warmBytesPerSecond = 128 << 20

// warmLoop reads what was hot on disks when they were last served, one after the other,
// as they come to this host.
func (h *Host) warmLoop() {
	defer h.work.Done()
	pacer := reclaim.Pacer{Rate: func() int64 { return warmBytesPerSecond }}
	for {
		e := h.nextCold()
		if e == nil {
			select {
			case <-h.colder:
				continue
			case <-h.life.Done():
				return
			}
		}
		step := h.sweeps.Pace(nil)
		err := e.disk.WarmUp(h.life, func(ctx context.Context, bytes int64) error {
			if err := pacer.Wait(ctx, bytes); err != nil {
				return err
			}
			return step(ctx)
		})
		if err != nil {
			h.log.Debug("a disk was not warmed up", "disk", h.nameOf(e), "err", err)
		}
	}
}

// nextCold returns a disk that is to be warmed up, nil for none.
func (h *Host) nextCold() *export {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.byID {
		if e.cold {
			e.cold = false
			return e
		}
	}
	return nil
}
