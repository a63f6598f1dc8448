package crashfs

import (
	"maps"
	"slices"
	"time"
)

// node is a file or a directory. The FS's mutex guards it.
type node struct {
	dir     bool
	ordered bool // of a directory: its changes arrive in order
	modTime time.Time

	// Of a file. before holds, for each sector written since the last sync, what
	// the sector held then; nil where it lay wholly behind stableSize, and so
	// held zeros. Bytes of a sector behind stableSize count as zeros too.
	// Other trees may have the same data while it is shared: it is copied before it
	// is written to.
	data       []byte
	shared     bool
	before     map[int64][]byte
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
	return &node{modTime: time.Now(), before: map[int64][]byte{}}
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
	n.stableSize = int64(len(n.data))
}

func (n *node) writeAt(p []byte, off int64) {
	n.modTime = time.Now()
	end := off + int64(len(p))
	if len(p) == 0 {
		return
	}
	for s := off / SectorBytes; s*SectorBytes < end; s++ {
		if _, dirty := n.before[s]; !dirty {
			n.before[s] = n.stableSector(s)
		}
	}
	if room := int64(cap(n.data)); end > room || n.shared {
		if end > room {
			room = max(end, 2*room)
		}
		n.data, n.shared = append(make([]byte, 0, room), n.data...), false
	}
	if old := int64(len(n.data)); end > old {
		n.data = n.data[:end]
		clear(n.data[old:])
	}
	copy(n.data[off:], p)
}

// stableSector copies a sector that is as it was at the last sync.
func (n *node) stableSector(s int64) []byte {
	start, end := s*SectorBytes, min((s+1)*SectorBytes, n.stableSize)
	if start >= end {
		return nil
	}
	return slices.Clone(n.data[start:end])
}

// forget lets go of what a tree holds; open files may still have its nodes.
func (n *node) forget() {
	for _, names := range []map[string]*node{n.children, n.stable} {
		for _, child := range names {
			if child.data != nil || child.dir {
				child.forget()
			}
		}
	}
	n.data, n.before, n.children, n.stable, n.changes = nil, nil, nil, nil, nil
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
		m.data, m.stableSize = n.data, n.stableSize
		m.shared, n.shared = true, true
		m.before = maps.Clone(n.before) // what it holds is never written to
	default:
		m.data, m.shared = c.file(n)
		n.shared = n.shared || m.shared
		m.before, m.stableSize = map[int64][]byte{}, int64(len(m.data))
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

// file returns what a loss of power leaves of a file's bytes, and whether they are
// still those of the node.
func (c *cloner) file(n *node) (data []byte, shared bool) {
	size := int64(len(n.data))
	if size > n.stableSize && !c.keep() {
		size = n.stableSize
	}
	data, shared = n.data[:size], true
	for _, s := range slices.Sorted(maps.Keys(n.before)) {
		if s*SectorBytes >= size || c.keep() {
			continue
		}
		if shared {
			data, shared = slices.Clone(data), false
		}
		sector := data[s*SectorBytes : min((s+1)*SectorBytes, size)]
		clear(sector[copy(sector, n.before[s]):])
	}
	return data, shared
}
