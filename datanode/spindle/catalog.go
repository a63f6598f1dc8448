package spindle

import (
	"cmp"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// fragment is a stored fragment. Its fields but the last three never change.
type fragment struct {
	segment id.Segment
	index   uint8
	bytes   uint32 // of data
	serial  uint64 // higher: newer
	parts   []part // in order: header, then data; nearly always one

	// Guarded by the spindle's mu.
	pins    int  // readers; the blocks stay theirs
	cleared bool // durably not in the table: free when the last reader leaves
}

// part is a run of a fragment's blocks and its entry in the slab's table.
type part struct {
	slab *slab
	slot uint32
	extent
}

func (f *fragment) blocks() uint32 { return fragmentBlocks(f.bytes) }

func (f *fragment) info() datanode.FragmentInfo {
	return datanode.FragmentInfo{
		Segment: f.segment, Index: f.index, Bytes: f.bytes, AllocatedBytes: f.blocks() * blockBytes,
	}
}

// slabs returns the slabs that the fragment lies in, each once.
func (f *fragment) slabs() []*slab {
	var out []*slab
	for _, p := range f.parts {
		if !slices.Contains(out, p.slab) {
			out = append(out, p.slab)
		}
	}
	return out
}

// name is what a fragment is known by on its spindle.
type name struct {
	segment id.Segment
	index   uint8
}

func (f *fragment) name() name { return name{f.segment, f.index} }

func (n name) compare(o name) int {
	return cmp.Or(cmp.Compare(n.segment, o.segment), cmp.Compare(n.index, o.index))
}

// catalog is a spindle's fragments in (segment, index) order. Numbers of
// segments rise within a layout, so with one list per layout a new fragment
// goes to the end of a list: nothing is moved, as it would be in one list.
type catalog struct {
	layouts []id.Layout // ascending, those with a list
	lists   map[id.Layout][]*fragment
	count   int64
	blocks  int64
}

func (c *catalog) find(n name) (list []*fragment, at int, found bool) {
	list = c.lists[n.segment.Layout()]
	at, found = slices.BinarySearchFunc(list, n, func(f *fragment, n name) int { return f.name().compare(n) })
	return list, at, found
}

// get returns nil if there is no such fragment.
func (c *catalog) get(n name) *fragment {
	list, at, found := c.find(n)
	if !found {
		return nil
	}
	return list[at]
}

// put adds f in place of the fragment of its name.
func (c *catalog) put(f *fragment) {
	list, at, found := c.find(f.name())
	if found {
		c.blocks += int64(f.blocks()) - int64(list[at].blocks())
		list[at] = f
		return
	}
	layout := f.segment.Layout()
	if len(list) == 0 {
		if c.lists == nil {
			c.lists = map[id.Layout][]*fragment{}
		}
		i, _ := slices.BinarySearch(c.layouts, layout)
		c.layouts = slices.Insert(c.layouts, i, layout)
	}
	c.lists[layout] = slices.Insert(list, at, f)
	c.count++
	c.blocks += int64(f.blocks())
}

// remove takes f itself out; another fragment of its name stays.
func (c *catalog) remove(f *fragment) {
	list, at, found := c.find(f.name())
	if !found || list[at] != f {
		return
	}
	layout := f.segment.Layout()
	c.lists[layout] = slices.Delete(list, at, at+1)
	if len(list) == 1 {
		delete(c.lists, layout)
		i, _ := slices.BinarySearch(c.layouts, layout)
		c.layouts = slices.Delete(c.layouts, i, i+1)
	}
	c.count--
	c.blocks -= int64(f.blocks())
}

// of returns the segment's fragments.
func (c *catalog) of(s id.Segment) []*fragment {
	list, at, _ := c.find(name{segment: s})
	end := at
	for end < len(list) && list[end].segment == s {
		end++
	}
	return slices.Clone(list[at:end])
}

// from returns up to n fragments in order, from the first one on that is not
// below start.
func (c *catalog) from(start name, n int) []*fragment {
	var out []*fragment
	i, _ := slices.BinarySearch(c.layouts, start.segment.Layout())
	for ; i < len(c.layouts) && len(out) < n; i++ {
		list := c.lists[c.layouts[i]]
		at := 0
		if c.layouts[i] == start.segment.Layout() {
			_, at, _ = c.find(start)
		}
		out = append(out, list[at:at+min(len(list)-at, n-len(out))]...)
	}
	return out
}
