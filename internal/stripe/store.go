package stripe

import (
	"fmt"
	"maps"
	"slices"
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
	// Closing, if set, is closed when reads must wait no more for nodes that do not answer,
	// whatever their contexts say.
	Closing <-chan struct{}
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
	node datanode.FragmentNode
	opts Options
	// now has the newest layouts. Those of one geometry follow each other.
	now           atomic.Pointer[Layouts]
	geometry      Geometry
	surveys       chan struct{} // one token per survey, surveysMax
	checks        chan struct{} // of Check, ChecksMax
	next          atomic.Uint64 // layout to try first
	reconstructed atomic.Uint64
	repaired      atomic.Uint64
	readAround    atomic.Uint64
	suspectedAt   atomic.Int64 // Unix ns: when spindles were last made suspect
	// paced is by spindle, nil for one that no layout has or had.
	paced atomic.Pointer[[]*pace]

	// draining are the spindles that are being emptied, nil for none.
	draining atomic.Pointer[map[id.Spindle]bool]

	mu     sync.Mutex
	failed map[id.Spindle]bool // spindles that new segments avoid
	writes *writes             // under way since the layouts last changed
}

// writes are those that began under the same layouts: they choose lists of these, or newer ones.
type writes struct {
	count int           // under way
	ended chan struct{} // nil while they are the newest; closed when none is under way
}

// begin notes a write that chooses its layout from now on; end is called when it has ended.
func (s *Store) begin() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.writes
	w.count++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if w.count--; w.count == 0 && w.ended != nil {
			close(w.ended)
		}
	}
}

// NewStore returns a store over node, whose layouts it does not change: after
// ErrStaleLayout its owner tells it newer ones. It starts nothing and does no I/O.
func NewStore(node datanode.FragmentNode, layouts *Layouts, opts Options) (*Store, error) {
	if err := layouts.Validate(); err != nil {
		return nil, err
	}
	s := &Store{
		node: node, opts: opts, geometry: layouts.Geometry,
		surveys: make(chan struct{}, surveysMax), checks: make(chan struct{}, ChecksMax),
		failed: make(map[id.Spindle]bool), writes: new(writes),
	}
	s.paced.Store(newPaces(layouts, nil))
	s.now.Store(layouts)
	return s, nil
}

// SetLayouts tells newer layouts of the same geometry. It returns when no Write is under way
// that has chosen one of those before. There is one SetLayouts at a time.
func (s *Store) SetLayouts(layouts *Layouts) error {
	if err := layouts.Validate(); err != nil {
		return err
	}
	if layouts.Geometry != s.geometry {
		return fmt.Errorf("stripe layouts of %s follow those of %s", layouts.Geometry, s.geometry)
	}
	s.paced.Store(newPaces(layouts, *s.paced.Load())) // first: a reader takes the layouts and then the pace
	s.now.Store(layouts)
	// Writes that begin meanwhile do not wait for those before, which may take long.
	s.mu.Lock()
	before := s.writes
	s.writes, before.ended = new(writes), make(chan struct{})
	if before.count == 0 {
		close(before.ended)
	}
	s.mu.Unlock()
	<-before.ended
	return nil
}

// Layouts returns the newest.
func (s *Store) Layouts() *Layouts { return s.now.Load() }

func (s *Store) paces() []*pace { return *s.paced.Load() }

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

// SetDraining says which spindles are being emptied: new segments avoid them. Those
// without which there is no usual layout that works are left out.
func (s *Store) SetDraining(spindles []id.Spindle) {
	var draining *map[id.Spindle]bool
	if len(spindles) > 0 {
		all := make(map[id.Spindle]bool)
		for _, sp := range spindles {
			all[sp] = true
		}
		s.mu.Lock()
		if _, ok := s.pickFrom(s.now.Load(), Usual, 0, all, nil); ok {
			draining = &all
		}
		s.mu.Unlock()
	}
	s.draining.Store(draining)
}

// Draining returns the spindles that are being emptied, in order.
func (s *Store) Draining() []id.Spindle {
	d := s.draining.Load()
	if d == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(*d))
}

// Poor reports whether a segment lies where it should not stay, but for want of a better
// place: a node's loss is its loss, or a node or a spindle is being emptied.
func (s *Store) Poor(seg id.Segment) bool {
	switch s.now.Load().Kind(seg.Layout()) {
	case Spare, OldSpare:
		return true
	}
	return s.Leaves(seg)
}

// Leaves reports whether a segment has fragments on a node or a spindle that is being emptied.
func (s *Store) Leaves(seg id.Segment) bool {
	l := s.now.Load()
	if l.Kind(seg.Layout()) == Leaving {
		return true
	}
	d := s.draining.Load()
	return d != nil && l.Has(seg.Layout()) && slices.ContainsFunc(l.Lists[seg.Layout()], func(sp id.Spindle) bool { return (*d)[sp] })
}

// Usual reports whether there is a usual layout whose spindles all work and stay.
func (s *Store) Usual() bool {
	var avoid map[id.Spindle]bool
	if d := s.draining.Load(); d != nil {
		avoid = *d
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.pickFrom(s.now.Load(), Usual, 0, avoid, nil)
	return ok
}

// Reconstructed returns how many ranges were computed from other fragments.
func (s *Store) Reconstructed() uint64 { return s.reconstructed.Load() }

// ReadAround returns how many ranges were computed from other fragments because
// their spindle was slow.
func (s *Store) ReadAround() uint64 { return s.readAround.Load() }

// Repaired returns how many fragments were rewritten.
func (s *Store) Repaired() uint64 { return s.repaired.Load() }

// list returns the spindles of a segment. A layout that is not known is ErrStaleLayout:
// newer ones may have it.
func (s *Store) list(seg id.Segment) ([]id.Spindle, error) { return s.now.Load().list(seg) }

func (l *Layouts) list(seg id.Segment) ([]id.Spindle, error) {
	if !l.Has(seg.Layout()) {
		return nil, datanode.Errorf(datanode.ErrStaleLayout, "segment %s: there are %d layouts", seg, len(l.Lists))
	}
	return l.Lists[seg.Layout()], nil
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
