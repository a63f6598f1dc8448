package nbd

import (
	"sync"
	"time"
)

// errorLog logs what becomes EIO for the client, who learns no more than that:
// at most one line a second and connection, so that a dead device does not
// fill the log.
type errorLog struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (l *errorLog) add(t *transmission, r *request, err error) {
	if r.errno != EIO || t.ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	now := time.Now()
	if now.Sub(l.last) < time.Second {
		l.skipped++
		l.mu.Unlock()
		return
	}
	skipped := l.skipped
	l.last, l.skipped = now, 0
	l.mu.Unlock()
	t.log.Error("nbd: request failed", "type", r.Type, "offset", r.Offset, "length", r.Length,
		"err", err, "unlogged", skipped)
}
