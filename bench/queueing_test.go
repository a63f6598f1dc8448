package bench

import (
	"slices"

	"plinth/internal/sim"
)

// server does one thing after the other, or as many at once as it has places.
type server struct {
	free []moment
	busy moment
}

func servers(n int) server { return server{free: make([]moment, n)} }

// serve takes what arrives now and returns when it is done.
func (s *server) serve(now, takes moment) moment {
	i := 0
	for k := range s.free {
		if s.free[k] < s.free[i] {
			i = k
		}
	}
	s.free[i] = max(now, s.free[i]) + takes
	s.busy += takes
	return s.free[i]
}

func (s *server) used(over moment) float64 {
	return float64(s.busy) / float64(over) / float64(len(s.free))
}

// batcher does all that waits at once: a spindle with its syncs, a log's sync, a registry.
type batcher struct {
	q       *sim.Queue
	cost    func(n int, bytes int64) moment
	most    int
	waiting []batched
	running bool
	busy    moment
}

type batched struct {
	bytes int64
	done  func()
}

func (b *batcher) add(bytes int64, done func()) {
	b.waiting = append(b.waiting, batched{bytes, done})
	b.run()
}

func (b *batcher) run() {
	if b.running || len(b.waiting) == 0 {
		return
	}
	n := min(len(b.waiting), b.most)
	batch := slices.Clone(b.waiting[:n])
	b.waiting = slices.Delete(b.waiting, 0, n)
	bytes := int64(0)
	for _, w := range batch {
		bytes += w.bytes
	}
	takes := b.cost(n, bytes)
	b.busy += takes
	b.running = true
	b.q.After(takes, func() {
		b.running = false
		for _, w := range batch {
			w.done()
		}
		b.run()
	})
}
