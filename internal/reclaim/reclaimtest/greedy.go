// Package reclaimtest has the cleaner that others are measured against.
package reclaimtest

// Greedy simulates a pool whose cleaner always takes the segment with least alive,
// one at a time, and only when nearly nothing is free. It knows at once what
// dies. Chunks are equal; what is written and what is copied goes to segments of
// their own.
type Greedy struct {
	slots    int // of a segment
	spare    int // segments that are kept free
	segments []segment
	free     []int
	versions []version // of chunks
	unused   []int32   // versions
	head     []int32   // of each lba, the version; -1: none
	snaps    [][]int32
	user     int // the segment that is being filled; -1: none
	moving   int

	// Written and Moved count chunks.
	Written, Moved int64
}

type segment struct {
	versions []int32
	live     int
	used     bool
}

type version struct {
	at   int // segment
	refs int // of the head and of snapshots
}

// NewGreedy returns an empty pool of segments of slots chunks, for that many lbas.
// Spare of the segments, 2 at least, are kept free.
func NewGreedy(segments, slots, lbas, spare int) *Greedy {
	g := &Greedy{slots: slots, spare: max(spare, 2), segments: make([]segment, segments), user: -1, moving: -1}
	for i := range segments {
		g.free = append(g.free, i)
	}
	g.head = make([]int32, lbas)
	for i := range g.head {
		g.head[i] = -1
	}
	return g
}

// Write stores a new version of a chunk. It reports false if all segments are full
// of what lives.
func (g *Greedy) Write(lba int) bool {
	if !g.clean() {
		return false
	}
	v := int32(len(g.versions))
	if n := len(g.unused); n > 0 {
		v, g.unused = g.unused[n-1], g.unused[:n-1]
	} else {
		g.versions = append(g.versions, version{})
	}
	g.versions[v].refs = 1
	g.put(&g.user, v)
	if old := g.head[lba]; old >= 0 {
		g.unref(old)
	}
	g.head[lba] = v
	g.Written++
	return true
}

// Snapshot keeps all versions as they are now.
func (g *Greedy) Snapshot() {
	snap := append([]int32(nil), g.head...)
	for _, v := range snap {
		if v >= 0 {
			g.versions[v].refs++
		}
	}
	g.snaps = append(g.snaps, snap)
}

// Drop removes the oldest snapshot.
func (g *Greedy) Drop() {
	for _, v := range g.snaps[0] {
		if v >= 0 {
			g.unref(v)
		}
	}
	g.snaps = g.snaps[1:]
}

// Reset begins to count anew.
func (g *Greedy) Reset() { g.Written, g.Moved = 0, 0 }

// Amplification returns how many chunks were stored for each that was written.
func (g *Greedy) Amplification() float64 {
	return float64(g.Written+g.Moved) / float64(max(g.Written, 1))
}

func (g *Greedy) unref(v int32) {
	if g.versions[v].refs--; g.versions[v].refs > 0 {
		return
	}
	g.segments[g.versions[v].at].live--
	// The number is used again when the segment has gone, which still names it.
}

func (g *Greedy) put(at *int, v int32) {
	if *at < 0 || len(g.segments[*at].versions) == g.slots {
		*at = g.free[0]
		g.free = g.free[1:]
		g.segments[*at].used = true
	}
	s := &g.segments[*at]
	s.versions = append(s.versions, v)
	s.live++
	g.versions[v].at = *at
}

func (g *Greedy) clean() bool {
	for len(g.free) < g.spare {
		best := -1
		for i := range g.segments {
			s := &g.segments[i]
			if s.used && i != g.user && i != g.moving && (best < 0 || s.live < g.segments[best].live) {
				best = i
			}
		}
		if best < 0 || g.segments[best].live == g.slots {
			return false
		}
		s := &g.segments[best]
		for _, v := range s.versions {
			if g.versions[v].refs > 0 {
				g.put(&g.moving, v)
				g.Moved++
			} else {
				g.unused = append(g.unused, v)
			}
		}
		*s = segment{versions: s.versions[:0]}
		g.free = append(g.free, best)
	}
	return true
}
