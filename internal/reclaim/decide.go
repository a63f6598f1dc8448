package reclaim

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	// lowPercent of the capacity, at most, is kept free: a cycle must end before
	// writes have used it up.
	lowPercent = 6
	// lowShare of the slack, which is all that live chunks do not take, is kept
	// free: whatever is kept free is no garbage that could ripen, and so costs
	// copies. gainShare of it is what one plan gains: less would pay for too many
	// passes, more would take segments with too few dead chunks. See
	// docs/design/reclaim.md for the figures.
	lowShare  = 8
	gainShare = 8
	// fullDead is the share of a segment, 1/fullDead, above which a full reclaim
	// empties it.
	fullDead = 8
	// useMax is the use at which a segment has nothing to give: the rest is headers
	// and rounding.
	useMax = 1 - 1.0/64
	// wholeUse is the use below which a segment is packed together with others even
	// if all of it lives: it was written short.
	wholeUse = 0.5
	// agePrior keeps the score finite for segments with nearly nothing live.
	agePrior = 0.25
)

// Low returns the free bytes below which space is to be made, where live bytes of
// a capacity are needed: 6 % of the capacity, or an eighth of what is not needed
// if that is less.
func Low(capacity, live int64) int64 {
	return min(capacity*lowPercent/100, max(capacity-live, 0)/lowShare)
}

// packed returns what chunks of that sealed length take on spindles at most, in
// segments of their own: a block of each fragment for its header, one for rounding,
// and one as no chunk straddles fragments. As it is no less than what they take, a
// plan that gains something by it leaves less behind, and a full reclaim ends.
func packed(g stripe.Geometry, bytes int64) int64 {
	if bytes == 0 {
		return 0
	}
	targets := (bytes + id.SegmentBytesMax - 1) / id.SegmentBytesMax
	return (bytes*int64(g.Width())+int64(g.K)-1)/int64(g.K) + targets*int64(g.Width())*3*datanode.BlockBytes
}

// Live returns what everything that is needed takes on spindles: the live chunks
// at their share of their segments, and objects.
func Live(segments []datanode.SegmentUse, g stripe.Geometry) int64 {
	live := int64(0)
	for i := range segments {
		switch u := &segments[i]; {
		case u.LiveSlots == 0:
		case u.Kind == datanode.KindObject:
			live += u.StoredBytes
		default:
			live += min(liveBytes(u)*int64(g.Width())/int64(g.K), u.StoredBytes)
		}
	}
	return live
}

func liveBytes(u *datanode.SegmentUse) int64 {
	if u.Slots == 0 {
		return 0
	}
	return int64(float64(u.SealedBytes) * float64(u.LiveSlots) / float64(u.Slots))
}

// Decide plans which segments to empty. Those that were condemned before come
// first. Others are taken while less than Low is free, or all that pay for a full
// reclaim, in the order of (dead share) x age / (live share), which leaves
// segments whose chunks still die alone; who waits for space gets those with the
// largest dead share if that gains much more. A plan never needs more space than there is, and never gains
// nothing.
func Decide(s *State) *Plan {
	if s.Urgent {
		// What is best in the long run is good enough if it helps.
		calm := *s
		calm.greedy = false
		if p := decide(&calm); p.GainBytes >= s.wanted()/2 && len(p.Condemn) > 0 {
			return p
		}
		calm.greedy = true
		return decide(&calm)
	}
	return decide(s)
}

func decide(s *State) *Plan {
	resumed, poor, fresh, transit := s.candidates()
	p := &picker{s: s, room: s.room(), transit: transit, heaps: make(map[id.Node]heap)}
	for i := range resumed {
		p.take(&resumed[i])
	}
	for i := range poor {
		if !p.take(&poor[i]) {
			break
		}
	}
	p.wanted = s.wanted()
	for i := range fresh {
		if p.gain() >= p.wanted || !p.take(&fresh[i]) {
			break
		}
	}
	return p.plan(len(fresh))
}

// room is what targets may take before their sources come back. Where nobody waits
// yet, half of what is free is left to writes, and a second checkpoint has room.
func (s *State) room() int64 {
	room := s.Spare - checkpoint(s.Maps)
	if !s.Urgent && !s.Full {
		room -= checkpoint(s.Maps) + max(s.Free, 0)/2
	}
	return room
}

// checkpoint returns what one of all maps takes at most: they grow by no more than
// a quarter meanwhile.
func checkpoint(maps int64) int64 { return maps + maps/4 }

// Keep returns what must be left of a capacity for reclaim to go on in a full pool:
// two checkpoints of all maps, and a fiftieth for targets.
func Keep(maps, capacity int64) int64 { return 2*checkpoint(maps) + capacity/50 }

// wanted is how many bytes a plan is to gain besides what it resumes.
func (s *State) wanted() int64 {
	switch {
	case s.Full:
		return math.MaxInt64
	case s.Urgent || s.Free < s.Low:
		return s.Low - s.Free + max(s.slack()/gainShare, 1)
	}
	return 0
}

// slack is all that live chunks and objects do not take and could be free.
func (s *State) slack() int64 {
	slack := s.Free
	live := Live(s.Segments, s.Geometry)
	for i := range s.Segments {
		slack += s.Segments[i].StoredBytes
	}
	return max(slack-live, 0)
}

// candidates returns what may be emptied, the best first, and how many segments
// and slots are in transit and not to be resumed.
func (s *State) candidates() (resumed, poor, fresh []Choice, transit usage) {
	newest := uint64(0)
	for i := range s.Segments {
		newest = max(newest, s.Segments[i].Segment.Number())
	}
	for i := range s.Segments {
		u := &s.Segments[i]
		if u.Kind != datanode.KindChunks || u.State == datanode.StateDeleting {
			continue
		}
		c := Choice{
			Segment: u.Segment, StoredBytes: u.StoredBytes, LiveBytes: liveBytes(u),
			Resume: u.State == datanode.StateCondemned, slots: u.Slots,
		}
		use := s.use(&c)
		c.Score = s.score(use, newest-u.Segment.Number())
		switch {
		case u.State == datanode.StateForwarded, c.Resume && (u.LiveSlots == 0 || s.Skip[u.Segment]):
			transit.add(&c)
		case c.Resume:
			resumed = append(resumed, c)
		case u.LiveSlots > 0 && !s.Skip[u.Segment] && s.Poor != nil && s.Poor(u.Segment):
			c.Poor = true
			poor = append(poor, c)
		case u.LiveSlots == 0 || s.Skip[u.Segment] || use >= useMax:
		case u.LiveSlots == u.Slots && use >= wholeUse:
		case s.Full && use > 1-1.0/fullDead:
		default:
			fresh = append(fresh, c)
		}
	}
	slices.SortStableFunc(fresh, func(a, b Choice) int { return cmp.Compare(b.Score, a.Score) })
	return resumed, poor, fresh, transit
}

// use is the share of what a segment takes that its live chunks would take anew.
// Of a short one that is little, even if all of it lives: its headers and the
// rounding of its fragments go too.
func (s *State) use(c *Choice) float64 {
	return float64(c.LiveBytes) * float64(s.Geometry.Width()) / float64(s.Geometry.K) / float64(max(c.StoredBytes, 1))
}

func (s *State) score(use float64, age uint64) float64 {
	if s.greedy || s.Full {
		return 1 - use
	}
	return (1 - use) * float64(age+1) / (use + agePrior)
}

// usage counts what is in transit.
type usage struct{ segments, slots int }

func (u *usage) add(c *Choice) {
	u.segments++
	u.slots += c.slots
}

// picker takes choices into a plan.
type picker struct {
	s       *State
	room    int64 // for targets, in bytes of fragments
	wanted  int64
	transit usage
	taken   []Choice
	heaps   map[id.Node]heap // of taken, by keepers
}

// heap is what is packed together.
type heap struct{ stored, moved int64 }

func (h heap) with(c *Choice) heap { return heap{h.stored + c.StoredBytes, h.moved + c.LiveBytes} }

func (h heap) gain(g stripe.Geometry) int64 { return h.stored - packed(g, h.moved) }

// sum returns what all heaps gain, what is moved, and what that takes.
func (p *picker) sum() (gain, moved, targets int64) {
	for _, h := range p.heaps {
		gain += h.gain(p.s.Geometry)
		moved += h.moved
		targets += packed(p.s.Geometry, h.moved)
	}
	return gain, moved, targets
}

func (p *picker) gain() int64 {
	gain, _, _ := p.sum()
	return gain
}

// take adds a choice and reports whether there was room for it. A plan without
// room for one segment is no plan: its sources would never come back.
func (p *picker) take(c *Choice) bool {
	keeper := p.s.Keeper.of(c.Segment)
	heap := p.heaps[keeper]
	_, _, targets := p.sum()
	targets += packed(p.s.Geometry, heap.with(c).moved) - packed(p.s.Geometry, heap.moved)
	switch {
	case p.transit.segments == datanode.TransitMax || p.transit.slots+c.slots > datanode.TransitSlotsMax && !c.Resume:
		return false
	case targets > p.room:
		return false
	}
	p.taken = append(p.taken, *c)
	p.transit.add(c)
	p.heaps[keeper] = heap.with(c)
	return true
}

// plan ends the picking. Alone, segments of one cycle and keeper may gain nothing by
// being packed together: then none is condemned, and what was condemned goes on.
func (p *picker) plan(fresh int) *Plan {
	picked := p.heaps
	p.taken = slices.DeleteFunc(p.taken, func(c Choice) bool {
		return !c.Resume && !c.Poor && picked[p.s.Keeper.of(c.Segment)].gain(p.s.Geometry) <= 0
	})
	p.heaps = make(map[id.Node]heap)
	for i := range p.taken {
		keeper := p.s.Keeper.of(p.taken[i].Segment)
		p.heaps[keeper] = p.heaps[keeper].with(&p.taken[i])
	}
	slices.SortStableFunc(p.taken, func(a, b Choice) int {
		if a.Resume != b.Resume {
			if a.Resume {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Segment.Number(), b.Segment.Number())
	})
	gain, moved, _ := p.sum()
	return &Plan{Condemn: p.taken, MoveBytes: moved, GainBytes: gain, Why: p.why(fresh)}
}

func (p *picker) why(fresh int) string {
	s := p.s
	free := fmt.Sprintf("%d bytes are free, %d are to be", s.Free, s.Low)
	switch {
	case len(p.taken) == 0 && p.wanted == 0:
		return "enough space: " + free
	case len(p.taken) == 0 && fresh == 0:
		return "no segment has dead chunks enough: " + free
	case len(p.taken) == 0:
		return fmt.Sprintf("no room or no gain: %s, %d can be written", free, s.Spare)
	case p.taken[0].Poor:
		return "what lies where a node's loss is a loss: " + free
	case s.Full:
		return fmt.Sprintf("all segments with 1/%d dead", fullDead)
	case s.Urgent:
		return "somebody waits for space: " + free
	case p.wanted == 0:
		return "go on with what was condemned: " + free
	}
	return "little space: " + free
}
