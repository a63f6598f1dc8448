package crashfs

import (
	"maps"
	"math/bits"
	"slices"
	"time"
)

// node is a file or a directory. The FS's mutex guards it.
type node struct {
	dir     bool
	ordered bool // of a directory: its changes arrive in order
	modTime time.Time

	// Of a file. before holds, for each sector written since the last sync that lies
	// before stableSize or across it, what it held then; bytes of a sector behind
	// stableSize count as zeros. Those written wholly behind it are bits of fresh, by
	// page.
	content    content
	before     map[int64][]byte
	fresh      map[int64]uint32
	stableSize int64

	// Of a directory. stable and then the changes that arrive make what a crash
	// leaves.
	children map[string]*node
	stable   map[string]*node
	changes  []change
}

// change is what happens to a directory in one step; a nil node takes the name
// away. A local change is lost unless it is synced.
type change struct {
	names []string
	nodes []*node
	local bool
}

func newDir() *node {
	return &node{dir: true, modTime: time.Now(), children: map[string]*node{}, stable: map[string]*node{}}
}

func newFile() *node {
	return &node{modTime: time.Now(), before: map[int64][]byte{}, fresh: map[int64]uint32{}}
}

func (n *node) apply(c change) {
	n.modTime = time.Now()
	n.changes = append(n.changes, c)
	set(n.children, c)
}

func set(names map[string]*node, c change) {
	for i, name := range c.names {
		if c.nodes[i] == nil {
			delete(names, name)
		} else {
			names[name] = c.nodes[i]
		}
	}
}

func (n *node) sync() {
	if n.dir {
		n.stable, n.changes = maps.Clone(n.children), nil
		return
	}
	clear(n.before)
	clear(n.fresh)
	n.stableSize = n.content.size
}

func (n *node) writeAt(p []byte, off int64) {
	n.modTime = time.Now()
	end := off + int64(len(p))
	if len(p) == 0 {
		return
	}
	s := off / SectorBytes
	for ; s*SectorBytes < min(end, n.stableSize); s++ {
		if _, dirty := n.before[s]; !dirty {
			old := make([]byte, min(SectorBytes, n.stableSize-s*SectorBytes))
			n.content.readAt(old, s*SectorBytes)
			n.before[s] = old
		}
	}
	for s*SectorBytes < end { // one page after the other
		first := s % pageSectors
		last := min(pageSectors-1, first+(end-1)/SectorBytes-s)
		n.fresh[s/pageSectors] |= ^uint32(0) << first & (^uint32(0) >> (pageSectors - 1 - last))
		s += last - first + 1
	}
	n.content.writeAt(p, off)
}

// forget lets go of what a tree holds; open files may still have its nodes.
func (n *node) forget() {
	for _, names := range []map[string]*node{n.children, n.stable} {
		for _, child := range names {
			if child.content.size > 0 || child.dir {
				child.forget()
			}
		}
	}
	n.content, n.before, n.fresh, n.children, n.stable, n.changes = content{}, nil, nil, nil, nil, nil
}

// cloner copies a tree as an end leaves it. A file of several names stays one.
type cloner struct {
	keep func() bool
	kill bool
	done map[*node]*node
}

func (c *cloner) clone(n *node) *node {
	if m := c.done[n]; m != nil {
		return m
	}
	m := &node{dir: n.dir, ordered: n.ordered, modTime: n.modTime}
	c.done[n] = m
	switch {
	case n.dir && c.kill:
		m.children, m.stable = c.names(n.children), c.names(n.stable)
		for _, ch := range n.changes {
			nodes := make([]*node, len(ch.nodes))
			for i, child := range ch.nodes {
				if child != nil {
					nodes[i] = c.clone(child)
				}
			}
			m.changes = append(m.changes, change{ch.names, nodes, ch.local})
		}
	case n.dir:
		names := maps.Clone(n.stable)
	changes:
		for _, ch := range n.changes {
			switch {
			case !ch.local && c.keep():
				set(names, ch)
			case n.ordered:
				break changes
			}
		}
		m.children = c.names(names)
		m.stable = maps.Clone(m.children)
	case c.kill:
		m.content, m.stableSize = n.content.share(n.content.size), n.stableSize
		m.before, m.fresh = maps.Clone(n.before), maps.Clone(n.fresh) // what before holds is never written to
	default:
		m.content = c.file(n)
		m.before, m.fresh, m.stableSize = map[int64][]byte{}, map[int64]uint32{}, m.content.size
	}
	return m
}

// names clones the nodes of a directory, in order, so that a seed decides all.
func (c *cloner) names(from map[string]*node) map[string]*node {
	to := make(map[string]*node, len(from))
	for _, name := range slices.Sorted(maps.Keys(from)) {
		to[name] = c.clone(from[name])
	}
	return to
}

// file returns what a loss of power leaves of a file's bytes.
func (c *cloner) file(n *node) content {
	size := n.content.size
	if size > n.stableSize && !c.keep() {
		size = n.stableSize
	}
	left := n.content.share(size)
	lose := func(s int64) {
		if s*SectorBytes < size && !c.keep() {
			var sector [SectorBytes]byte
			copy(sector[:], n.before[s])
			left.writeAt(sector[:min(SectorBytes, size-s*SectorBytes)], s*SectorBytes)
		}
	}
	for _, s := range slices.Sorted(maps.Keys(n.before)) {
		lose(s)
	}
	for _, p := range slices.Sorted(maps.Keys(n.fresh)) {
		for set := n.fresh[p]; set != 0; set &= set - 1 {
			lose(p*pageSectors + int64(bits.TrailingZeros32(set)))
		}
	}
	return left
}
