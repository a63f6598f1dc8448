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
		m.segments[n] = &modelSegment{entry: e, contents: contents, lists: map[id.Disk]*modelList{}}
	}
}

// find returns the first segment that has a content.
func (m *model) find(content int) (first uint64, ok bool) {
	for n, s := range m.segments {
		if s.slot(content) >= 0 && (!ok || n < first) {
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

func TestModel(t *testing.T) {
	for range 2 {
		seed := rand.Uint64()
		r := &run{house: newHouse(t, vfs.NewMem()), model: newModel(), rng: rand.New(rand.NewPCG(seed, 0)),
			epochs: map[id.Disk]id.Epoch{}, seqs: map[id.Disk]id.Seq{}}
		for d := range id.Disk(modelDisks) {
			r.epochs[d+1] = 1
		}
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			for i := range 300 {
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
	switch r.rng.IntN(12) {
	case 0:
		r.epochs[d]++
		r.seqs[d] = 0
	case 1:
		r.reopen()
	case 2, 3:
		got, want := r.reclaimAll(), r.free(modelDisks)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			r.Fatalf("reclaimed %v, want %v", got, want)
		}
		for _, s := range got {
			r.remove(s.Number())
		}
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

// stepLists sets some of a disk's lists, sometimes under an old number.
func (r *run) stepLists(d id.Disk) {
	r.Helper()
	r.seqs[d]++
	u := update{r.epochs[d], r.seqs[d]}
	if r.rng.IntN(6) == 0 {
		u.seq -= id.Seq(r.rng.IntN(int(min(u.seq, 5))))
	}
	var lists []datanode.List
	var refused []id.Segment
	for n, s := range r.segments {
		if r.rng.IntN(3) > 0 {
			continue
		}
		keep := map[int]bool{}
		for slot := range s.held(d) {
			if r.rng.IntN(3) == 0 {
				keep[slot] = true
			}
		}
		if l := s.lists[d]; l != nil && len(l.bits)+len(keep) == 0 && l.last.less(u) && len(s.held(d)) == 0 {
			continue // whether an empty list of the past counts is not for the contract to say
		}
		lists = append(lists, list(n, slices.Collect(maps.Keys(keep))...))
		if l := s.lists[d]; l != nil && !l.last.less(u) {
			if len(l.bits) == 0 && !slices.ContainsFunc(s.entry.Header.Births, func(b datanode.Birth) bool { return b.Disk == d }) {
				lists = lists[:len(lists)-1]
				continue
			}
			refused = append(refused, id.MakeSegment(3, n))
			continue
		}
		l := s.list(d)
		l.last, l.set, l.bits = u, u, keep
	}
	got := r.setLists(d, u.epoch, u.seq, lists...)
	slices.Sort(got)
	slices.Sort(refused)
	if !slices.Equal(got, refused) {
		r.Fatalf("refused %v, want %v", got, refused)
	}
}

// compare reads everything and compares it with the model.
func (r *run) compare() {
	r.Helper()
	var want datanode.IndexStatus
	held := map[id.Disk][]id.Segment{}
	for n, s := range r.segments {
		want.Segments++
		want.SealedBytes += int64(64 * len(s.contents))
		want.PlainBytes += int64(4096 * len(s.contents))
		d := r.describe(n)
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
	for c := range modelContents {
		if _, ok := r.find(c); ok {
			want.Fingerprints++
		}
	}
	got := r.Status()
	got.Incarnation, got.Complete = 0, false
	if got != want {
		r.Fatalf("status %+v, want %+v", got, want)
	}
}
