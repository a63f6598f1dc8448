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
	"time"

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
