package index

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// model is what an index should do, as plainly as it can be said.
type model struct {
	segments map[uint64]*modelSegment
	gone     map[uint64]bool
}

type modelSegment struct {
	entry    datanode.SegmentEntry
	contents []int
	lists    map[id.Disk]*modelList
	transit  bool           // condemned or forwarded
	moves    map[int]id.Ref // by slot
}

type modelList struct {
	last, set update
	bits      map[int]bool
}

func newModel() *model {
	return &model{segments: map[uint64]*modelSegment{}, gone: map[uint64]bool{}}
}

func (m *model) publish(n uint64, contents []int, e datanode.SegmentEntry) {
	if m.segments[n] == nil {
		m.segments[n] = &modelSegment{entry: e, contents: contents, lists: map[id.Disk]*modelList{}, moves: map[int]id.Ref{}}
	}
}

// find returns the first live segment that has a content.
func (m *model) find(content int) (first uint64, ok bool) {
	for n, s := range m.segments {
		if !s.transit && s.slot(content) >= 0 && (!ok || n < first) {
			first, ok = n, true
		}
	}
	return first, ok
}

// list returns a disk's list, made if need be.
func (s *modelSegment) list(d id.Disk) *modelList {
	if s.lists[d] == nil {
		s.lists[d] = &modelList{bits: map[int]bool{}}
	}
	return s.lists[d]
}

// held returns the slots a disk holds.
func (s *modelSegment) held(d id.Disk) map[int]bool {
	out := map[int]bool{}
	set := update{}
	if l := s.lists[d]; l != nil {
		maps.Copy(out, l.bits)
		set = l.set
	}
	slot := 0
	for _, b := range s.entry.Header.Births {
		for range b.Slots {
			if b.Disk == d && b.Epoch > set.epoch {
				out[slot] = true
			}
			slot++
		}
	}
	return out
}

func (s *modelSegment) slot(content int) int { return slices.Index(s.contents, content) }

// free returns the segments nobody holds.
func (m *model) free(disks int) (out []id.Segment) {
	for n, s := range m.segments {
		held := false
		for d := range disks {
			held = held || len(s.held(id.Disk(d+1))) > 0
		}
		if !held {
			out = append(out, id.MakeSegment(3, n))
		}
	}
	slices.Sort(out)
	return out
}

func (m *model) remove(n uint64) {
	delete(m.segments, n)
	m.gone[n] = true
	for _, s := range m.segments {
		maps.DeleteFunc(s.moves, func(_ int, to id.Ref) bool { return to.Segment.Number() == n })
	}
}

// numbers returns the segments, in order, so that a seed gives one run.
func (m *model) numbers() []uint64 { return slices.Sorted(maps.Keys(m.segments)) }

func (s *modelSegment) born(d id.Disk) bool {
	return slices.ContainsFunc(s.entry.Header.Births, func(b datanode.Birth) bool { return b.Disk == d })
}

// state is what a segment's state follows from.
func (s *modelSegment) state() datanode.State {
	if !s.transit {
		return datanode.StateLive
	}
	for d := range id.Disk(modelDisks) {
		for slot := range s.held(d + 1) {
			if _, ok := s.moves[slot]; !ok {
				return datanode.StateCondemned
			}
		}
	}
	if len(s.moves) == 0 {
		return datanode.StateCondemned
	}
	return datanode.StateForwarded
}

// spread has a disk hold the copies of all that it holds, by list.
func (m *model) spread(d id.Disk) {
	for again := true; again; {
		again = false
		for _, s := range m.segments {
			held := s.held(d)
			for slot, to := range s.moves {
				target := m.segments[to.Segment.Number()]
				if held[slot] && !target.list(d).bits[int(to.Slot)] {
					target.list(d).bits[int(to.Slot)] = true
					again = true
				}
			}
		}
	}
}

// run compares an index with the model over random calls.
type run struct {
	*house
	*model
	rng    *rand.Rand
	epochs map[id.Disk]id.Epoch
	seqs   map[id.Disk]id.Seq
	next   uint64
}

const (
	modelDisks    = 4
	modelContents = 60
)

func TestModel(t *testing.T)    { runModel(t, 1, 250) }
func TestSimModel(t *testing.T) { runModel(t, 4, 600) }

func runModel(t *testing.T, runs, steps int) {
	for range runs {
		seed := rand.Uint64()
		r := &run{house: newHouse(t, vfs.NewMem()), model: newModel(), rng: rand.New(rand.NewPCG(seed, 0)),
			epochs: map[id.Disk]id.Epoch{}, seqs: map[id.Disk]id.Seq{}}
		for d := range id.Disk(modelDisks) {
			r.epochs[d+1] = 1
		}
		r.house.recentMax = 20 + r.rng.IntN(200) // a table often, or seldom
		r.Index.recentMax = r.house.recentMax
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			for i := range steps {
				r.step()
				if i%8 == 0 {
					r.compare()
				}
			}
			r.compare()
		}()
	}
}

func (r *run) step() {
	r.Helper()
	d := id.Disk(1 + r.rng.IntN(modelDisks))
	switch r.rng.IntN(16) {
	case 0:
		r.epochs[d]++
		r.seqs[d] = 0
	case 1:
		if r.rng.IntN(8) > 0 {
			r.reopen()
		} else {
			r.stepRebuild()
		}
	case 12:
		r.stepCondemn(d)
	case 13, 14:
		r.stepMove(d)
	case 2, 3:
		r.stepReclaim()
	case 4, 5, 6:
		r.stepPublish(d)
	case 7, 8:
		r.stepLookup(d)
	default:
		r.stepLists(d)
	}
}

func (r *run) stepPublish(d id.Disk) {
	r.Helper()
	if n := uint64(r.rng.IntN(int(r.next) + 1)); r.rng.IntN(4) == 0 && (r.segments[n] != nil || r.gone[n]) {
		if s := r.segments[n]; s != nil {
			r.house.publish(s.entry)
		} else {
			err := r.Publish(context.Background(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{pack(n, []int{1})}})
			r.fails(err, datanode.ErrGone)
		}
		return
	}
	r.next++
	contents := r.rng.Perm(modelContents)[:2+r.rng.IntN(12)]
	first := 1 + r.rng.IntN(len(contents)-1)
	other := id.Disk(1 + r.rng.IntN(modelDisks))
	e := pack(r.next, contents,
		datanode.Birth{Disk: d, Epoch: r.epochs[d], Slots: uint16(first)},
		datanode.Birth{Disk: other, Epoch: r.epochs[other], Slots: uint16(len(contents) - first)})
	r.house.publish(e)
	r.model.publish(r.next, contents, e)
}

func (r *run) stepLookup(d id.Disk) {
	r.Helper()
	r.seqs[d]++
	u := update{r.epochs[d], r.seqs[d]}
	contents := r.rng.Perm(modelContents)[:r.rng.IntN(5)]
	for i, hit := range r.lookup(d, u.epoch, u.seq, contents...) {
		n, ok := r.find(contents[i])
		if hit.Found != ok {
			r.Fatalf("content %d: %+v, want %t", contents[i], hit, ok)
		}
		if !ok {
			continue
		}
		slot := r.segments[n].slot(contents[i])
		if hit.Ref != (id.Ref{Segment: id.MakeSegment(3, n), Slot: id.Slot(slot), Location: at(slot)}) {
			r.Fatalf("content %d: %+v, want segment %d, slot %d", contents[i], hit, n, slot)
		}
		l := r.segments[n].list(d)
		l.last = u
		l.bits[slot] = true
	}
}

// compare reads everything and compares it with the model.
func (r *run) compare() {
	r.Helper()
	var want datanode.IndexStatus
	held := map[id.Disk][]id.Segment{}
	r.compareMoves()
	r.compareUsage()
	for n, s := range r.segments {
		want.Segments++
		want.Fingerprints += int64(len(s.contents))
		want.SealedBytes += int64(64 * len(s.contents))
		want.PlainBytes += int64(4096 * len(s.contents))
		d := r.describe(n)
		if d.State != s.state() {
			r.Fatalf("segment %d has state %d, want %d", n, d.State, s.state())
		}
		got := map[id.Disk][]byte{}
		for _, l := range d.Lists {
			got[l.Disk] = l.Bits
		}
		for disk := range id.Disk(modelDisks) {
			slots := slices.Collect(maps.Keys(s.held(disk + 1)))
			if !slices.Equal(got[disk+1], bits(slots...)) {
				r.Fatalf("segment %d, disk %d: %b, want slots %v", n, disk+1, got[disk+1], slots)
			}
			if len(slots) > 0 {
				held[disk+1] = append(held[disk+1], id.MakeSegment(3, n))
			}
		}
		if !slices.Equal(d.Slots, s.entry.Slots) {
			r.Fatalf("segment %d has slots %+v", n, d.Slots)
		}
		if len(d.Dangling) > 0 {
			r.Fatalf("segment %d, slots %d dangle", n, d.Dangling)
		}
	}
	for d, segments := range held {
		reply, err := r.ListSegments(context.Background(), &datanode.ListSegmentsRequest{Disk: d, Epoch: r.epochs[d]})
		r.ok(err)
		slices.Sort(segments)
		if !slices.Equal(reply.Segments, segments) {
			r.Fatalf("disk %d lists %v, want %v", d, reply.Segments, segments)
		}
	}
	r.checkRows()
	got := r.Status()
	got.Incarnation, got.Complete = 0, false
	if got != want {
		r.Fatalf("status %+v, want %+v", got, want)
	}
}
