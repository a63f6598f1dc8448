package spindle

import (
	"fmt"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx"
)

// buffers holds byte slices of up to a fragment's length, aligned for direct
// writes.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func buffer(n int) *[]byte {
	b := buffers.Get().(*[]byte)
	if cap(*b) < n {
		*b = vfsx.AlignedBytes(n)
	}
	*b = (*b)[:n]
	return b
}

// write stores one fragment: data first, then its entries, each stable before
// the next step, so that an entry never names blocks that hold something else.
func (sp *spindle) write(h *datanode.SegmentHeader, fr *datanode.Fragment, replace bool) *datanode.Error {
	if failed := sp.enter(); failed != nil {
		return failed
	}
	defer sp.leave()
	f := &fragment{segment: h.Segment, index: fr.Index, bytes: uint32(len(fr.Data))}
	p, failed := sp.begin(f, replace)
	if failed != nil {
		return failed
	}
	if err := sp.writeData(h, f, fr.Data); err != nil {
		if vfsx.IsNoSpace(err) {
			sp.abandon(f)
			return sp.noSpace(f, err.Error())
		}
		return sp.fault(fmt.Errorf("write fragment %d of segment %s: %w", f.index, f.segment, err))
	}
	if err := f.syncSlabs(); err != nil {
		return sp.fault(err)
	}
	for i := range f.parts {
		if err := f.parts[i].writeEntry(f, i); err != nil {
			return sp.fault(fmt.Errorf("write table entry: %w", err))
		}
	}
	if err := f.syncSlabs(); err != nil {
		return sp.fault(err)
	}
	if err := sp.present(); err != nil {
		return sp.fault(err)
	}
	return sp.commit(f, p)
}

// begin finds blocks for f, whose name then belongs to this write until commit
// or abandon. Where no slab has them together it makes another slab, and where
// there can be none it takes them in pieces.
func (sp *spindle) begin(f *fragment, replace bool) (*pending, *datanode.Error) {
	pieces := false
	for {
		p, made, err := sp.try(f, replace, pieces)
		if p != nil || err != nil {
			return p, err
		}
		if pieces, err = sp.grow(made); err != nil {
			return nil, err
		}
	}
}

// try returns neither if there are no blocks to be had so, and how many slabs
// there were.
func (sp *spindle) try(f *fragment, replace, pieces bool) (*pending, int, *datanode.Error) {
	if pieces {
		sp.growMu.Lock() // see retire
		defer sp.growMu.Unlock()
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err := sp.unavailable(); err != nil {
		return nil, 0, err
	}
	switch {
	case sp.pending[f.name()] != nil:
		return nil, 0, datanode.Errorf(datanode.ErrInvalid, "fragment %d of segment %s is being written", f.index, f.segment)
	case sp.catalog.get(f.name()) != nil && !replace:
		return nil, 0, datanode.Errorf(datanode.ErrInvalid, "fragment %d of segment %s exists", f.index, f.segment)
	case sp.freeBlocks < int64(f.blocks()):
		return nil, 0, sp.noSpace(f, "spindle is full")
	case sp.allocate(f) || pieces && sp.scatter(f):
		sp.serial++
		f.serial = sp.serial
		sp.freeBlocks -= int64(f.blocks())
		p := &pending{}
		sp.pending[f.name()] = p
		return p, 0, nil
	case pieces:
		return nil, 0, sp.noSpace(f, "spindle or file system is full")
	}
	return nil, sp.made(), nil
}

// made counts the slabs that there are.
func (sp *spindle) made() int {
	n := 0
	for _, s := range sp.slabs {
		if s != nil {
			n++
		}
	}
	return n
}

func (sp *spindle) noSpace(f *fragment, cause string) *datanode.Error {
	return datanode.Errorf(datanode.ErrNoSpace, "write fragment %d of segment %s to spindle %d (%s): %s",
		f.index, f.segment, sp.number, sp.dir, cause)
}

// allocate gives f the first free blocks that lie together. Callers hold mu.
func (sp *spindle) allocate(f *fragment) bool {
	for _, s := range sp.slabs {
		if s == nil {
			continue
		}
		if e, ok := s.free.take(f.blocks()); ok {
			f.parts = []part{{s, s.slots.take(), e}}
			return true
		}
	}
	return false
}

// scatter gives f free blocks wherever they lie, so that free space never
// becomes unusable. Callers hold mu and growMu.
func (sp *spindle) scatter(f *fragment) bool {
	need := f.blocks()
	total := uint64(0)
	for _, s := range sp.slabs {
		if s != nil {
			total += uint64(s.free.blocks)
		}
	}
	if total < uint64(need) {
		return false
	}
	for _, s := range sp.slabs {
		for s != nil && need > 0 {
			e, ok := s.free.takeSome(need)
			if !ok {
				break
			}
			need -= e.n
			f.parts = append(f.parts, part{s, s.slots.take(), e})
		}
	}
	return true
}

// grow makes a slab, unless another write has since the caller saw that many.
// It reports full if there can be none.
func (sp *spindle) grow(seen int) (full bool, failed *datanode.Error) {
	sp.growMu.Lock()
	defer sp.growMu.Unlock()
	sp.mu.Lock()
	made, number := sp.made(), slices.Index(sp.slabs, nil)
	sp.mu.Unlock()
	if made != seen {
		return false, nil
	}
	if number < 0 {
		return true, nil
	}
	s, err := sp.createSlab(uint32(number))
	if vfsx.IsNoSpace(err) {
		sp.log.Warn("the file system has no room for another slab", "cause", err)
		return true, nil
	}
	if err != nil {
		return false, sp.fault(err)
	}
	return false, sp.retire(s)
}

// retire makes s the newest slab and gives the free blocks of the one before it
// back to the file system. Meanwhile they are nobody's: who needs every free
// block holds growMu, as callers do.
func (sp *spindle) retire(s *slab) *datanode.Error {
	before := sp.newest
	sp.newest = s
	sp.mu.Lock()
	sp.slabs[s.head.slab] = s
	var rest []extent
	if before != nil {
		rest = before.free.takeAll()
	}
	sp.mu.Unlock()
	for _, e := range rest {
		if err := before.punch(e); err != nil {
			return sp.fault(fmt.Errorf("punch %s: %w", before.path, err))
		}
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	for _, e := range rest {
		before.free.put(e)
	}
	return nil
}

// writeData writes header and data, not yet durably.
func (sp *spindle) writeData(h *datanode.SegmentHeader, f *fragment, data []byte) error {
	head := buffer(int(headerBlocks(f.bytes)) * blockBytes)
	defer buffers.Put(head)
	encodeHeader(*head, &sp.pool, h, f.index, f.serial, data)
	rest := [][]byte{*head, data}
	for _, p := range f.parts {
		if err := p.slab.reach(p.slot); err != nil {
			return err
		}
		var pieces [][]byte
		for n := int(p.n) * blockBytes; n > 0; {
			k := min(n, len(rest[0]))
			pieces = append(pieces, rest[0][:k])
			n -= k
			if rest[0] = rest[0][k:]; len(rest[0]) == 0 {
				rest = rest[1:]
			}
		}
		if err := p.slab.write(pieces, int64(p.start)*blockBytes); err != nil {
			return err
		}
	}
	return nil
}

func (f *fragment) syncSlabs() error {
	for _, s := range f.slabs() {
		if err := s.sync(); err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
	}
	return nil
}

// abandon gives back what begin took.
func (sp *spindle) abandon(f *fragment) {
	sp.mu.Lock()
	delete(sp.pending, f.name())
	sp.mu.Unlock()
	sp.release([]*fragment{f})
}

// commit makes a stable fragment visible and removes the one it replaces. If
// the segment was deleted meanwhile, the fragment goes too.
func (sp *spindle) commit(f *fragment, p *pending) *datanode.Error {
	sp.mu.Lock()
	if err := sp.unavailable(); err != nil {
		sp.mu.Unlock()
		return err
	}
	delete(sp.pending, f.name())
	if p.cancelled {
		sp.mu.Unlock()
		if err := sp.erase([]*fragment{f}); err != nil {
			return err
		}
		return datanode.Errorf(datanode.ErrGone, "segment %s was deleted while its fragment %d was written", f.segment, f.index)
	}
	old := sp.catalog.get(f.name())
	sp.catalog.put(f)
	sp.mu.Unlock()
	if old == nil {
		return nil
	}
	return sp.erase([]*fragment{old})
}

// remove deletes the segment's fragments, durably.
func (sp *spindle) remove(segment id.Segment) *datanode.Error {
	sp.mu.Lock()
	if err := sp.unavailable(); err != nil {
		sp.mu.Unlock()
		return err
	}
	sp.calls.Add(1)
	defer sp.leave()
	gone := sp.catalog.of(segment)
	for _, f := range gone {
		sp.catalog.remove(f)
	}
	for n, p := range sp.pending {
		if n.segment == segment {
			p.cancelled = true
		}
	}
	sp.mu.Unlock()
	return sp.erase(gone)
}

// erase clears the entries of fragments that are no longer in the catalog, and
// then frees their blocks, as soon as nobody reads them.
func (sp *spindle) erase(gone []*fragment) *datanode.Error {
	for _, f := range gone {
		for _, p := range f.parts {
			if err := p.slab.clearEntry(p.slot); err != nil {
				return sp.fault(fmt.Errorf("clear table entry: %w", err))
			}
		}
	}
	for _, f := range gone {
		if err := f.syncSlabs(); err != nil {
			return sp.fault(err)
		}
	}
	var idle []*fragment
	sp.mu.Lock()
	for _, f := range gone {
		f.cleared = true
		if f.pins == 0 {
			idle = append(idle, f)
		}
	}
	sp.mu.Unlock()
	return sp.release(idle)
}

// release frees the blocks of fragments that nothing names any more.
func (sp *spindle) release(idle []*fragment) *datanode.Error {
	for _, f := range idle {
		for _, p := range f.parts {
			if err := p.slab.punch(p.extent); err != nil {
				return sp.fault(fmt.Errorf("punch %s: %w", p.slab.path, err))
			}
		}
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	for _, f := range idle {
		for _, p := range f.parts {
			p.slab.free.put(p.extent)
			p.slab.slots.put(p.slot)
		}
		sp.freeBlocks += int64(f.blocks())
	}
	return nil
}
