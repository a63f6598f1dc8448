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

// hindrance is a node of which one of the next calls that change something fails
// before it is carried out, or after.
type hindrance struct {
	datanode.Node
	in    int // so many calls from now on; 0: never
	after bool
	full  bool // no fragments are taken
	// before is called once, before what has moved is asked for.
	before func()
}

var errHindered = errors.New("hindered")

func (n *hindrance) SetLists(ctx context.Context, r *datanode.SetListsRequest) (reply *datanode.SetListsReply, err error) {
	err = n.hinder(func() error { reply, err = n.Node.SetLists(ctx, r); return err })
	return reply, err
}

func (n *hindrance) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (reply *datanode.RegistryCommitReply, err error) {
	err = n.hinder(func() error { reply, err = n.Node.RegistryCommit(ctx, r); return err })
	return reply, err
}

func (n *hindrance) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	if !n.full {
		return n.Node.WriteFragments(ctx, r)
	}
	reply := &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(r.Fragments))}
	for i := range reply.Errors {
		reply.Errors[i] = datanode.ErrNoSpace
	}
	return reply, nil
}

func (n *hindrance) Forwards(ctx context.Context, r *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	if before := n.before; before != nil {
		n.before = nil
		before()
	}
	return n.Node.Forwards(ctx, r)
}

func (n *hindrance) hinder(call func() error) error {
	if n.in--; n.in != 0 {
		n.in = max(n.in, 0)
		return call()
	}
	if n.after {
		if err := call(); err != nil {
			return err
		}
	}
	return errHindered
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

const moverDisk = 1 << 20

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

// clone makes a disk of a snapshot as a host does: hold, look, checkpoint if need
// be, record.
func (w *world) clone(s *subject) {
	snap := w.oneOf(s)
	if snap == 0 || len(w.disks) > 6 || s.under != nil {
		return
	}
	s.d.HoldLists()
	w.ok(w.round(s.d))
	value, ok, err := s.d.CloneRecord(w.Context(), snap)
	w.ok(err)
	if !ok {
		w.ok(s.d.Checkpoint(w.Context()))
		value, ok, err = s.d.CloneRecord(w.Context(), snap)
		w.ok(err)
		if !ok {
			w.Fatalf("snapshot %d of disk %d is in no checkpoint after one was made", snap, s.d.ID())
		}
	}
	w.record(w.nextDisk+1, value)
	w.create(s, snap)
}

// cloneAtOnce makes a clone that reads its base's snapshot until grow is called.
func (w *world) cloneAtOnce(s *subject) {
	snap := w.oneOf(s)
	if snap == 0 || len(w.disks) > 6 || s.under != nil {
		return
	}
	s.d.HoldLists()
	w.ok(w.round(s.d))
	under, err := s.d.At(w.Context(), snap)
	w.ok(err)
	w.under = under
	w.create(s, snap)
	w.under = nil
}

// grow ends that.
func (w *world) grow(s *subject) {
	w.Helper()
	if s.under == nil {
		return
	}
	w.recordUnder(s)
	w.ok(s.d.Independent(w.Context()))
	w.ok(s.under.Close())
	s.under = nil
}

// recordUnder records the checkpoint of a clone that has none.
func (w *world) recordUnder(s *subject) {
	w.Helper()
	base := s.base.d
	w.ok(base.Checkpoint(w.Context()))
	value, ok, err := base.CloneRecord(w.Context(), s.baseSnap)
	w.ok(err)
	if !ok {
		w.Fatal("a snapshot is in no checkpoint after one was made")
	}
	w.record(s.d.ID(), value)
}

func (w *world) record(n id.Disk, value []byte) {
	w.Helper()
	_, err := w.node.RegistryCommit(w.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: CheckpointKey(n), Value: value}}})
	w.ok(err)
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

// remove removes a disk; who is cloned from it keeps it for a while.
func (w *world) remove(s *subject) {
	if len(w.disks) < 3 {
		return
	}
	w.growAll(s)
	w.ok(s.d.Close())
	s.removed, s.snaps, s.now = true, nil, nil
	w.finish(s)
}

// finish gives up a removed disk that nobody begins with any more.
func (w *world) finish(s *subject) {
	if !s.removed {
		return
	}
	for _, o := range w.disks {
		if o.base == s {
			return
		}
	}
	n := s.d.ID()
	w.epochs[n]++
	_, err := w.node.Fence(w.Context(), &datanode.FenceRequest{Disk: n, Epoch: w.epochs[n]})
	w.ok(err)
	w.ok(Release(w.Context(), w.node, n, w.epochs[n]))
	delete(w.disks, n)
	if s.base != nil {
		s.base.d.ReleaseLists()
		w.finish(s.base)
	}
}

// takeOver gives a disk to another owner, sometimes after its calls only.
func (w *world) takeOver(s *subject) {
	if s.under != nil && w.rng.IntN(2) == 0 { // its owner dies before it is independent
		w.recordUnder(s)
		s.under = nil
	}
	w.growAll(s)
	old := s.d
	s.d = w.openDisk(old.ID(), s.born)
	w.ok(old.Close())
	w.holdAgain(s)
}

// growAll ends it for a disk and all that read it.
func (w *world) growAll(s *subject) {
	w.grow(s)
	for _, o := range w.disks {
		if o.base == s {
			w.grow(o)
		}
	}
}

// holdAgain holds a new owner's lists as the last one's were.
func (w *world) holdAgain(s *subject) {
	for _, o := range w.disks {
		if o.base == s {
			s.d.HoldLists()
		}
	}
}

// restart ends the session: all disks are opened by the next one.
func (w *world) restart() {
	w.pool, w.mover = w.session(), nil
	for _, n := range slices.Sorted(maps.Keys(w.disks)) {
		if s := w.disks[n]; !s.removed {
			w.takeOver(s)
		}
	}
}

// move empties some segments; who holds them follows in later passes.
func (w *world) move() {
	ctx := w.Context()
	defer func(in int) { w.hindrance.in = in }(w.hindrance.in) // it is the pass that is hindered
	w.hindrance.in = 0
	if w.mover == nil {
		w.epochs[moverDisk]++
		_, err := w.node.Fence(ctx, &datanode.FenceRequest{Disk: moverDisk, Epoch: w.epochs[moverDisk]})
		w.ok(err)
		w.mover = &reclaim.Mover{
			Index: w.node, Stripes: w.pool.Stripes, Opener: w.pool.Opener, Geometry: w.pool.Geometry, Number: w.pool.Number,
			Disk: moverDisk, Epoch: w.epochs[moverDisk],
		}
		w.ok(w.mover.Release(ctx))
	}
	use, err := w.node.Usage(ctx, &datanode.UsageRequest{})
	w.ok(err)
	var some []id.Segment
	for _, u := range use.Segments {
		if u.Kind == datanode.KindChunks && w.rng.IntN(3) == 0 {
			some = append(some, u.Segment)
		}
	}
	moved, err := w.mover.Move(ctx, some)
	w.ok(err)
	w.count["chunks moved"] += int(moved.Chunks)
	if len(moved.Damaged) > 0 {
		w.Fatalf("damaged: %v", moved.Damaged)
	}
}

// quiet lets everything that can be given up be given up, and tests that it was.
func (w *world) quiet() {
	w.Helper()
	ctx := w.Context()
	w.calm = true
	for range 3 { // clones, then their parents; then what those have moved
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(w.disks))) {
			s := w.disks[n]
			if s == nil || s.removed {
				continue
			}
			w.grow(s)
			w.ok(w.round(s.d))
			w.ok(s.d.Checkpoint(ctx))
			w.pass(s)
		}
	}
	w.ok(w.reclaim(ctx))
	if w.mover != nil {
		w.ok(w.mover.Release(ctx))
	}
	w.ok(w.reclaim(ctx))
	needed := map[id.Segment]bool{}
	for n, s := range w.disks {
		if s.base != nil || s.removed {
			w.Fatalf("disk %d: removed %v, still a clone of %v", n, s.removed, s.baseSnap)
		}
		w.exact(s, needed)
	}
	use, err := w.node.Usage(ctx, &datanode.UsageRequest{})
	w.ok(err)
	for _, u := range use.Segments {
		if !needed[u.Segment] || u.State != datanode.StateLive {
			w.Fatalf("after a quiet cycle segment %s, state %d, is left, held by %v", u.Segment, u.State, u.Disks)
		}
	}
}

// exact tests that a disk holds just what it needs, and notes that.
func (w *world) exact(s *subject, needed map[id.Segment]bool) {
	w.Helper()
	view, err := s.d.View(w.Context(), w.exists(s))
	w.ok(err)
	defer view.Close()
	want := map[id.Segment]bitmap{}
	w.ok(view.Each(w.Context(), 0, ^id.Segment(0), func(n *Need) error {
		want[n.Entry.Ref.Segment] = want[n.Entry.Ref.Segment].set(n.Entry.Ref.Slot)
		needed[n.Entry.Ref.Segment] = true
		return nil
	}))
	held, err := s.d.heldSegments(w.Context())
	w.ok(err)
	for _, h := range held {
		what, err := w.node.DescribeSegments(w.Context(), &datanode.DescribeSegmentsRequest{Segments: []id.Segment{h}, Slots: true})
		w.ok(err)
		i := slices.IndexFunc(what.Segments[0].Lists, func(l datanode.DiskList) bool { return l.Disk == s.d.ID() })
		// Pebble merges tables when it likes: objects may have gone since the pass.
		if got := bitmap(what.Segments[0].Lists[i].Bits); what.Segments[0].Kind == datanode.KindChunks && !bytes.Equal(got, want[h]) {
			w.Fatalf("disk %d holds %x of segment %s and needs %x", s.d.ID(), got, h, want[h])
		}
		needed[h] = true
		delete(want, h)
	}
	if len(want) > 0 {
		w.Fatalf("disk %d does not hold %d segments that it needs", s.d.ID(), len(want))
	}
}

// check reads all that exists.
func (w *world) check() {
	w.Helper()
	for _, n := range slices.Sorted(maps.Keys(w.disks)) {
		s := w.disks[n]
		if s.removed {
			continue
		}
		w.same(s.d, &content{data: s.now})
		for _, snap := range slices.Sorted(maps.Keys(s.snaps)) {
			if !s.d.Marked(snap) {
				w.Fatalf("disk %d has lost snapshot %d", n, snap)
			}
			if s.under != nil {
				continue
			}
			if _, err := s.d.m.At(snap); err != nil { // only in the log
				w.ok(w.round(s.d))
			}
			w.shows(s.d, snap, s.snaps[snap])
		}
	}
}
