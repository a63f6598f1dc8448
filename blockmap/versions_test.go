package blockmap

import (
	"context"
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

// small makes a sweep delete in small batches, and regions of few LBAs.
func (p *past) small() { p.m.sweepRows, p.m.holes.bits = 1+p.rand.IntN(4), uint(p.rand.IntN(4)) }

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

// TestSimVersions runs random histories with snapshots. Each prints its seed if
// it fails: go test -run TestSimVersions -versions 1 -seed N.
func TestSimVersions(t *testing.T) { runPasts(t, *versionHistories, 60) }

func TestVersions(t *testing.T) { runPasts(t, modelOps/60, 60) }

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
