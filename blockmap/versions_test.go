package blockmap

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/internal/id"
)

var versionHistories = flag.Int("versions", 400, "random histories of TestSimVersions")

// version is what a viewer sees at an LBA.
type version struct {
	gen   id.Gen
	entry Entry
}

// picture is what a viewer sees.
type picture map[id.LBA]version

// versions is a model of a map and its snapshots, and what is kept of both to
// go on from.
type versions struct {
	gen       id.Gen
	unmarked  id.Gen
	head      picture
	snapshots map[id.Snapshot]picture
}

func (v *versions) clone() *versions {
	out := *v
	out.head = maps.Clone(v.head)
	out.snapshots = maps.Clone(v.snapshots) // pictures change by patches only
	for s, p := range out.snapshots {
		out.snapshots[s] = maps.Clone(p)
	}
	return &out
}

// viewers returns all pictures; 0 is the map itself.
func (v *versions) viewers() map[id.Snapshot]picture {
	out := maps.Clone(v.snapshots)
	out[0] = v.head
	return out
}

// past is a random history of one map with snapshots, rolled back, swept,
// patched, saved, lost and cloned, beside its model.
type past struct {
	t     *testing.T
	rand  *rand.Rand
	store *store
	opts  Options
	m     *Map
	space id.LBA
	next  uint64      // content
	id    id.Snapshot // newest
	now   *versions
	views []*View

	saved     *versions
	manifest  []byte
	rollbacks int
	sweeps    int
	busy      bool // in a sweep
}

func (p *past) fatalf(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf(format, args...)
}

func runPast(t *testing.T, cache *Cache, seed uint64, ops int) {
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	r := newRand(seed)
	p := &past{t: t, rand: r, store: newStore(), space: []id.LBA{3, 8, 40}[r.IntN(3)]}
	p.opts = testOptions(t, p.store)
	p.opts.Cache = cache
	p.now = &versions{head: picture{}, snapshots: map[id.Snapshot]picture{}}
	var err error
	if p.m, err = Create(p.opts); err != nil {
		t.Fatal(err)
	}
	defer func() { mustClose(t, p.m) }()
	p.small()
	for range ops {
		p.step()
		p.compare()
	}
	p.sweep()
	p.compare()
}

// small makes a sweep delete in small batches.
func (p *past) small() { p.m.sweepRows = 1 + p.rand.IntN(4) }

func (p *past) step() {
	switch n := p.rand.IntN(100); {
	case n < 45:
		p.apply(false)
	case n < 62:
		p.apply(true)
	case n < 67:
		p.rollback()
	case n < 72:
		p.patch()
	case n < 88:
		p.sweep()
	case n < 94:
		p.save()
	default:
		p.attach()
	}
}

// apply adds a batch, with a snapshot perhaps.
func (p *past) apply(mark bool) {
	b := Batch{}
	for trims := p.rand.IntN(8); trims >= 6; trims-- {
		first := id.LBA(p.rand.Uint64N(uint64(p.space)))
		b.Trims = append(b.Trims, Extent{first, first + 1 + id.LBA(p.rand.Uint64N(uint64(p.space)))})
	}
	for range p.rand.IntN(5) {
		u := Update{LBA: id.LBA(p.rand.Uint64N(uint64(p.space)))}
		switch p.rand.IntN(5) {
		case 0:
		case 1: // content that is there already, at another place perhaps
			u.Entry = p.now.head[u.LBA].entry
			if !u.Zero() && p.rand.IntN(2) == 0 {
				p.next++
				u.Ref = entryOf(p.next).Ref
			}
		default:
			p.next++
			u.Entry = entryOf(p.next)
		}
		b.Updates = append(b.Updates, u)
	}
	b.Gen = p.m.NextGen(len(b.Trims) > 0)
	if want := max(p.now.gen, p.now.unmarked); len(b.Trims) == 0 && b.Gen != want || len(b.Trims) > 0 && b.Gen != p.now.gen+1 {
		p.fatalf("the next generation after %d (%d) is %d", p.now.gen, p.now.unmarked, b.Gen)
	}
	if p.rand.IntN(10) == 0 {
		b.Gen += id.Gen(p.rand.IntN(3))
	}
	if mark {
		p.id++
		b.Mark = Mark{Snapshot: p.id, Bytes: int64(p.id) * 100}
	}
	mustApply(p.t, p.m, &b, "")
	p.now.gen = b.Gen
	for _, t := range b.Trims {
		maps.DeleteFunc(p.now.head, func(lba id.LBA, _ version) bool { return lba >= t.First && lba < t.End })
	}
	for _, u := range b.Updates {
		p.now.head[u.LBA] = version{b.Gen, u.Entry}
		if u.Zero() {
			delete(p.now.head, u.LBA)
		}
	}
	if mark {
		p.now.snapshots[p.id] = maps.Clone(p.now.head)
		p.now.unmarked = b.Gen + 1
		if v, err := p.m.At(p.id); err != nil {
			p.fatalf("view snapshot %d: %v", p.id, err)
		} else {
			p.views = append(p.views, v)
		}
	}
}

// some returns a snapshot of the map, or 0.
func (p *past) some() id.Snapshot {
	all := slices.Sorted(maps.Keys(p.now.snapshots))
	if len(all) == 0 {
		return 0
	}
	return all[p.rand.IntN(len(all))]
}

func (p *past) rollback() {
	s := p.some()
	if s == 0 {
		return
	}
	b := Batch{Gen: p.now.gen + 1, Mark: Mark{Rollback: s}}
	mustApply(p.t, p.m, &b, "")
	p.now.gen = b.Gen
	p.now.head = maps.Clone(p.now.snapshots[s])
	p.rollbacks++
}

// patch moves what some viewer sees; some patches do not fit.
func (p *past) patch() {
	b := Batch{Gen: p.m.Gen()}
	seen := map[Patch]bool{}
	for _, see := range p.now.viewers() {
		for lba, v := range see {
			key := Patch{LBA: lba, Gen: v.gen}
			if seen[key] || p.rand.IntN(3) > 0 {
				continue
			}
			seen[key] = true
			p.next++
			patch := Patch{lba, v.gen, v.entry.Ref, entryOf(p.next).Ref}
			if p.rand.IntN(4) == 0 {
				patch.From.Slot++
				if p.rand.IntN(2) == 0 {
					patch.From = id.Ref{Segment: patch.From.Segment + 1, Slot: patch.From.Slot - 1}
				}
				b.Patches = append(b.Patches, patch)
				continue
			}
			if p.rand.IntN(2) == 0 {
				patch.From.Location = 0 // does not matter
			}
			b.Patches = append(b.Patches, patch)
			for _, see := range p.now.viewers() {
				if at := see[lba]; at.gen == v.gen && at.entry.Ref == v.entry.Ref {
					at.entry.Ref = patch.To
					see[lba] = at
				}
			}
		}
	}
	if len(b.Patches) > 0 {
		mustApply(p.t, p.m, &b, "")
	}
}

func (p *past) save() {
	p.saved = p.now.clone()
	p.manifest = mustCheckpoint(p.t, p.m).Manifest
}

// attach goes back to the newest checkpoint, or on from a clone of it.
func (p *past) attach() {
	if p.saved == nil || p.busy {
		return
	}
	mustClose(p.t, p.m)
	p.views = nil
	p.now = p.saved.clone()
	s := p.some()
	var err error
	if s == 0 || p.rand.IntN(3) > 0 {
		p.m, err = Attach(context.Background(), p.manifest, p.opts)
		p.now.unmarked = 0
		for _, row := range p.m.Snapshots() {
			p.now.unmarked = max(p.now.unmarked, row.Gen+1)
		}
	} else {
		p.m, err = AttachClone(context.Background(), p.manifest, s, []byte("clone"), p.opts)
		p.now = &versions{gen: p.now.gen + 1, head: p.now.snapshots[s], snapshots: map[id.Snapshot]picture{}, unmarked: p.now.unmarked}
		p.saved = nil
		if err == nil && string(p.m.State()) != "clone" {
			p.fatalf("the state of a clone is %q", p.m.State())
		}
	}
	if err != nil {
		p.fatalf("attach: %v", err)
	}
	if p.m.Gen() != p.now.gen {
		p.fatalf("attached at generation %d, want %d", p.m.Gen(), p.now.gen)
	}
	p.small()
}

var errStop = errors.New("stop")

// sweep drops some snapshots and sweeps, while other things happen.
func (p *past) sweep() {
	ctx := context.Background()
	s, err := p.m.Snapshot()
	if err != nil {
		p.fatalf("snapshot: %v", err)
	}
	defer s.Close()
	rollbacks, sweeps := p.rollbacks, p.sweeps
	late := p.rand.IntN(4) == 0
	for late && p.rand.IntN(3) > 0 {
		p.beside()
	}
	drop := map[id.Snapshot]bool{p.id + 1: true}
	for id := range p.now.snapshots {
		drop[id] = p.rand.IntN(3) == 0
	}
	deletes := p.sweeps == sweeps
	if deletes {
		p.sweeps++
		if p.rollbacks == rollbacks {
			for id := range drop {
				if _, ok := s.marks.find(id); ok && drop[id] {
					delete(p.now.snapshots, id)
				}
			}
		}
	}
	exact := deletes && !late
	seen := map[Patch]Version{}
	each := func(v *Version) error {
		seen[Patch{LBA: v.LBA, Gen: v.Gen}] = *v
		switch n := p.rand.IntN(40); {
		case n < 2 && !p.busy:
			exact = false
			return errStop
		case n < 6 && !p.busy:
			exact = false
			p.busy = true
			p.beside()
			p.compare()
			p.busy = false
		}
		return nil
	}
	report, err := s.Sweep(ctx, drop, func(ctx context.Context, rows int) error {
		if p.rand.IntN(60) == 0 {
			exact = false
			return errStop
		}
		return ctx.Err()
	}, each)
	if errors.Is(err, errStop) {
		return
	}
	if err != nil {
		p.fatalf("sweep: %v", err)
	}
	if exact {
		p.exact(s, seen, report)
	}
}

// beside is a step that may come during a sweep, or between its snapshot and it.
func (p *past) beside() {
	switch p.rand.IntN(8) {
	case 0, 1:
		p.apply(false)
	case 2, 3:
		p.apply(true)
	case 4:
		p.rollback()
	case 5:
		p.patch()
	case 6:
		p.save()
	case 7:
		if !p.busy {
			p.sweep()
		}
	}
}

// exact compares what an undisturbed sweep said and left with the model.
func (p *past) exact(s *Snapshot, seen map[Patch]Version, report *SweepReport) {
	p.t.Helper()
	want := map[Patch]Version{}
	uses := map[id.Snapshot]Use{}
	for who, see := range p.now.viewers() {
		uses[who] = Use{Mapped: int64(len(see))}
		for lba, at := range see {
			key := Patch{LBA: lba, Gen: at.gen}
			v := want[key]
			v.LBA, v.Gen, v.Entry = lba, at.gen, at.entry
			v.Viewers++
			v.Head = v.Head || who == 0
			if v.Only = who; v.Viewers > 1 {
				v.Only = 0
			}
			want[key] = v
		}
	}
	for _, v := range want {
		if v.Only != 0 {
			u := uses[v.Only]
			u.OnlyMapped++
			u.OnlyBytes += int64(v.Entry.Ref.Location.Len())
			uses[v.Only] = u
		}
	}
	head := uses[0].Mapped
	delete(uses, 0)
	if !maps.Equal(seen, want) {
		p.fatalf("a sweep saw %v, want %v", seen, want)
	}
	if report.Kept != int64(len(want)) || report.Head != head || !maps.Equal(report.Snapshots, uses) {
		p.fatalf("a sweep reports %+v, want %d entries, %d mapped, %v", *report, len(want), head, uses)
	}
	n, hiders := 0, 0
	for lba, rows := range allRows(p.t, p.m) {
		for _, r := range rows {
			if _, ok := want[Patch{LBA: lba, Gen: r.gen}]; ok {
				n++
			} else if r.entry.Zero() {
				hiders++
			} else {
				p.fatalf("LBA %d of generation %d is left", lba, r.gen)
			}
		}
	}
	if n != len(want) {
		p.fatalf("%d entries are left, want %d", n, len(want))
	}
	if len(p.now.snapshots) == 0 && (hiders > 0 || len(p.m.trims) > 0 || !p.m.head.view.whole()) {
		p.fatalf("%d zeros and %d trims hide nothing, view %v", hiders, len(p.m.trims), p.m.head.view)
	}
}

// allRows returns the rows of entries by LBA.
func allRows(t *testing.T, m *Map) map[id.LBA][]row {
	t.Helper()
	it, err := m.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	out := map[id.LBA][]row{}
	for valid := it.First(); valid; valid = it.Next() {
		lba, gen, err := parsePointKey(it.Key())
		if err != nil {
			break // the other rows come after
		}
		e, err := parseEntry(it.Value())
		if err != nil {
			t.Fatal(err)
		}
		out[lba] = append(out[lba], row{gen: gen, entry: e})
	}
	return out
}

// TestSimVersions runs random histories with snapshots. Each prints its seed if
// it fails: go test -run TestSimVersions -versions 1 -seed N.
func TestSimVersions(t *testing.T) { runPasts(t, *versionHistories, 60) }

func TestVersions(t *testing.T) { runPasts(t, modelOps/20, 60) }

var versionSeed = flag.Uint64("seed", 0, "of the first history of TestSimVersions; 0: draw one")

func runPasts(t *testing.T, n, ops int) {
	first := *versionSeed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	cache := NewCache(1<<20, 64)
	defer cache.Close()
	for i := range n {
		seed := first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runPast(t, cache, seed, ops) })
		if t.Failed() {
			return
		}
	}
}
