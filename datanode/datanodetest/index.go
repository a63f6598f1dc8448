package datanodetest

import (
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// found fails the test unless all hits are the sample's slots.
func (e *env) found(hits []datanode.Hit, s *sample) {
	e.Helper()
	for i, h := range hits {
		slot := s.entry.Slots[i]
		want := id.Ref{Segment: s.id(), Slot: slot.Slot, Location: slot.Location}
		if !h.Found || h.Ref != want {
			e.Fatalf("fingerprint %d: got %+v, want %+v", i, h, want)
		}
	}
}

func (e *env) missed(hits []datanode.Hit) {
	e.Helper()
	for i, h := range hits {
		if h.Found {
			e.Fatalf("fingerprint %d is found at %+v", i, h.Ref)
		}
	}
}

func (e *env) listSegments(o owner, max int) []id.Segment {
	e.Helper()
	var all []id.Segment
	r := &datanode.ListSegmentsRequest{Disk: o.disk, Epoch: o.epoch, Max: max}
	for {
		reply, err := e.node.ListSegments(e.ctx(), r)
		e.ok(err)
		if max > 0 && len(reply.Segments) > max {
			e.Fatalf("a page of %d, asked for at most %d", len(reply.Segments), max)
		}
		all = append(all, reply.Segments...)
		if !reply.More {
			return all
		}
		if len(reply.Segments) == 0 {
			e.Fatal("an empty page says that there is more")
		}
		r.After = all[len(all)-1]
	}
}

var indexRules = []rule{
	{"a published fingerprint is found, another is not", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 6})
		stranger := e.make(datanode.Birth{Disk: 1, Epoch: 1, Slots: 6})
		hits, err := e.lookup(o, 1, append(s.fingerprints(), stranger.fingerprints()...)...)
		e.ok(err)
		e.found(hits[:6], s)
		e.missed(hits[6:])
	}},
	{"a fingerprint asked for twice in one call is found twice", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		f := s.fingerprints()[0]
		hits, err := e.lookup(o, 1, f, f)
		e.ok(err)
		e.found(hits[:1], s)
		e.found(hits[1:], s)
	}},
	{"what was published survives its node", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 6})
		e.reopen()
		hits, err := e.lookup(o, 1, s.fingerprints()...)
		e.ok(err)
		e.found(hits, s)
		e.holds(1, s, 6)
	}},
	{"publishing again is harmless", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 6})
		before := e.status().Index
		e.ok(e.publish(s))
		e.ok(e.publish(s, s))
		if after := e.status().Index; after != before {
			e.Fatalf("index went from %+v to %+v", before, after)
		}
		hits, err := e.lookup(o, 1, s.fingerprints()...)
		e.ok(err)
		e.found(hits, s)
	}},
	{"of two segments with one fingerprint, both slots are held", func(e *env) {
		e.fence(1, 1)
		o, _ := e.fence(2, 1)
		first := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		second := e.make(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		second.entry.Slots[1].Fingerprint = first.entry.Slots[1].Fingerprint
		e.write(second)
		e.ok(e.publish(second))
		hits, err := e.lookup(o, 1, first.fingerprints()[1])
		e.ok(err)
		if !hits[0].Found || hits[0].Ref.Slot != 1 || hits[0].Ref.Segment != first.id() && hits[0].Ref.Segment != second.id() {
			e.Fatalf("hit %+v", hits[0])
		}
		e.holds(1, first, 2)
		e.holds(1, second, 2)
	}},
	{"a lookup registers each hit, and nothing else", func(e *env) {
		e.fence(1, 1)
		o, _ := e.fence(2, 4)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 20})
		e.holds(2, s, 0)
		_, err := e.lookup(o, 3, s.fingerprints()[2], s.fingerprints()[17])
		e.ok(err)
		var list datanode.DiskList
		for _, l := range e.describe(s.id()).Lists {
			if l.Disk == 2 {
				list = l
			}
		}
		if list.Epoch != 4 || list.Seq != 3 || !slices.Equal(list.Bits, bits(2, 17)) {
			e.Fatalf("list %+v, want slots 2 and 17 under (4, 3)", list)
		}
		_, err = e.lookup(o, 3, s.fingerprints()[5])
		e.ok(err)
		e.holds(2, s, 3)
		e.holds(1, s, 20)
	}},
	{"registrations are stable after the next Publish", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 4})
		_, err := e.lookup(b, 1, s.fingerprints()...)
		e.ok(err)
		e.ok(e.publish())
		e.reopen()
		e.holds(2, s, 4)
		e.release(a, 1, s)
		if deleted := e.reclaim(); len(deleted) != 0 {
			e.Fatalf("deleted %v", deleted)
		}
		e.intact(s)
	}},
	{"a list replaces what the disk held, births included", func(e *env) {
		o, _ := e.fence(1, 1)
		other, _ := e.fence(2, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 5}, datanode.Birth{Disk: 2, Epoch: 1, Slots: 3})
		refused, err := e.setLists(o, 1, s.list(0, 4))
		e.ok(err)
		if len(refused) != 0 {
			e.Fatalf("refused %v", refused)
		}
		e.holds(1, s, 2)
		e.holds(2, s, 3)
		e.release(other, 1, s)
		e.holds(2, s, 0)
		e.reopen()
		e.holds(1, s, 2)
		e.holds(2, s, 0)
	}},
	{"a list at or below the last update is refused and changes nothing", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 8})
		_, err := e.setLists(o, 5, s.list(1, 2, 3))
		e.ok(err)
		for _, seq := range []id.Seq{5, 4} {
			refused, err := e.setLists(o, seq, s.list())
			e.ok(err)
			if !slices.Equal(refused, []id.Segment{s.id()}) {
				e.Fatalf("update %d after 5: refused %v", seq, refused)
			}
			e.holds(1, s, 3)
		}
		n, _ := e.fence(1, 2)
		_, err = e.setLists(n, 1, s.list(1))
		e.ok(err)
		e.holds(1, s, 1)
	}},
	{"a clear that a registration has overtaken is refused", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		_, err := e.setLists(o, 2, s.list(0))
		e.ok(err)
		_, err = e.lookup(o, 9, s.fingerprints()[1])
		e.ok(err)
		refused, err := e.setLists(o, 8, s.list())
		e.ok(err)
		if len(refused) != 1 {
			e.Fatalf("refused %v", refused)
		}
		e.holds(1, s, 2)
	}},
	{"a registration below the last update is refused", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		_, err := e.setLists(o, 5, s.list(0))
		e.ok(err)
		_, err = e.lookup(o, 4, s.fingerprints()...)
		e.fails("lookup under an older sequence number", err, datanode.ErrStaleUpdate)
		e.holds(1, s, 1)
	}},
	{"a disk lists its segments in order, by birth and by registration", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		var segments []id.Segment
		for _, n := range []uint64{8, 2, 11, 5} {
			s := e.makeNumber(n, datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
			e.write(s)
			e.ok(e.publish(s))
			segments = append(segments, s.id())
			if n == 11 {
				_, err := e.lookup(b, 1, s.fingerprints()...)
				e.ok(err)
			}
		}
		slices.Sort(segments)
		for _, max := range []int{0, 1, 3} {
			if got := e.listSegments(a, max); !slices.Equal(got, segments) {
				e.Fatalf("disk 1, pages of %d: %v, want %v", max, got, segments)
			}
		}
		if got := e.listSegments(b, 0); !slices.Equal(got, []id.Segment{id.MakeSegment(0, 11)}) {
			e.Fatalf("disk 2: %v", got)
		}
		_, err := e.setLists(a, 1, datanode.List{Segment: id.MakeSegment(0, 2)})
		e.ok(err)
		if got := e.listSegments(a, 0); !slices.Equal(got, segments[1:]) {
			e.Fatalf("disk 1 after a release: %v, want %v", got, segments[1:])
		}
	}},
	{"a description has the slots, births and sizes", func(e *env) {
		e.fence(1, 1)
		s := e.store(sampleBirths...)
		d := e.describe(s.id())
		if !d.Known || d.State != datanode.StateLive || d.Kind != datanode.KindChunks || d.K != sampleK || d.M != sampleM ||
			d.FragmentBytes != sampleFragmentBytes || d.SlotCount != 8 ||
			d.SealedBytes != 8*sampleSlotBytes || d.PlainBytes != 8*4096 {
			e.Fatalf("description %+v", d)
		}
		if !slices.Equal(d.Slots, s.entry.Slots) || len(d.Dangling) != 0 {
			e.Fatalf("slots %+v, dangling %v", d.Slots, d.Dangling)
		}
		if !slices.Equal(d.Births, sampleBirths) {
			e.Fatalf("births %+v", d.Births)
		}
		if d := e.describe(id.MakeSegment(0, 999)); d.Known {
			e.Fatalf("a segment that was never published: %+v", d)
		}
	}},
	{"a walk describes every segment once", func(e *env) {
		e.fence(1, 1)
		for range 7 {
			e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		}
		var walked []id.Segment
		r := &datanode.DescribeSegmentsRequest{Max: 3}
		for more := true; more; {
			reply, err := e.node.DescribeSegments(e.ctx(), r)
			e.ok(err)
			for _, d := range reply.Segments {
				walked = append(walked, d.Segment)
			}
			if more = reply.More; more {
				r.After = walked[len(walked)-1]
			}
		}
		if len(walked) != 7 || !slices.IsSorted(walked) {
			e.Fatalf("walked %v", walked)
		}
	}},
	{"status counts segments, fingerprints and bytes", func(e *env) {
		e.fence(1, 1)
		e.store(sampleBirths...)
		object := e.make(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		object.entry.Header.Kind = datanode.KindObject
		object.entry.Header.DataBytes = 5000
		object.entry.Slots = nil
		e.write(object)
		e.ok(e.publish(object))
		s := e.status().Index
		if s.Segments != 2 || s.Fingerprints != 8 || s.PlainBytes != 8*4096 ||
			s.SealedBytes != 8*sampleSlotBytes || s.ObjectBytes != 5000 {
			e.Fatalf("status %+v", s)
		}
		e.holds(1, object, 1)
	}},
}
