package datanodetest

import (
	"errors"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// raceForwards moves segments while one disk looks their chunks up and says what
// it needs of old and new ones, another publishes, and Reclaim runs.
func raceForwards(e *env) {
	const segments, slots = 12, 3
	a, _ := e.fence(1, 1)
	b, _ := e.fence(2, 1)
	m, _ := e.fence(mover, 1)
	var all, copies []*sample
	for range segments {
		all = append(all, e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: slots}))
	}
	for _, s := range all {
		c := e.make(datanode.Birth{Disk: mover, Epoch: 1, Slots: slots})
		for i := range c.entry.Slots {
			c.entry.Slots[i].Fingerprint = s.entry.Slots[i].Fingerprint
		}
		e.write(c)
		copies = append(copies, c)
	}
	found := make([]map[id.Segment]bool, segments) // where disk 2 has slot 1
	var failed [4]error
	var running sync.WaitGroup
	running.Go(func() {
		for i, s := range all {
			_, err := e.condemn(m, s.id())
			if err == nil {
				err = e.publish(copies[i])
			}
			if err == nil {
				err = e.forward(m, copies[i].id(), moved(copies[i], s.moves(0, 1, 2)...)...)
			}
			if err == nil {
				_, err = e.setLists(m, id.Seq(i+1), copies[i].list())
			}
			if err != nil {
				failed[0] = err
				return
			}
		}
	})
	running.Go(func() {
		for i, s := range all {
			hits, err := e.lookup(b, id.Seq(2*i+1), s.fingerprints()[1])
			if err == nil {
				// A pass that began before: it says of the copies that it needs nothing,
				// and keeps what it has found since.
				l := copies[i].list()
				if hits[0].Found && hits[0].Ref.Segment == copies[i].id() {
					l = copies[i].list(1)
				}
				_, err = e.setLists(b, id.Seq(2*i+2), l)
			}
			if err != nil {
				failed[1] = err
				return
			}
			found[i] = map[id.Segment]bool{}
			if hits[0].Found {
				found[i][hits[0].Ref.Segment] = true
			}
		}
	})
	running.Go(func() {
		for range segments {
			if _, err := e.node.Reclaim(e.ctx(), &datanode.ReclaimRequest{Max: 3}); err != nil {
				failed[2] = err
			}
		}
	})
	running.Go(func() {
		for i := range all {
			if _, err := e.setLists(a, id.Seq(i+1), copies[i].list(), all[i].list()); err != nil {
				failed[3] = err
			}
		}
	})
	running.Wait()
	e.ok(errors.Join(failed[:]...))
	moves := e.forwards(0)
	e.reclaim()
	for i, s := range all {
		if found[i][s.id()] {
			e.holds(2, s, 1)
			e.intact(s)
			e.holds(2, copies[i], 1)
			if len(moves[s.id()]) != slots {
				e.Fatalf("segment %s has moves %+v", s.id(), moves[s.id()])
			}
		}
		if len(found[i]) > 0 {
			e.holds(2, copies[i], 1)
			e.intact(copies[i])
		}
	}
}
