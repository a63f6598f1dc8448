package shelf

import (
	"context"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// healthEvery is how often spindles are looked at without any I/O of a client:
// a removed drive shows within two rounds.
const healthEvery = 3 * time.Second

// watch checks spindles and lock until ctx ends, and logs what changes.
func (s *Shelf) watch(ctx context.Context) {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	seen := map[id.Spindle]datanode.SpindleState{}
	for {
		for _, now := range s.spindles.Status() {
			before, known := seen[now.Spindle]
			seen[now.Spindle] = now.State
			switch {
			case now.State == before || !known && now.State == datanode.SpindleOK:
			case now.State == datanode.SpindleOK:
				s.logger.Info("spindle serves again", "spindle", now.Spindle, "path", now.Path)
			default:
				s.logger.Error("spindle does not serve", "spindle", now.Spindle, "path", now.Path,
					"state", now.State, "reason", now.Reason)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.spindles.Check(ctx)
		s.checkLock()
	}
}
