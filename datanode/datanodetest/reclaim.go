package datanodetest

import (
	"errors"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

var reclaimRules = []rule{
	{"a birth holds its segment", func(e *env) {
		e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		if deleted := e.reclaim(); len(deleted) != 0 {
			e.Fatalf("deleted %v", deleted)
		}
		e.intact(s)
	}},
	{"a segment on which nothing is held is deleted, whole and for good", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		keep := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.release(o, 1, s)
		if deleted := e.reclaim(); !slices.Equal(deleted, []id.Segment{s.id()}) {
			e.Fatalf("deleted %v, want %s", deleted, s.id())
		}
		e.gone(s)
		e.intact(keep)
		hits, err := e.lookup(o, 2, s.fingerprints()...)
		e.ok(err)
		e.missed(hits)
		if got := e.listSegments(o, 0); !slices.Equal(got, []id.Segment{keep.id()}) {
			e.Fatalf("disk 1 lists %v", got)
		}
		if e.describe(s.id()).Known {
			e.Fatal("the deleted segment is still known")
		}
		e.reopen()
		e.gone(s)
		hits, err = e.lookup(o, 3, s.fingerprints()...)
		e.ok(err)
		e.missed(hits)
		if st := e.status().Index; st.Segments != 1 || st.Fingerprints != 3 {
			e.Fatalf("status %+v", st)
		}
	}},
	{"its space is free again", func(e *env) {
		o, _ := e.fence(1, 1)
		before := e.status()
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.release(o, 1, s)
		e.reclaim()
		after := e.status()
		for i := range after.Spindles {
			if after.Spindles[i].AllocatedBytes != before.Spindles[i].AllocatedBytes {
				e.Fatalf("spindle %+v, before %+v", after.Spindles[i], before.Spindles[i])
			}
		}
		if after.FreeBytes != before.FreeBytes {
			e.Fatalf("%d bytes free, %d before", after.FreeBytes, before.FreeBytes)
		}
	}},
	{"one disk's release does not free what another looked up", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		_, err := e.lookup(b, 1, s.fingerprints()[1])
		e.ok(err)
		e.release(a, 1, s)
		if deleted := e.reclaim(); len(deleted) != 0 {
			e.Fatalf("deleted %v", deleted)
		}
		hits, err := e.lookup(a, 2, s.fingerprints()...)
		e.ok(err)
		e.found(hits, s)
		e.release(a, 3, s)
		e.release(b, 2, s)
		if deleted := e.reclaim(); len(deleted) != 1 {
			e.Fatalf("deleted %v", deleted)
		}
	}},
	{"a lookup between release and reclaim saves the segment", func(e *env) {
		a, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.release(a, 1, s)
		hits, err := e.lookup(a, 2, s.fingerprints()[0])
		e.ok(err)
		deleted := e.reclaim()
		if hits[0].Found == slices.Contains(deleted, s.id()) {
			e.Fatalf("found %t and deleted %v", hits[0].Found, deleted)
		}
	}},
	{"a deleted segment is not published again", func(e *env) {
		o, _ := e.fence(1, 1)
		s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 3})
		e.release(o, 1, s)
		e.reclaim()
		e.fails("publish of a deleted segment", e.publish(s), datanode.ErrGone)
	}},
	{"Max bounds a call, More says that there is more", func(e *env) {
		o, _ := e.fence(1, 1)
		var all []*sample
		for range 5 {
			all = append(all, e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 1}))
		}
		e.release(o, 1, all...)
		deleted := 0
		for {
			reply, err := e.node.Reclaim(e.ctx(), &datanode.ReclaimRequest{Max: 2})
			e.ok(err)
			if len(reply.Deleted) > 2 {
				e.Fatalf("deleted %v with Max 2", reply.Deleted)
			}
			deleted += len(reply.Deleted)
			if !reply.More {
				break
			}
		}
		if deleted != 5 {
			e.Fatalf("deleted %d segments, want 5", deleted)
		}
	}},
	{"an index is completed by its incarnation only", func(e *env) {
		s := e.status().Index
		err := e.node.CompleteIndex(e.ctx(), &datanode.CompleteIndexRequest{Incarnation: s.Incarnation + 1})
		e.fails("another incarnation", err, datanode.ErrInvalid, datanode.ErrConflict, datanode.ErrNotFound, datanode.ErrStaleUpdate)
		e.ok(e.node.CompleteIndex(e.ctx(), &datanode.CompleteIndexRequest{Incarnation: s.Incarnation}))
		if !e.status().Index.Complete {
			e.Fatal("not complete")
		}
	}},
	{"lookups racing with deletion: what was found stays", raceLookups},
}

// raceLookups lets one disk release segments and another find their chunks at
// the same moment, with Reclaim running.
func raceLookups(e *env) {
	const segments = 24
	a, _ := e.fence(1, 1)
	b, _ := e.fence(2, 1)
	var all []*sample
	for range segments {
		all = append(all, e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 2}))
	}
	var found [segments]bool
	var failed [3]error
	var running sync.WaitGroup
	running.Go(func() {
		for i, s := range all {
			if _, err := e.setLists(a, id.Seq(i+1), s.list()); err != nil {
				failed[0] = err
			}
		}
	})
	running.Go(func() {
		for i, s := range all {
			hits, err := e.lookup(b, 1, s.fingerprints()[1])
			if err != nil {
				failed[1] = err
				return
			}
			found[i] = hits[0].Found
		}
	})
	running.Go(func() {
		for range segments {
			if _, err := e.node.Reclaim(e.ctx(), &datanode.ReclaimRequest{Max: 3}); err != nil {
				failed[2] = err
			}
		}
	})
	running.Wait()
	e.ok(errors.Join(failed[:]...))
	e.reclaim()
	for i, s := range all {
		if found[i] {
			e.intact(s)
			e.holds(2, s, 1)
		} else {
			e.gone(s)
		}
	}
}
