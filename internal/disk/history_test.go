package disk

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/reclaim"
	"plinth/internal/vfsx/crashfs"
)

var historySeed = flag.Uint64("history-seed", 0, "the seed of all histories; 0: random ones")

// TestSimHistory does what a host does to disks, their snapshots and their clones,
// in random order: write, mark, roll back, clone, destage, checkpoint, pass, move
// chunks, reclaim, take over, remove. All that exists reads as a plain model says.
func TestSimHistory(t *testing.T) {
	const histories, steps, budget = 40, 120, 12 * time.Second
	began := time.Now()
	n := 0
	for ; n < histories && time.Since(began) < budget; n++ {
		seed := rand.Uint64()
		if *historySeed != 0 {
			seed = *historySeed
		}
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { newWorld(t, seed).run(steps) }) {
			break
		}
	}
	t.Logf("%d histories of %d steps", n, steps)
}

// world is a pool as one host session after the other has it, and its model.
type world struct {
	*house
	rng       *rand.Rand
	pool      *Pool
	disks     map[id.Disk]*subject
	nextDisk  id.Disk
	nextSnap  id.Snapshot
	mover     *reclaim.Mover
	hindrance *hindrance
	under     *Image // of the next disk that is opened
	calm      bool   // nothing happens during passes
	count     map[string]int
}

// subject is a disk: what it is and what it should be.
type subject struct {
	d     *Disk
	born  int // bytes
	now   []byte
	snaps map[id.Snapshot][]byte
	// base is what the disk was cloned from and has not passed since.
	base     *subject
	baseSnap id.Snapshot
	removed  bool   // but others have it as their base
	under    *Image // of base, while the disk has no map
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 2)), disks: map[id.Disk]*subject{}, count: map[string]int{}}
	w.house = newHouse(t, func(n datanode.Node) datanode.Node {
		w.hindrance = &hindrance{Node: n}
		return w.hindrance
	})
	w.pool = w.session()
	for range 2 {
		w.create(nil, 0)
	}
	return w
}

func (w *world) run(steps int) {
	w.Helper()
	type op struct {
		name   string
		weight int
		do     func(s *subject)
	}
	ops := []op{
		{"write", 30, w.write},
		{"snapshot", 10, w.snapshot},
		{"forget", 4, w.forget},
		{"rollback", 4, w.rollback},
		{"clone", 4, w.clone},
		{"clone at once", 4, w.cloneAtOnce},
		{"grow", 3, w.grow},
		{"remove", 2, w.remove},
		{"round", 12, func(s *subject) { w.ok(w.round(s.d)) }},
		{"checkpoint", 6, func(s *subject) { w.ok(s.d.Checkpoint(w.Context())) }},
		{"pass", 8, func(s *subject) { w.pass(s) }},
		{"half pass", 4, func(s *subject) {
			w.hindrance.in, w.hindrance.after = 1+w.rng.IntN(3), w.rng.IntN(2) == 0
			w.pass(s)
		}},
		{"full pass", 4, func(s *subject) {
			w.hindrance.full = true
			w.pass(s)
			w.hindrance.full = false
		}},
		{"move", 6, func(*subject) { w.move() }},
		{"reclaim", 6, func(*subject) { w.ok(w.reclaim(w.Context())) }},
		{"take over", 5, w.takeOver},
		{"restart", 2, func(*subject) { w.restart() }},
		{"resize", 2, w.resize},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	for i := range steps {
		n := w.rng.IntN(total)
		for _, o := range ops {
			if n -= o.weight; n < 0 {
				w.count[o.name]++
				o.do(w.any())
				break
			}
		}
		if i%10 == 9 {
			w.check()
		}
	}
	w.quiet()
	w.check()
	if testing.Verbose() {
		w.Log(w.count)
	}
}

// any returns a disk that is there.
func (w *world) any() *subject {
	some := w.present()
	return some[w.rng.IntN(len(some))]
}

// present returns the disks that are there.
func (w *world) present() []*subject {
	var some []*subject
	for _, n := range slices.Sorted(maps.Keys(w.disks)) {
		if s := w.disks[n]; !s.removed {
			some = append(some, s)
		}
	}
	return some
}

// openDisk opens a disk under a new epoch.
func (w *world) openDisk(n id.Disk, size int) *Disk {
	w.Helper()
	w.epochs[n]++
	d, err := Open(w.Context(), w.pool, Config{
		ID: n, Name: fmt.Sprint("vm", n), Bytes: int64(size), Chunk: chunk.SizeDefault, Suite: chunk.AES256GCM,
		Epoch: w.epochs[n], MACKey: w.mac, Under: w.under,
		Map: blockmap.Options{FS: crashfs.New(), Dir: fmt.Sprint("/map-", w.maps.Add(1))},
	})
	w.ok(err)
	w.Cleanup(func() { d.Close() })
	return d
}

// create makes a disk, a clone of base's snapshot if there is one.
func (w *world) create(base *subject, snap id.Snapshot) {
	w.nextDisk++
	s := &subject{base: base, baseSnap: snap, snaps: map[id.Snapshot][]byte{}}
	size := (64 + 8*w.rng.IntN(20)) << 12
	if base != nil {
		s.now = bytes.Clone(base.snaps[snap])
		size = 1 // what the catalog says does not count
	} else {
		if w.rng.IntN(4) == 0 {
			size = 17 << 20 // room for a trim that is a mark
		}
		s.now = make([]byte, size)
	}
	s.born, s.under = size, w.under
	s.d = w.openDisk(w.nextDisk, size)
	w.disks[w.nextDisk] = s
}

func (w *world) write(s *subject) {
	if w.rng.IntN(20) == 0 { // nearly all of it
		clear(s.now[4096:])
		w.ok(s.d.Trim(w.Context(), 4096, int64(len(s.now))-4096, false))
	}
	for range w.rng.IntN(8) { // content that was there before, and comes again
		at, what := w.rng.IntN(min(len(s.now), 512<<10)>>12)<<12, w.rng.IntN(40)
		p := s.now[at : at+4096]
		for i := range p {
			p[i] = byte(what + 7*i + i>>8)
		}
		w.ok(s.d.WriteAt(w.Context(), p, int64(at), false))
	}
	for range 1 + w.rng.IntN(4) {
		n := min(len(s.now), 512<<10)
		c := content{s.now[:n], w.rng}
		w.ok(c.write(w.Context(), s.d))
	}
}

func (w *world) resize(s *subject) {
	if len(s.now) > 18<<20 {
		return
	}
	s.now = append(s.now, make([]byte, 8192)...)
	w.ok(s.d.Resize(w.Context(), int64(len(s.now))))
}

// snapshot marks one disk or all; sometimes the registry never hears of it.
func (w *world) snapshot(s *subject) {
	some := []*subject{s}
	if w.rng.IntN(4) == 0 {
		some = w.present()
	}
	orphan := w.rng.IntN(6) == 0
	var rs []MarkRequest
	for _, s := range some {
		w.nextSnap++
		rs = append(rs, MarkRequest{s.d, w.nextSnap})
	}
	sizes, err := MarkAll(w.Context(), rs)
	w.ok(err)
	now := bytes.Clone(some[0].now)
	if w.rng.IntN(4) == 0 { // nobody may forget them now
		w.ok(w.round(some[0].d))
		w.pass(some[0])
	}
	for i, s := range some {
		if sizes[i] != int64(len(s.now)) {
			w.Fatalf("disk %d has %d bytes at the snapshot, want %d", s.d.ID(), sizes[i], len(s.now))
		}
		if i > 0 {
			now = bytes.Clone(s.now)
		}
		if !orphan {
			s.snaps[rs[i].Snapshot] = now
		}
		s.d.Settled(rs[i].Snapshot)
	}
}

// oneOf returns a snapshot of the disk, 0 if it has none.
func (w *world) oneOf(s *subject) id.Snapshot {
	all := slices.Sorted(maps.Keys(s.snaps))
	if len(all) == 0 {
		return 0
	}
	return all[w.rng.IntN(len(all))]
}

func (w *world) forget(s *subject) { delete(s.snaps, w.oneOf(s)) }

func (w *world) rollback(s *subject) {
	if snap := w.oneOf(s); snap != 0 {
		w.grow(s)
		w.ok(w.round(s.d))
		err := s.d.Rollback(w.Context(), snap)
		if errors.Is(err, blockmap.ErrInvalid) {
			return // too many intervals
		}
		w.ok(err)
		s.now = bytes.Clone(s.snaps[snap])
	}
}

// exists is what the registry says of a disk.
func (w *world) exists(s *subject) Existing {
	return func(context.Context) (map[id.Snapshot]bool, error) {
		there := map[id.Snapshot]bool{}
		for n := range s.snaps {
			there[n] = true
		}
		for _, o := range w.disks {
			if o.base == s {
				there[o.baseSnap] = true
			}
		}
		return there, nil
	}
}

// pass passes over a disk; a clone becomes independent by it.
func (w *world) pass(s *subject) bool {
	w.Helper()
	meanwhile := func(ctx context.Context) (map[id.Snapshot]bool, error) {
		if !w.calm && !w.hindrance.full && w.rng.IntN(3) == 0 { // look-ups and a result that the scan does not see
			w.write(s)
			w.ok(w.round(s.d))
		}
		if w.rng.IntN(6) == 0 {
			w.ok(w.reclaim(ctx))
		}
		return w.exists(s)(ctx)
	}
	if !w.calm && !w.hindrance.full && w.rng.IntN(6) == 0 {
		w.hindrance.before = w.move // between the lists and the moves
	}
	report, err := s.d.Pass(w.Context(), PassOptions{Exists: meanwhile})
	w.hindrance.before, w.hindrance.in = nil, 0
	if errors.Is(err, errHindered) {
		w.count["hindered"]++
		return false
	}
	w.ok(err)
	if report.Held {
		w.count["held"]++
		return false
	}
	if s.base != nil {
		s.base.d.ReleaseLists()
		base := s.base
		s.base = nil
		w.finish(base)
	}
	return true
}
