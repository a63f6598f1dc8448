package stripe

import (
	"fmt"
	"sync"
	"sync/atomic"

	"plinth/datanode"
	"plinth/internal/id"
)

// Options tunes a Store. The zero value is right.
type Options struct {
	// Suspect, if set, is told of each segment of which Read found a fragment
	// missing or unreadable on a spindle that answers, after the data was
	// reconstructed. It does not block; its owner runs Check on the segment.
	Suspect func(id.Segment)
}

// surveysMax bounds the whole stripes in memory for Reconstruct, ChecksMax those for
// Check, so that no read waits for a check: each takes up to 8 MiB times (k+m)/k, and
// as much again to rewrite all of m.
const (
	surveysMax = 3
	ChecksMax  = 3
)

// Store keeps segments as stripes on the spindles of a node.
type Store struct {
	node    datanode.FragmentNode
	layouts *Layouts
	opts    Options

	surveys       chan struct{} // one token per survey, surveysMax
	checks        chan struct{} // of Check, ChecksMax
	next          atomic.Uint64 // layout to try first
	reconstructed atomic.Uint64
	repaired      atomic.Uint64
	readAround    atomic.Uint64
	paces         []*pace      // by spindle, nil for one that no layout has
	suspectedAt   atomic.Int64 // Unix ns: when spindles were last made suspect

	mu     sync.Mutex
	failed map[id.Spindle]bool // spindles that new segments avoid
}

// NewStore returns a store over node, whose layouts it neither changes nor
// outlives: after ErrStaleLayout its owner makes another one. It starts nothing
// and does no I/O.
func NewStore(node datanode.FragmentNode, layouts *Layouts, opts Options) (*Store, error) {
	if err := layouts.Validate(); err != nil {
		return nil, err
	}
	return &Store{
		node: node, layouts: layouts, opts: opts,
		surveys: make(chan struct{}, surveysMax), checks: make(chan struct{}, ChecksMax),
		paces:  newPaces(layouts),
		failed: make(map[id.Spindle]bool),
	}, nil
}

// UpdateHealth takes the states of spindles from a node's status. New segments
// avoid a spindle that is not ok, and one that failed a write until it is
// reported as ok again. Spindles that are not named keep their state.
func (s *Store) UpdateHealth(spindles []datanode.SpindleStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range spindles {
		s.setFailed(sp.Spindle, sp.State != datanode.SpindleOK)
	}
}

func (s *Store) setFailed(spindle id.Spindle, failed bool) {
	if failed {
		s.failed[spindle] = true
	} else {
		delete(s.failed, spindle)
	}
}

func (s *Store) markFailed(spindle id.Spindle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setFailed(spindle, true)
}

func (s *Store) isFailed(spindle id.Spindle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed[spindle]
}

// Spare reports whether a segment lies in a spare layout.
func (s *Store) Spare(seg id.Segment) bool {
	return int(seg.Layout()) >= len(s.layouts.Lists)-s.layouts.Spare && int(seg.Layout()) < len(s.layouts.Lists)
}

// Usual reports whether there is a layout that is not spare and whose spindles all work.
func (s *Store) Usual() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.pickFrom(0, len(s.layouts.Lists)-s.layouts.Spare, 0, nil, nil)
	return ok
}

// Reconstructed returns how many ranges were computed from other fragments.
func (s *Store) Reconstructed() uint64 { return s.reconstructed.Load() }

// ReadAround returns how many ranges were computed from other fragments because
// their spindle was slow.
func (s *Store) ReadAround() uint64 { return s.readAround.Load() }

// Repaired returns how many fragments were rewritten.
func (s *Store) Repaired() uint64 { return s.repaired.Load() }

// list returns the spindles of a segment. A layout it does not have is
// ErrStaleLayout: a newer set may.
func (s *Store) list(seg id.Segment) ([]id.Spindle, error) {
	if int(seg.Layout()) >= len(s.layouts.Lists) {
		return nil, datanode.Errorf(datanode.ErrStaleLayout, "segment %s: there are %d layouts", seg, len(s.layouts.Lists))
	}
	return s.layouts.Lists[seg.Layout()], nil
}

// answers reports a reply that does not answer its request: a fault of the node.
func answers(what string, got, want int) error {
	if got != want {
		return datanode.Errorf(datanode.ErrCorrupt, "%s: %d answers to %d questions", what, got, want)
	}
	return nil
}

// describe names a fragment for errors.
func describe(seg id.Segment, index int, spindle id.Spindle) string {
	return fmt.Sprintf("segment %s, fragment %d on spindle %d", seg, index, spindle)
}
