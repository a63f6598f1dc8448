package datanodetest

import (
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

var forwardRules = []rule{
	{"a condemned segment is found no more, and what is held of it stays", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 4})
		_, err := e.lookup(b, 1, s.fingerprints()[2])
		e.ok(err)
		e.condemnAll(m, s)
		e.condemnAll(m, s)
		check := func(seq id.Seq) {
			hits, err := e.lookup(b, seq, s.fingerprints()...)
			e.ok(err)
			e.missed(hits)
			e.state(s, datanode.StateCondemned)
			e.holds(1, s, 4)
			e.holds(2, s, 1)
			if deleted := e.reclaim(); len(deleted) != 0 {
				e.Fatalf("deleted %v", deleted)
			}
		}
		check(2)
		e.reopen()
		check(3)
		e.intact(s)
		e.ok(e.publish(s)) // a repeated call
		check(4)
		e.release(a, 1, s)
		e.release(b, 5, s)
		if deleted := e.reclaim(); !slices.Equal(deleted, []id.Segment{s.id()}) {
			e.Fatalf("deleted %v", deleted)
		}
	}},
	{"what is stored again of a condemned segment is found there", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.condemnAll(m, s)
		again := e.copied(s.moves(0, 1, 2)...)
		hits, err := e.lookup(a, 1, s.fingerprints()...)
		e.ok(err)
		e.found(hits, again)
	}},
	{"only live segments of chunks are condemned, so many at a time", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		object := e.make(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		object.entry.Header.Kind, object.entry.Slots = datanode.KindObject, nil
		e.write(object)
		e.ok(e.publish(object))
		gone := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		e.release(a, 1, gone)
		e.reclaim()
		got, err := e.condemn(m, object.id(), gone.id(), id.MakeSegment(0, 999))
		e.ok(err)
		if len(got) != 0 {
			e.Fatalf("condemned %v", got)
		}
		e.state(object, datanode.StateLive)
		var all []id.Segment
		var samples []*sample
		for n := range uint64(datanode.TransitMax + 5) {
			samples = append(samples, e.makeNumber(1000+n, datanode.Birth{Disk: 1, Epoch: 1, Slots: 1}))
			all = append(all, samples[n].id())
		}
		e.ok(e.publish(samples[:datanode.SegmentsMax]...))
		e.ok(e.publish(samples[datanode.SegmentsMax:]...))
		got, err = e.condemn(m, all[:datanode.SegmentsMax]...)
		e.ok(err)
		more, err := e.condemn(m, all[datanode.SegmentsMax:]...)
		e.ok(err)
		if len(got)+len(more) != datanode.TransitMax {
			e.Fatalf("condemned %d and %d segments", len(got), len(more))
		}
	}},
	{"copies are held by all who hold what was moved, and by nobody else", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3}, datanode.Birth{Disk: 2, Epoch: 1, Slots: 2})
		_, err := e.lookup(b, 1, s.fingerprints()[1])
		e.ok(err)
		_, err = e.setLists(a, 1, s.list(0, 1))
		e.ok(err)
		e.condemnAll(m, s)
		moves := s.moves(1, 0, 4, 3)
		copied := e.copied(moves...)
		for range 2 { // it may be repeated
			e.ok(e.forward(m, copied.id(), moved(copied, moves...)...))
		}
		e.release(m, 1, copied)
		e.reopen()
		e.holds(1, copied, 2)
		e.holds(2, copied, 3)
		e.holds(mover, copied, 0)
		e.holds(1, s, 2)
		e.holds(2, s, 3)
		e.state(s, datanode.StateForwarded)
		want := []datanode.SlotMove{}
		for _, i := range []int{1, 0, 3, 2} {
			want = append(want, datanode.SlotMove{Slot: moves[i].slot, To: id.Ref{
				Segment: copied.id(), Slot: id.Slot(i), Location: copied.entry.Slots[i].Location,
			}})
		}
		if got := e.forwards(0); len(got) != 1 || !slices.Equal(got[s.id()], want) {
			e.Fatalf("forwards %+v, want %+v", got, want)
		}
		if got := e.listSegments(b, 0); !slices.Contains(got, copied.id()) {
			e.Fatalf("disk 2 lists %v", got)
		}
	}},
	{"a segment is forwarded when all held of it is moved, into however many", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 4})
		other := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, s, other)
		e.move(m, 1, append(s.moves(0), other.moves(0, 1)...)...)
		e.state(s, datanode.StateCondemned)
		e.state(other, datanode.StateForwarded)
		_, err := e.setLists(a, 1, s.list(0, 3))
		e.ok(err)
		e.state(s, datanode.StateCondemned)
		e.move(m, 2, s.moves(3)...)
		e.state(s, datanode.StateForwarded)
		for _, max := range []int{0, 1} {
			if got := e.forwards(max); len(got) != 2 || len(got[s.id()]) != 2 || len(got[other.id()]) != 2 {
				e.Fatalf("pages of %d: %+v", max, got)
			}
		}
	}},
	{"when all that is not moved is given up, a segment is forwarded", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 4})
		e.condemnAll(m, s)
		e.move(m, 1, s.moves(0, 1)...)
		e.state(s, datanode.StateCondemned)
		_, err := e.setLists(a, 1, s.list(1))
		e.ok(err)
		e.state(s, datanode.StateForwarded)
	}},
	{"a list of the copy takes nothing from who holds the source", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 4})
		e.condemnAll(m, s)
		copied := e.move(m, 1, s.moves(0, 1, 2, 3)...)
		refused, err := e.setLists(a, 1, s.list(0, 2), copied.list(1))
		e.ok(err)
		if len(refused) != 0 {
			e.Fatalf("refused %v", refused)
		}
		e.holds(1, copied, 3) // 0 and 2 by their moves
		refused, err = e.setLists(a, 2, copied.list())
		e.ok(err)
		if len(refused) != 0 {
			e.Fatalf("refused %v", refused)
		}
		e.holds(1, copied, 2)
		if deleted := e.reclaim(); len(deleted) != 0 {
			e.Fatalf("deleted %v", deleted)
		}
		// Both in one call, in whatever order.
		_, err = e.setLists(a, 3, copied.list(2), s.list())
		e.ok(err)
		e.holds(1, copied, 1)
		if deleted := e.reclaim(); !slices.Equal(deleted, []id.Segment{s.id()}) {
			e.Fatalf("deleted %v", deleted)
		}
		if got := e.forwards(0); len(got) != 0 {
			e.Fatalf("forwards %+v", got)
		}
		e.intact(copied)
	}},
	{"a late list of the copy is refused once the source is given up", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, s)
		copied := e.move(m, 1, s.moves(0, 1)...)
		_, err := e.setLists(a, 7, s.list())
		e.ok(err)
		refused, err := e.setLists(a, 6, copied.list())
		e.ok(err)
		if !slices.Equal(refused, []id.Segment{copied.id()}) {
			e.Fatalf("refused %v", refused)
		}
		e.holds(1, copied, 2)
		e.release(a, 8, copied)
		e.holds(1, copied, 0)
	}},
	{"who comes to hold a source comes to hold the copy", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, s)
		copied := e.move(m, 1, s.moves(1, 0)...)
		_, err := e.setLists(b, 1, s.list(0)) // a disk that shares what the first one holds
		e.ok(err)
		e.release(a, 1, s, copied)
		e.holds(2, copied, 1)
		e.reclaim()
		e.intact(s)
		e.intact(copied)
	}},
	{"a copy that goes takes its moves along", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.condemnAll(m, s)
		_, err := e.setLists(a, 1, s.list(2))
		e.ok(err)
		copied := e.move(m, 1, s.moves(0, 1)...) // of what nobody holds any more
		e.state(s, datanode.StateCondemned)
		if deleted := e.reclaim(); !slices.Equal(deleted, []id.Segment{copied.id()}) {
			e.Fatalf("deleted %v", deleted)
		}
		if got := e.forwards(0); len(got) != 0 {
			e.Fatalf("forwards %+v", got)
		}
		e.fails("forward to what is gone", e.forward(m, copied.id(), moved(copied, s.moves(0)...)...), datanode.ErrGone)
	}},
	{"moves of what is gone meanwhile are passed over", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		other := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, s, other)
		moves := append(s.moves(0, 1), other.moves(1)...)
		copied := e.copied(moves...)
		e.release(a, 1, s)
		e.reclaim()
		e.ok(e.forward(m, copied.id(), moved(copied, moves...)...))
		if got := e.forwards(0); len(got) != 1 || len(got[other.id()]) != 1 {
			e.Fatalf("forwards %+v", got)
		}
		e.holds(1, copied, 1)
	}},
	{"a slot that has a move keeps it", func(e *env) {
		e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, s)
		first := e.move(m, 1, s.moves(0)...)
		second := e.move(m, 2, s.moves(0, 1)...)
		got := e.forwards(0)[s.id()]
		if len(got) != 2 || got[0].To.Segment != first.id() || got[1].To.Segment != second.id() {
			e.Fatalf("moves %+v", got)
		}
		e.holds(1, first, 1)
		e.holds(1, second, 1)
	}},
	{"a copy can be moved on", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, s)
		first := e.move(m, 1, s.moves(0, 1)...)
		e.condemnAll(m, first)
		second := e.move(m, 2, first.moves(1, 0)...)
		e.holds(1, second, 2)
		e.release(a, 1, second, first) // while it holds the first of the three
		e.holds(1, first, 2)
		e.holds(1, second, 2)
		_, err := e.setLists(a, 2, second.list(0), first.list(), s.list())
		e.ok(err)
		e.holds(1, first, 0)
		e.holds(1, second, 1)
	}},
	{"moves that cannot be are refused, and none of their call is recorded", func(e *env) {
		a, _ := e.fence(1, 1)
		m, _ := e.fence(mover, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		live := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		e.condemnAll(m, s)
		moves := s.moves(0, 1)
		copied := e.copied(moves...)
		right := moved(copied, moves...)
		with := func(change func(*datanode.Move)) []datanode.Move {
			bad := slices.Clone(right)
			change(&bad[1])
			return bad
		}
		for name, bad := range map[string][]datanode.Move{
			"another chunk":           with(func(m *datanode.Move) { m.Slot = 2 }),
			"another place":           with(func(m *datanode.Move) { m.Location = right[0].Location }),
			"a slot that is not here": with(func(m *datanode.Move) { m.To = 2 }),
			"a slot that never was":   with(func(m *datanode.Move) { m.Slot = 3 }),
			"a live source":           append(slices.Clone(right), moved(live, live.moves(0)...)...),
			"an unknown source":       with(func(m *datanode.Move) { m.From = id.MakeSegment(0, 999) }),
		} {
			e.fails(name, e.forward(m, copied.id(), bad...), datanode.ErrInvalid)
		}
		e.fails("unknown copy", e.forward(m, id.MakeSegment(0, 999), right...), datanode.ErrInvalid)
		other := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2})
		e.condemnAll(m, other)
		e.fails("condemned copy", e.forward(m, other.id(), right...), datanode.ErrInvalid)
		if got := e.forwards(0); len(got) != 0 {
			e.Fatalf("forwards %+v", got)
		}
		e.holds(1, copied, 0)
		e.release(a, 1, s)
	}},
	{"usage tells who holds how much", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		m, _ := e.fence(mover, 1)
		before := e.status()
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 8}, datanode.Birth{Disk: 2, Epoch: 1, Slots: 4})
		after := e.status()
		free := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1})
		e.release(a, 1, free)
		_, err := e.setLists(a, 2, s.list(0, 7, 9, 10))
		e.ok(err)
		_, err = e.lookup(b, 1, s.fingerprints()[0])
		e.ok(err)
		_, err = e.setLists(b, 2, datanode.List{Segment: id.MakeSegment(0, 500), Bits: []byte{1}}) // not known
		e.ok(err)
		e.condemnAll(m, s)
		stored := int64(0)
		for i := range after.Spindles {
			stored += after.Spindles[i].AllocatedBytes - before.Spindles[i].AllocatedBytes
		}
		for _, max := range []int{0, 1} {
			got := e.usage(max)
			if len(got) != 2 || got[0].Segment != s.id() || got[1].Segment != free.id() {
				e.Fatalf("usage %+v", got)
			}
			u := got[0]
			disks := []datanode.DiskUse{{Disk: 1, Slots: 4, Exclusive: 1}, {Disk: 2, Slots: 5, Exclusive: 2}}
			if u.State != datanode.StateCondemned || u.Kind != datanode.KindChunks || u.Slots != 12 || u.LiveSlots != 6 ||
				u.SealedBytes != 12*sampleSlotBytes || u.StoredBytes != stored || !slices.Equal(u.Disks, disks) {
				e.Fatalf("%+v, want %+v in %d bytes", u, disks, stored)
			}
			if got[1].LiveSlots != 0 || len(got[1].Disks) != 0 {
				e.Fatalf("%+v", got[1])
			}
		}
	}},
	{"moves racing with lists, lookups and deletion: what was found stays", raceForwards},
}
