package host

import (
	"slices"
	"time"

	"plinth/internal/id"
)

// probeTime is how often spindles that are slow are tested.
const probeTime = time.Second

// probeLoop tests the spindles that reads go around, and says which these are.
func (h *Host) probeLoop() {
	defer h.work.Done()
	ticker := time.NewTicker(probeTime)
	defer ticker.Stop()
	var was []id.Spindle
	for {
		select {
		case <-h.life.Done():
			return
		case <-ticker.C:
		}
		h.pool.Stripes.Probe(h.life)
		slow := h.pool.Stripes.Slow()
		for _, sp := range slow {
			if !slices.Contains(was, sp) {
				h.log.Warn("a spindle takes far longer than the others: reads go around it", "spindle", sp)
			}
		}
		for _, sp := range was {
			if !slices.Contains(slow, sp) {
				h.log.Info("a spindle that was slow is read again", "spindle", sp)
			}
		}
		was = slow
	}
}
