package index

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

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
