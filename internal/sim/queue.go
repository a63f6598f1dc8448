package sim

import (
	"math/rand/v2"
	"time"
)

// Queue is the events of a simulated world, one after the other in the order of their
// times, and the chance that decides what they are. The same seed gives the same events.
type Queue struct {
	Now    time.Duration
	Rand   *rand.Rand
	events []event // a heap
	queued uint64
	trace  uint64
}

type event struct {
	at    time.Duration
	order uint64
	do    func()
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.order < o.order }

// NewQueue returns an empty queue.
func NewQueue(seed uint64) *Queue {
	return &Queue{Rand: rand.New(rand.NewPCG(seed, 0)), trace: 14695981039346656037}
}

// After has something done later. What is due at one time is done in the order of the
// calls.
func (q *Queue) After(d time.Duration, do func()) {
	q.queued++
	q.events = append(q.events, event{q.Now + d, q.queued, do})
	for i := len(q.events) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.events[i].before(&q.events[up]) {
			break
		}
		q.events[i], q.events[up] = q.events[up], q.events[i]
		i = up
	}
}

// Step does what comes next; false: nothing does.
func (q *Queue) Step() bool {
	if len(q.events) == 0 {
		return false
	}
	e := q.pop()
	q.Now = e.at
	q.Mark(uint64(e.at))
	e.do()
	return true
}

func (q *Queue) pop() event {
	first, last := q.events[0], len(q.events)-1
	q.events[0], q.events[last] = q.events[last], event{}
	q.events = q.events[:last]
	for i := 0; ; {
		least := i
		for down := 2*i + 1; down <= 2*i+2 && down < last; down++ {
			if q.events[down].before(&q.events[least]) {
				least = down
			}
		}
		if least == i {
			return first
		}
		q.events[i], q.events[least] = q.events[least], q.events[i]
		i = least
	}
}

// Span draws a time in [from, to).
func (q *Queue) Span(from, to time.Duration) time.Duration {
	return from + time.Duration(q.Rand.Int64N(int64(to-from)))
}

// Mark adds something that happened to the trace.
func (q *Queue) Mark(x uint64) {
	q.trace = (q.trace ^ x) * 1099511628211
	q.trace ^= q.trace >> 32
}

// Trace is a hash of all that happened: equal for two runs that were the same.
func (q *Queue) Trace() uint64 { return q.trace }
