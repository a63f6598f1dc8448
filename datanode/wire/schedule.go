package wire

import "sync"

// task is a call that waits for a handler.
type task struct {
	slot uint16
	seq  uint64
}

// scheduler has the calls of all sessions carried out, by a bounded number of
// goroutines: sessions take turns, and within one small calls go before bulk
// ones, which leave a quarter of its handlers free.
type scheduler struct {
	most, mostEach int // handlers in all, and of one session
	run            func(*session, task)
	workers        sync.WaitGroup

	mu      sync.Mutex
	running int
	turns   queue[*session] // those that may go on now
}

// turn is a session's part of the scheduler, under the scheduler's mu.
type turn struct {
	tasks   [2]queue[task] // small, bulk
	running [2]int
	listed  bool
}

// pendingMax bounds what waits of one session: each slot may have a cancelled
// call before the one that follows it.
const pendingMax = 4 * slotsMax

// submit has a task carried out. It reports false if too many wait.
func (s *scheduler) submit(x *session, t task, bulk bool) bool {
	lane := 0
	if bulk {
		lane = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.turn.tasks[lane].len() >= pendingMax {
		return false
	}
	x.turn.tasks[lane].push(t)
	s.list(x)
	if s.running < s.most && s.turns.len() > 0 {
		s.running++
		s.workers.Add(1)
		go s.work()
	}
	return true
}

// lane says from which queue the session may take now, -1 from none; mu is held.
func (s *scheduler) lane(x *session) int {
	t := &x.turn
	switch all := t.running[0] + t.running[1]; {
	case all >= s.mostEach:
		return -1
	case t.tasks[0].len() > 0:
		return 0
	case t.tasks[1].len() > 0 && t.running[1] < max(1, s.mostEach*3/4):
		return 1
	}
	return -1
}

// list gives the session a turn, if it can use one; mu is held.
func (s *scheduler) list(x *session) {
	if !x.turn.listed && s.lane(x) >= 0 {
		x.turn.listed = true
		s.turns.push(x)
	}
}

// work carries tasks out until none may be.
func (s *scheduler) work() {
	defer s.workers.Done()
	s.mu.Lock()
	for s.turns.len() > 0 {
		x := s.turns.pop()
		x.turn.listed = false
		lane := s.lane(x)
		if lane < 0 {
			continue
		}
		t := x.turn.tasks[lane].pop()
		x.turn.running[lane]++
		s.list(x)
		s.mu.Unlock()
		s.run(x, t)
		s.mu.Lock()
		x.turn.running[lane]--
		s.list(x)
	}
	s.running--
	s.mu.Unlock()
}

// idle reports whether nothing runs. What is submitted meanwhile is not counted.
func (s *scheduler) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running == 0
}

// queue is a first-in, first-out list that reuses its memory.
type queue[T any] struct {
	items []T
	first int
}

func (q *queue[T]) len() int { return len(q.items) - q.first }

func (q *queue[T]) push(v T) {
	if q.first > 32 && q.first*2 > len(q.items) {
		n := copy(q.items, q.items[q.first:])
		clear(q.items[n:])
		q.items, q.first = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *queue[T]) pop() T {
	var zero T
	v := q.items[q.first]
	q.items[q.first] = zero
	q.first++
	if q.first == len(q.items) {
		q.items, q.first = q.items[:0], 0
	}
	return v
}
