package host

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// groupsMax bounds the groups that wait for this host's part. Each host asks for one
// at a time; one that is too many is not answered, and so fails.
const groupsMax = 128

// groups is what a host knows of snapshots of several hosts' disks that are under way.
type groups struct {
	// asking has room for one: who asks for a group.
	asking chan struct{}
	// queue is groups to take part in, in the order of their rows: which is the same
	// everywhere, and so no two groups wait for each other's disks.
	queue chan *group

	mu  sync.Mutex
	all map[id.Snapshot]*group
}

// group is one of them. Its number is its first snapshot's.
type group struct {
	id id.Snapshot
	// over ends when the group's row is known to be gone; end ends it.
	over context.Context
	end  context.CancelFunc
	// stirred says that answers have changed, to who asks.
	stirred chan struct{}

	// Guarded by groups.mu. Row and revision do not change once they are known: who asks
	// knows the revision, who takes part both.
	row      *groupRow // nil: not seen yet
	revision uint64    // of the row
	answers  map[string]*groupAnswer
	asked    bool // this host asks for it, and has not ended yet
}

func newGroups() *groups {
	return &groups{asking: make(chan struct{}, 1), queue: make(chan *group, groupsMax), all: make(map[id.Snapshot]*group)}
}

// of returns a group, a new one if it is not known; mu is held.
func (s *groups) of(n id.Snapshot) *group {
	g := s.all[n]
	if g == nil {
		g = &group{id: n, stirred: make(chan struct{}, 1), answers: make(map[string]*groupAnswer)}
		g.over, g.end = context.WithCancel(context.Background())
		s.all[n] = g
	}
	return g
}

// drop forgets a group of which nothing is left; mu is held.
func (s *groups) drop(g *group) {
	if g.over.Err() != nil && len(g.answers) == 0 && !g.asked {
		delete(s.all, g.id)
	}
}

// ended notes that a group's row is gone.
func (s *groups) ended(g *group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.end()
	s.drop(g)
}

// asks reports whether this host asks for a group.
func (s *groups) asks(g *group) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.asked
}

// answersTo returns a copy of a group's answers.
func (s *groups) answersTo(g *group) map[string]*groupAnswer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]*groupAnswer, len(g.answers))
	for host, a := range g.answers {
		out[host] = a
	}
	return out
}

// seeGroups takes all rows of groups, of one instant: what is not among them, and was
// there before, is gone.
func (h *Host) seeGroups(all []datanode.RegistryEntry, at uint64) {
	known := make(map[string]bool, len(all))
	slices.SortFunc(all, func(a, b datanode.RegistryEntry) int { return cmp.Compare(a.Revision, b.Revision) })
	for i := range all {
		known[all[i].Key] = true
		h.seeGroup(&datanode.RegistryEvent{Key: all[i].Key, Value: all[i].Value, Revision: all[i].Revision})
	}
	s := h.groups
	s.mu.Lock()
	var gone []string
	for _, g := range s.all {
		if key := groupKey(g.id); !known[key] && g.revision != 0 && g.revision <= at {
			gone = append(gone, key)
		}
		for host := range g.answers {
			if key := groupAnswerKey(g.id, host); !known[key] {
				gone = append(gone, key)
			}
		}
	}
	s.mu.Unlock()
	for _, key := range gone {
		h.seeGroup(&datanode.RegistryEvent{Key: key, Deleted: true, Revision: at})
	}
}

// seeGroup takes a change of a group's row, or of an answer to it.
func (h *Host) seeGroup(e *datanode.RegistryEvent) {
	n, host, err := parseGroupKey(e.Key)
	if err != nil {
		return // nobody's
	}
	if host != "" {
		h.seeGroupAnswer(n, host, e)
		return
	}
	s := h.groups
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Deleted {
		if g := s.all[n]; g != nil {
			g.end()
			s.drop(g)
		}
		return
	}
	row, err := parseGroupRow(e.Value)
	if err != nil {
		h.log.Warn("a group snapshot is not understood", "key", e.Key, "err", err)
		return
	}
	g := s.of(n)
	if g.row != nil { // listed again
		return
	}
	if g.row = row; g.revision == 0 {
		g.revision = e.Revision
	}
	select {
	case s.queue <- g:
	default:
		h.log.Warn("a group snapshot is not taken part in: too many wait", "key", e.Key)
	}
}

func (h *Host) seeGroupAnswer(n id.Snapshot, host string, e *datanode.RegistryEvent) {
	s := h.groups
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.all[n]
	if g == nil {
		return // of a group that has ended
	}
	if e.Deleted {
		delete(g.answers, host)
	} else {
		a, err := parseGroupAnswer(e.Value)
		if err != nil {
			h.log.Warn("an answer to a group snapshot is not understood", "key", e.Key, "err", err)
			return
		}
		g.answers[host] = a
	}
	s.drop(g)
	wake(g.stirred)
}
