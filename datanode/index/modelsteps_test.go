package index

import (
	"context"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// stepLists sets some of a disk's lists, sometimes under an old number, and
// sometimes with slots that it did not hold.
func (r *run) stepLists(d id.Disk) {
	r.Helper()
	r.seqs[d]++
	u := update{r.epochs[d], r.seqs[d]}
	if r.rng.IntN(6) == 0 {
		u.seq -= id.Seq(r.rng.IntN(int(min(u.seq, 5))))
	}
	said := map[uint64]map[int]bool{}
	var lists []datanode.List
	for _, n := range r.numbers() {
		if r.rng.IntN(3) > 0 {
			continue
		}
		s := r.segments[n]
		said[n] = map[int]bool{}
		for slot := range s.contents {
			if s.held(d)[slot] && r.rng.IntN(3) == 0 || r.rng.IntN(60) == 0 {
				said[n][slot] = true
			}
		}
		lists = append(lists, list(n, slices.Collect(maps.Keys(said[n]))...))
	}
	r.rng.Shuffle(len(lists), func(i, j int) { lists[i], lists[j] = lists[j], lists[i] })
	want := r.say(d, u, said)
	got := r.setLists(d, u.epoch, u.seq, lists...)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.Fatalf("refused %v, want %v", got, want)
	}
}

// say sets lists and returns what is refused, in order.
func (m *model) say(d id.Disk, u update, said map[uint64]map[int]bool) (refused []id.Segment) {
	var touched []uint64
	empty := map[uint64]bool{} // of which nothing is known nor said
	for n, keep := range said {
		s := m.segments[n]
		l := s.lists[d]
		if l != nil && !l.last.less(u) {
			refused = append(refused, id.MakeSegment(3, n))
			continue
		}
		empty[n] = l == nil && !s.born(d) && len(keep) == 0
		touched = append(touched, n)
		s.lists[d] = &modelList{last: u, set: u, bits: keep}
	}
	m.spread(d)
	for _, n := range touched {
		s := m.segments[n]
		if empty[n] && len(s.lists[d].bits) == 0 {
			continue
		}
		for _, to := range s.moves {
			target := m.segments[to.Segment.Number()]
			if _, named := said[to.Segment.Number()]; !named && target.lists[d] != nil && target.lists[d].last.less(u) {
				target.lists[d].last = u
			}
		}
	}
	for _, n := range touched {
		if s := m.segments[n]; len(s.lists[d].bits) == 0 && !s.born(d) {
			delete(s.lists, d)
		}
	}
	slices.Sort(refused)
	return refused
}

func (r *run) stepCondemn(d id.Disk) {
	r.Helper()
	var segments, want []id.Segment
	for _, n := range r.numbers() {
		if r.rng.IntN(5) > 0 {
			continue
		}
		s := r.segments[n]
		segments = append(segments, id.MakeSegment(3, n))
		if s.state() != datanode.StateForwarded {
			want = append(want, id.MakeSegment(3, n))
		}
		s.transit = true
	}
	reply, err := r.Condemn(context.Background(), &datanode.CondemnRequest{Disk: d, Epoch: r.epochs[d], Segments: segments})
	r.ok(err)
	if !slices.Equal(reply.Condemned, want) {
		r.Fatalf("condemned %v of %v, want %v", reply.Condemned, segments, want)
	}
}

// stepMove copies some slots of condemned segments, held or not, into a new one
// and, mostly, records that, sometimes after the copies were found or dropped.
func (r *run) stepMove(d id.Disk) {
	r.Helper()
	var moves []datanode.Move
	var contents []int
	target := id.MakeSegment(3, r.next+1)
	for _, n := range r.numbers() {
		s := r.segments[n]
		if !s.transit || r.rng.IntN(2) == 0 {
			continue
		}
		for slot, c := range s.contents {
			if r.rng.IntN(4) == 0 {
				continue
			}
			to := slices.Index(contents, c)
			if to < 0 {
				to = len(contents)
				contents = append(contents, c)
			}
			moves = append(moves, datanode.Move{From: id.MakeSegment(3, n), Slot: id.Slot(slot), To: id.Slot(to), Location: at(to)})
		}
	}
	if len(moves) == 0 {
		return
	}
	r.next++
	n := r.next
	e := pack(n, contents, datanode.Birth{Disk: d, Epoch: r.epochs[d], Slots: uint16(len(contents))})
	r.house.publish(e)
	r.model.publish(n, contents, e)
	for range r.rng.IntN(4) {
		switch other := id.Disk(1 + r.rng.IntN(modelDisks)); r.rng.IntN(3) {
		case 0:
			r.stepLists(other)
		case 1:
			r.stepLookup(other)
		default:
			r.stepReclaim()
		}
	}
	if r.rng.IntN(8) == 0 {
		return
	}
	err := r.Forward(context.Background(), &datanode.ForwardRequest{Disk: d, Epoch: r.epochs[d], Segment: target, Moves: moves})
	if r.gone[n] {
		r.fails(err, datanode.ErrGone)
		return
	}
	r.ok(err)
	for _, m := range moves {
		s := r.segments[m.From.Number()]
		if s == nil {
			continue
		}
		if _, ok := s.moves[int(m.Slot)]; !ok {
			s.moves[int(m.Slot)] = id.Ref{Segment: target, Slot: m.To, Location: m.Location}
		}
	}
	for d := range id.Disk(modelDisks) {
		r.spread(d + 1)
	}
}

func (r *run) stepReclaim() {
	r.Helper()
	got, want := r.reclaimAll(), r.free(modelDisks)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.Fatalf("reclaimed %v, want %v", got, want)
	}
	for _, s := range got {
		r.remove(s.Number())
	}
}

// stepRebuild loses the index. Owners state what they hold, so that nothing of
// that goes; what was condemned, and the moves, are forgotten.
func (r *run) stepRebuild() {
	r.Helper()
	r.ok(r.Index.Close())
	x, err := Rebuild(context.Background(), r.fs, "/node/index", r.deps(), Options{CacheBytes: 1 << 20},
		func(f func(datanode.SegmentEntry) error) error {
			for _, n := range r.numbers() {
				e := r.segments[n].entry
				e.Slots = nil
				if err := f(e); err != nil {
					return err
				}
			}
			return nil
		})
	r.ok(err)
	r.Index = x
	x.recentMax = r.recentMax
	reply, err := r.Condemn(context.Background(), &datanode.CondemnRequest{Disk: 1, Epoch: r.epochs[1], Segments: []id.Segment{id.MakeSegment(3, 1)}})
	r.ok(err)
	if len(reply.Condemned) > 0 {
		r.Fatalf("incomplete, but condemned %v", reply.Condemned)
	}
	r.gone = map[uint64]bool{}
	stated := map[uint64]bool{}
	for d := range id.Disk(modelDisks) {
		d++
		r.seqs[d]++
		u := update{r.epochs[d], r.seqs[d]}
		for _, n := range r.numbers() {
			s := r.segments[n]
			held := s.held(d)
			if len(held) == 0 && !s.born(d) {
				delete(s.lists, d)
				continue
			}
			l := list(n, slices.Collect(maps.Keys(held))...)
			if len(held) > 0 {
				l.Slots, stated[n] = s.entry.Slots, true
			}
			if refused := r.setLists(d, u.epoch, u.seq, l); len(refused) > 0 {
				r.Fatalf("refused %v", refused)
			}
			s.lists[d] = &modelList{last: u, set: u, bits: held}
		}
	}
	for _, s := range r.segments {
		s.transit = false
		clear(s.moves)
	}
	r.ok(r.CompleteIndex(context.Background(), &datanode.CompleteIndexRequest{Incarnation: r.Status().Incarnation}))
	r.stepReclaim()
	for n := range r.segments {
		if !stated[n] {
			r.Fatalf("segment %d is held by nobody and there", n)
		}
	}
}

func (r *run) compareMoves() {
	r.Helper()
	want := map[id.Segment]int{}
	for n, s := range r.segments {
		if len(s.moves) > 0 {
			want[id.MakeSegment(3, n)] = len(s.moves)
		}
	}
	q := &datanode.ForwardsRequest{Max: 3}
	for more := true; more; {
		reply, err := r.Forwards(context.Background(), q)
		r.ok(err)
		for _, f := range reply.Forwards {
			s := r.segments[f.From.Number()]
			if want[f.From] != len(f.Moves) {
				r.Fatalf("segment %s has moves %+v, want %+v", f.From, f.Moves, s)
			}
			delete(want, f.From)
			for _, m := range f.Moves {
				if s.moves[int(m.Slot)] != m.To {
					r.Fatalf("segment %s, slot %d moved to %+v, want %+v", f.From, m.Slot, m.To, s.moves[int(m.Slot)])
				}
			}
			q.After = f.From
		}
		more = reply.More
	}
	if len(want) > 0 {
		r.Fatalf("no moves of %v", want)
	}
}

func (r *run) compareUsage() {
	r.Helper()
	reply, err := r.Usage(context.Background(), &datanode.UsageRequest{})
	r.ok(err)
	if len(reply.Segments) != len(r.segments) || reply.More {
		r.Fatalf("usage of %d segments, want %d", len(reply.Segments), len(r.segments))
	}
	for i, n := range r.numbers() {
		s := r.segments[n]
		holders := map[int]int{}
		for d := range id.Disk(modelDisks) {
			for slot := range s.held(d + 1) {
				holders[slot]++
			}
		}
		var disks []datanode.DiskUse
		for d := range id.Disk(modelDisks) {
			u := datanode.DiskUse{Disk: d + 1}
			for slot := range s.held(d + 1) {
				u.Slots++
				if holders[slot] == 1 {
					u.Exclusive++
				}
			}
			if u.Slots > 0 {
				disks = append(disks, u)
			}
		}
		got := reply.Segments[i]
		if got.Segment.Number() != n || got.State != s.state() || got.Slots != len(s.contents) || got.LiveSlots != len(holders) ||
			got.SealedBytes != int64(64*len(s.contents)) || got.StoredBytes != 3*(8192+datanode.BlockBytes) || !slices.Equal(got.Disks, disks) {
			r.Fatalf("usage %+v, want %d held of segment %d, disks %+v", got, len(holders), n, disks)
		}
	}
}
