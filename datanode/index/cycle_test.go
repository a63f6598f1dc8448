package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	cycleChunks   = 48 // of each disk
	cycleContents = 200
	cycleMover    = id.Disk(100)
	// cycleTime is what a loaded machine gets.
	cycleTime = 8 * time.Second
)

// cycle has disks, a mover and Reclaim at work on one index, all as a host has
// them.
type cycle struct {
	*house
	number                  atomic.Uint64
	patches, forwards, late atomic.Int64

	mu       sync.Mutex
	contents map[id.Segment][]int
}

// cycleDisk is a disk's owner: a map of its chunks, rounds and passes.
type cycleDisk struct {
	*cycle
	disk    id.Disk
	rng     *rand.Rand                // of rounds
	passRNG *rand.Rand                // of passes
	old     *datanode.SetListsRequest // a call that may come late

	mu     sync.Mutex // rounds, patches and the start of a pass
	chunks [cycleChunks]id.Ref
	want   [cycleChunks]int

	listMu     sync.Mutex // look-ups against lists; after mu
	seq        id.Seq
	registered map[id.Ref]bool // since the pass that runs began
	frozen     bool            // its lists hold what a clone needs
	base       *cycleDisk      // what holds this one's chunks until it has passed
}

// errFrozen ends a pass of a disk that may give nothing up.
var errFrozen = errors.New("frozen")

func (c *cycle) store(births []datanode.Birth, contents []int) (id.Segment, error) {
	e := pack(c.number.Add(1), contents, births...)
	s := e.Header.Segment
	c.mu.Lock()
	c.contents[s] = contents
	c.mu.Unlock()
	return s, c.Publish(context.Background(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{e}})
}

// round writes some chunks: found, or stored in a new segment.
func (d *cycleDisk) round() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	lbas := d.rng.Perm(cycleChunks)[:1+d.rng.IntN(4)]
	var contents, fresh []int
	for range lbas {
		contents = append(contents, d.rng.IntN(cycleContents))
	}
	hits, err := d.find(contents)
	if err != nil {
		return err
	}
	for i, h := range hits {
		if !h.Found && !slices.Contains(fresh, contents[i]) {
			fresh = append(fresh, contents[i])
		}
	}
	s, births := id.Segment(0), []datanode.Birth{{Disk: d.disk, Epoch: 1, Slots: uint16(len(fresh))}}
	if len(fresh) == 0 {
		err = d.Publish(context.Background(), &datanode.PublishRequest{})
	} else {
		s, err = d.store(births, fresh)
	}
	if err != nil {
		return err
	}
	for i, lba := range lbas {
		ref := hits[i].Ref
		if !hits[i].Found {
			slot := slices.Index(fresh, contents[i])
			ref = id.Ref{Segment: s, Slot: id.Slot(slot), Location: at(slot)}
		}
		d.chunks[lba], d.want[lba] = ref, contents[i]
	}
	return nil
}

func (d *cycleDisk) find(contents []int) ([]datanode.Hit, error) {
	d.listMu.Lock()
	defer d.listMu.Unlock()
	d.seq++
	hits, err := d.tryLookup(d.disk, 1, d.seq, contents...)
	if err != nil || d.registered == nil {
		return hits, err
	}
	for _, h := range hits {
		if h.Found {
			d.registered[h.Ref] = true
		}
	}
	return hits, nil
}

// pass follows moves and states what the disk needs, while rounds go on.
func (d *cycleDisk) pass() error {
	ctx := context.Background()
	d.mu.Lock()
	held, err := d.ListSegments(ctx, &datanode.ListSegmentsRequest{Disk: d.disk, Epoch: 1})
	if err != nil {
		d.mu.Unlock()
		return err
	}
	moved := map[id.Segment]map[id.Slot]id.Ref{}
	for r := (&datanode.ForwardsRequest{Max: 1}); ; {
		reply, err := d.Forwards(ctx, r)
		if err != nil {
			d.mu.Unlock()
			return err
		}
		for _, f := range reply.Forwards {
			moved[f.From] = map[id.Slot]id.Ref{}
			for _, m := range f.Moves {
				moved[f.From][m.Slot] = m.To
			}
			r.After = f.From
		}
		if !reply.More {
			break
		}
	}
	snapshot := d.chunks
	d.listMu.Lock()
	d.registered = map[id.Ref]bool{}
	d.listMu.Unlock()
	d.mu.Unlock()

	live := map[id.Segment][]byte{}
	for _, s := range held.Segments {
		live[s] = nil
	}
	for lba, ref := range snapshot {
		if ref.Segment == 0 {
			continue
		}
		if to, ok := moved[ref.Segment][ref.Slot]; ok {
			d.patch(lba, ref, to)
			ref = to
		}
		live[ref.Segment] = setBit(live[ref.Segment], ref.Slot)
	}
	// Sources first, see datanode.IndexNode.Forward.
	segments := slices.SortedFunc(maps.Keys(live), func(a, b id.Segment) int {
		if (moved[a] != nil) != (moved[b] != nil) {
			return map[bool]int{true: -1, false: 1}[moved[a] != nil]
		}
		return int(a) - int(b)
	})
	return d.setAll(segments, live)
}

func (d *cycleDisk) patch(lba int, from, to id.Ref) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.chunks[lba] != from {
		return
	}
	d.listMu.Lock()
	d.registered[to] = true
	d.listMu.Unlock()
	d.chunks[lba] = to
	d.patches.Add(1)
}

// setAll sends lists, some to a call, and now and then an old one again.
func (d *cycleDisk) setAll(segments []id.Segment, live map[id.Segment][]byte) error {
	defer func() {
		d.listMu.Lock()
		d.registered = nil
		d.listMu.Unlock()
	}()
	for len(segments) > 0 {
		n := min(len(segments), 1+d.passRNG.IntN(6))
		if err := d.setSome(segments[:n], live); err != nil {
			return err
		}
		segments = segments[n:]
	}
	return nil
}

func (d *cycleDisk) freeze(frozen bool) {
	d.listMu.Lock()
	defer d.listMu.Unlock()
	d.frozen = frozen
}

// clones has a clone begin, write, become independent and end.
func (d *cycleDisk) clones(seed uint64) error {
	clone := &cycleDisk{cycle: d.cycle, disk: id.Disk(1000 + d.number.Add(1)), base: d,
		rng: rand.New(rand.NewPCG(seed, 20)), passRNG: rand.New(rand.NewPCG(seed, 21))}
	d.freeze(true)
	defer d.freeze(false)
	d.mu.Lock()
	clone.chunks, clone.want = d.chunks, d.want
	d.mu.Unlock()
	for range 2 {
		if err := errors.Join(clone.round(), clone.check()); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	if err := clone.pass(); err != nil {
		return err
	}
	clone.base = nil
	d.freeze(false)
	for range 3 {
		if err := errors.Join(clone.check(), clone.round(), clone.pass()); err != nil {
			return err
		}
	}
	clone.chunks = [cycleChunks]id.Ref{}
	return errors.Join(clone.pass(), clone.pass())
}

func (d *cycleDisk) setSome(segments []id.Segment, live map[id.Segment][]byte) error {
	d.listMu.Lock()
	defer d.listMu.Unlock()
	if d.frozen {
		return errFrozen
	}
	d.seq++
	r := &datanode.SetListsRequest{Disk: d.disk, Epoch: 1, Seq: d.seq}
	for _, s := range segments {
		l := datanode.List{Segment: s, Bits: slices.Clone(live[s])}
		for ref := range d.registered {
			if ref.Segment == s {
				l.Bits = setBit(l.Bits, ref.Slot)
			}
		}
		r.Lists = append(r.Lists, l)
	}
	reply, err := d.SetLists(context.Background(), r)
	if err == nil && len(reply.Refused) > 0 {
		err = fmt.Errorf("disk %d, update %d: refused %v", d.disk, d.seq, reply.Refused)
	}
	if err == nil && d.old != nil && d.passRNG.IntN(3) == 0 {
		_, err = d.SetLists(context.Background(), d.old)
		d.late.Add(1)
		if errors.Is(err, datanode.ErrGone) {
			err = nil
		}
		d.old = nil
	}
	if d.old == nil || d.passRNG.IntN(8) == 0 {
		d.old = r
	}
	return err
}

// check fails if a chunk of the disk is not there, or not held for it: as long as
// it is needed nobody may delete it.
func (d *cycleDisk) check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listMu.Lock()
	defer d.listMu.Unlock()
	for lba, ref := range d.chunks {
		if ref.Segment == 0 {
			continue
		}
		d.cycle.mu.Lock()
		got := d.contents[ref.Segment][ref.Slot]
		d.cycle.mu.Unlock()
		held := slices.ContainsFunc(d.describe(ref.Segment.Number()).Lists, func(l datanode.DiskList) bool {
			return (l.Disk == d.disk || d.base != nil && l.Disk == d.base.disk) && hasBit(l.Bits, ref.Slot)
		})
		if !held || got != d.want[lba] {
			return fmt.Errorf("disk %d, chunk %d at %+v: held %t, content %d, want %d", d.disk, lba, ref, held, got, d.want[lba])
		}
	}
	return nil
}

// move empties some segments: those with the fewest live slots.
func (c *cycle) move(rng *rand.Rand, seq id.Seq) error {
	ctx := context.Background()
	usage, err := c.Usage(ctx, &datanode.UsageRequest{})
	if err != nil {
		return err
	}
	slices.SortFunc(usage.Segments, func(a, b datanode.SegmentUse) int { return a.LiveSlots*b.Slots - b.LiveSlots*a.Slots })
	var segments []id.Segment
	for _, u := range usage.Segments[:min(len(usage.Segments), 1+rng.IntN(4))] {
		segments = append(segments, u.Segment)
	}
	reply, err := c.Condemn(ctx, &datanode.CondemnRequest{Disk: cycleMover, Epoch: 1, Segments: segments})
	if err != nil || len(reply.Condemned) == 0 {
		return err
	}
	described, err := c.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: reply.Condemned, Slots: true})
	if err != nil {
		return err
	}
	var moves []datanode.Move
	var contents []int
	for _, s := range described.Segments {
		var held []byte
		for _, l := range s.Lists {
			held = orBits(held, l.Bits)
		}
		c.mu.Lock()
		of := c.contents[s.Segment]
		c.mu.Unlock()
		for slot := range of {
			if hasBit(held, id.Slot(slot)) && rng.IntN(16) > 0 {
				moves = append(moves, datanode.Move{From: s.Segment, Slot: id.Slot(slot), To: id.Slot(len(contents)), Location: at(len(contents))})
				contents = append(contents, of[slot])
			}
		}
	}
	if len(moves) == 0 {
		return nil
	}
	target, err := c.store([]datanode.Birth{{Disk: cycleMover, Epoch: 1, Slots: uint16(len(contents))}}, contents)
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond) // copies may be found before they are known as such
	if rng.IntN(10) > 0 {
		c.forwards.Add(1)
		if err := c.Forward(ctx, &datanode.ForwardRequest{Disk: cycleMover, Epoch: 1, Segment: target, Moves: moves}); err != nil {
			return err
		}
	}
	_, err = c.SetLists(ctx, &datanode.SetListsRequest{Disk: cycleMover, Epoch: 1, Seq: seq, Lists: []datanode.List{{Segment: target}}})
	return err
}

func TestCycle(t *testing.T)    { runCycle(t, 12) }
func TestSimCycle(t *testing.T) { runCycle(t, 150) }

// Disks write, find each other's chunks and follow moves, while their segments are
// emptied and deleted: no chunk is ever gone, and at the end nothing is held that
// is not needed.
func runCycle(t *testing.T, forwards int64) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &cycle{house: newHouse(t, vfs.NewMem()), contents: map[id.Segment][]int{}}
	var disks []*cycleDisk
	var running, writing sync.WaitGroup
	began := time.Now()
	for n := range 3 {
		d := &cycleDisk{cycle: c, disk: id.Disk(n + 1), rng: rand.New(rand.NewPCG(seed, uint64(n))),
			passRNG: rand.New(rand.NewPCG(seed, uint64(10+n)))}
		disks = append(disks, d)
		writing.Go(func() {
			for c.forwards.Load() < forwards && time.Since(began) < cycleTime && !t.Failed() {
				if err := d.round(); err != nil {
					t.Error(err)
					return
				}
				if d.rng.IntN(3) > 0 {
					time.Sleep(time.Millisecond) // so that passes keep up
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writing.Wait(); close(done) }()
	until := func(f func() error) {
		running.Go(func() {
			for !t.Failed() {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, d := range disks {
		until(func() error {
			if err := d.pass(); !errors.Is(err, errFrozen) {
				return err
			}
			time.Sleep(time.Millisecond)
			return nil
		})
		until(func() error { time.Sleep(time.Millisecond); return d.check() })
	}
	seeds := rand.New(rand.NewPCG(seed, 8))
	until(func() error { return disks[0].clones(seeds.Uint64()) })
	rng, seq := rand.New(rand.NewPCG(seed, 9)), id.Seq(0)
	until(func() error { seq++; return c.move(rng, seq) })
	until(func() error {
		_, err := c.Reclaim(context.Background(), &datanode.ReclaimRequest{Max: 2})
		return err
	})
	running.Wait()
	if t.Failed() {
		return
	}
	c.quiet(disks)
	t.Logf("%d chunks patched after %d forwards, %d late lists, %d of %d segments deleted", c.patches.Load(), c.forwards.Load(), c.late.Load(),
		len(c.deleted), c.number.Load())
}

// quiet ends the cycle: what is held then is what is needed.
func (c *cycle) quiet(disks []*cycleDisk) {
	for range 2 {
		for _, d := range disks {
			c.ok(d.pass())
		}
	}
	c.reclaimAll()
	usage, err := c.Usage(context.Background(), &datanode.UsageRequest{})
	c.ok(err)
	for _, d := range disks {
		c.ok(d.check())
		need := map[id.Segment]map[id.Slot]bool{}
		for _, ref := range d.chunks {
			if need[ref.Segment] == nil {
				need[ref.Segment] = map[id.Slot]bool{}
			}
			need[ref.Segment][ref.Slot] = true
		}
		for _, u := range usage.Segments {
			i := slices.IndexFunc(u.Disks, func(du datanode.DiskUse) bool { return du.Disk == d.disk })
			held := 0
			if i >= 0 {
				held = u.Disks[i].Slots
			}
			if held != len(need[u.Segment]) {
				c.Errorf("disk %d holds %d slots of %s and needs %d", d.disk, held, u.Segment, len(need[u.Segment]))
			}
		}
	}
	for _, u := range usage.Segments {
		if u.LiveSlots == 0 {
			c.Errorf("segment %s is there and nobody holds it", u.Segment)
		}
	}
}
