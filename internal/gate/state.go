package gate

import (
	"container/heap"
	"slices"
	"time"
)

const (
	// burstTime is how long a budget may save up: longer than the time between two
	// looks at the clock, so that nothing earned is lost while all is used.
	burstTime = 25 * time.Millisecond
	// debtTimeMax bounds the debt, in the time in which it is earned: what could not
	// be held back, such as a replay at the start, slows the rest for no longer.
	debtTimeMax = 2 * time.Second
	// creditMax is how far a flow may be behind the others, in CPU time per weight:
	// what it may use at once after a pause. A round of destaging runs the budget into
	// debt for some 100 ms, in which flows go by what is promised alone: this much
	// keeps one at a tenth of the budget from waiting meanwhile.
	creditMax = 20 * time.Millisecond
	// leadMax is how far ahead a flow may be for what it used while there was enough
	// for all.
	leadMax = 5 * time.Millisecond
	// promisedShare of the budget is given to flows by time alone. The rest pays for
	// what no estimate foresaw.
	promisedShare = 0.5
	// activeTime is how long a flow has its share after its last work.
	activeTime = 100 * time.Millisecond

	// scaleSample is the CPU time over which the scale is looked at, scaleInertia
	// how many such looks it takes to follow.
	scaleSample  = 20 * time.Millisecond
	scaleInertia = 16
	// The scale's bounds: beyond them something else uses the CPU.
	scaleMin, scaleMax = 1. / 8, 8
)

// state is what a budget decides with: time and measurements in, decisions out. All
// CPU time is in nanoseconds.
type state struct {
	cores float64
	at    time.Time // of the last look
	used  time.Duration
	// balance is what was earned and not used, as of then. recent is what was
	// expected of the work that has passed since, before of that between the last two
	// looks, which may not have been done by the last.
	balance, recent, before float64

	virtual float64 // start of what passed last, or promised by time
	weights float64 // of the active flows
	// active are the flows that had work lately, and those that may have had.
	active      []*Flow
	backgrounds []*Flow
	waiting     flowHeap
	short       bool

	scale             float64 // measured over estimated cost
	sampled, expected float64 // measured and estimated since the last look at it
}

// left is what may still be used.
func (s *state) left() float64 { return s.balance - s.recent - s.before }

// start is the virtual time at which a flow's next work begins.
func (s *state) start(f *Flow) float64 { return max(f.finish, s.virtual-float64(creditMax)) }

// try lets work of a flow pass, unless it must wait.
func (s *state) try(f *Flow, cost float64) bool {
	if f.line.n > 0 {
		return false
	}
	if start := s.start(f); start < s.virtual || s.left() > 0 && len(s.waiting) == 0 {
		s.pass(f, start, cost)
		return true
	}
	return false
}

// pass charges a flow for work that goes now.
func (s *state) pass(f *Flow, start, cost float64) {
	s.expected += cost
	cost *= s.scale
	f.finish = start + cost/f.weight
	f.last = s.at
	s.list(f)
	s.virtual = max(s.virtual, start)
	s.recent += cost
}

// wait adds to a flow's line.
func (s *state) wait(f *Flow, w *waiter) {
	f.line.push(w)
	s.list(f)
	if f.line.n == 1 {
		f.tag = s.start(f)
		heap.Push(&s.waiting, f)
	}
}

// leave takes a waiter that gives up from a flow's line.
func (s *state) leave(f *Flow, w *waiter) {
	f.line.remove(w)
	if f.line.n == 0 {
		heap.Remove(&s.waiting, f.at)
	}
}

// next lets the first of those that wait pass, if it may: the head of the line of
// the flow that is most behind.
func (s *state) next() (*Flow, *waiter) {
	if len(s.waiting) == 0 {
		return nil, nil
	}
	f := s.waiting[0]
	if f.tag >= s.virtual && s.left() <= 0 {
		return nil, nil
	}
	w := f.line.head
	s.pass(f, max(f.tag, s.start(f)), w.cost)
	f.line.remove(w)
	if f.line.n == 0 {
		heap.Pop(&s.waiting)
	} else {
		f.tag = f.finish
		heap.Fix(&s.waiting, 0)
	}
	return f, w
}

// list makes a flow an active one.
func (s *state) list(f *Flow) {
	if !f.listed {
		f.listed = true
		s.active = append(s.active, f)
	}
}

// look takes in the time and the CPU time used until then.
func (s *state) look(now time.Time, used time.Duration) {
	elapsed, spent := float64(now.Sub(s.at)), float64(used-s.used)
	s.at, s.used = now, used
	s.balance = min(s.balance+elapsed*s.cores-spent, float64(burstTime)*s.cores)
	s.balance = max(s.balance, -float64(debtTimeMax)*s.cores)
	s.before, s.recent = s.recent, 0
	s.count(now)
	if s.weights > 0 {
		promised := elapsed * s.cores / s.weights
		if s.short {
			promised *= promisedShare
		}
		s.virtual += promised
	}
	s.learn(spent)
	// Once short, it stays so until there is something to go on with.
	enough := 0.
	if s.short {
		enough = float64(burstTime) / 2 * s.cores
	}
	s.short = s.left() <= enough || len(s.waiting) > 0
}

// count charges flows for what passed while there was enough, sums up the weights
// of those that are active, and lets go of those that are no more.
func (s *state) count(now time.Time) {
	disks := 0.
	s.weights = 0
	s.active = slices.DeleteFunc(s.active, func(f *Flow) bool {
		if cost := float64(f.passed.Swap(0)); cost != 0 {
			s.expected += cost
			f.finish = s.start(f) + cost*s.scale/f.weight
			if !s.short {
				f.finish = min(f.finish, s.virtual+float64(leadMax))
			}
			f.last = now
		}
		if f.line.n == 0 && now.Sub(f.last) > activeTime {
			f.listed = false
			return true
		}
		s.weights += f.weight
		if f.share == 0 {
			disks++
		}
		return false
	})
	for _, f := range s.backgrounds {
		f.weight = max(f.share*disks, 1)
	}
}

// learn compares what was expected with what was used.
func (s *state) learn(spent float64) {
	s.sampled += spent
	if s.sampled < float64(scaleSample) {
		return
	}
	if s.expected > 0 {
		seen := min(max(s.sampled/s.expected, scaleMin), scaleMax)
		// What no flow expected says little of those that are there.
		trust := min(s.expected*s.scale/s.sampled, 1)
		s.scale += (seen - s.scale) * trust / scaleInertia
	}
	s.sampled, s.expected = 0, 0
}

// flowHeap orders flows with lines by their tags: a heap.Interface.
type flowHeap []*Flow

func (h flowHeap) Len() int           { return len(h) }
func (h flowHeap) Less(i, j int) bool { return h[i].tag < h[j].tag }
func (h flowHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *flowHeap) Push(x any) {
	f := x.(*Flow)
	f.at = len(*h)
	*h = append(*h, f)
}

func (h *flowHeap) Pop() any {
	old := *h
	f := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return f
}
