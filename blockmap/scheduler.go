package blockmap

import (
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 30 * time.Second
	// grantPoll is how often a refused compaction is offered again in case that
	// nothing else woke the scheduler.
	grantPoll = time.Second
)

// scheduler lets one map's Pebble compact, as many at a time as Pebble wants
// for its backlog, and with a growing pause after each failure: Pebble itself
// would repeat a compaction whose table cannot be read 1,900 times a second.
//
// Its goroutine runs from Register to Unregister and is alone in calling the
// database, without the lock: the database's locks come first.
type scheduler struct {
	wake chan struct{} // of one: somebody should look
	stop chan struct{}
	done chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	db       pebble.DBForCompaction // nil until Register
	stopped  bool
	running  int
	refused  bool // a compaction waits for a grant
	failures int
	until    time.Time // no compaction begins before
}

func newScheduler() *scheduler {
	return &scheduler{wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
}

// Register starts the scheduler for db. Pebble calls it once.
func (s *scheduler) Register(_ int, db pebble.DBForCompaction) {
	s.mu.Lock()
	s.db = db
	s.mu.Unlock()
	go s.loop(db)
}

// Unregister ends the calls to the database. It may be called again, or when
// there was no Register.
func (s *scheduler) Unregister() {
	s.mu.Lock()
	first := !s.stopped
	s.stopped = true
	registered := s.db != nil
	s.mu.Unlock()
	if first {
		close(s.stop)
	}
	if registered {
		<-s.done
	}
}

// TrySchedule is called with the database's lock held.
func (s *scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false, nil
	}
	if s.running >= s.db.GetAllowedWithoutPermission() || time.Now().Before(s.until) {
		s.refused = true
		s.poke()
		return false, nil
	}
	s.running++
	return true, s
}

func (s *scheduler) UpdateGetAllowedWithoutPermission() { s.poke() }

// Started, MeasureCPU, CumulativeStats and Done make it the handle of a grant.
func (s *scheduler) Started()                                          {}
func (s *scheduler) MeasureCPU(pebble.CompactionGoroutineKind)         {}
func (s *scheduler) CumulativeStats(pebble.CompactionGrantHandleStats) {}

func (s *scheduler) Done() {
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
	s.poke()
}

// ended notes how a compaction went. It may be called under Pebble's lock.
func (s *scheduler) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.failures, s.until = 0, time.Time{}
		return
	}
	s.until = time.Now().Add(min(backoffMax, backoffMin<<min(s.failures, 10)))
	s.failures++
}

func (s *scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *scheduler) loop(db pebble.DBForCompaction) {
	defer close(s.done)
	timer := time.NewTimer(grantPoll)
	defer timer.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-timer.C:
		}
		for s.reserve() {
			if waiting, _ := db.GetWaitingCompaction(); !waiting {
				s.unreserve()
				break
			}
			if !db.Schedule(s) {
				s.unreserve()
				break
			}
		}
		if d := s.pause(); d > 0 {
			timer.Reset(d)
		} else {
			timer.Stop()
		}
	}
}

// reserve takes a place for one more compaction, if there is one now.
func (s *scheduler) reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.running >= s.db.GetAllowedWithoutPermission() || time.Now().Before(s.until) {
		return false
	}
	s.running++
	s.refused = false
	return true
}

func (s *scheduler) unreserve() {
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
}

// pause returns after how long to look again: 0 for when woken.
func (s *scheduler) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := time.Until(s.until); d > 0 {
		return d
	}
	if s.refused {
		return grantPoll
	}
	return 0
}
