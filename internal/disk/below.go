package disk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/ramcache"
	"plinth/internal/stripe"
)

// lookupsMax bounds how often a read follows the map again because what it
// found there was gone: the map had moved on meanwhile.
const lookupsMax = 8

// source is what lies below the write buffer: a map, or a snapshot's view of it,
// and what is remembered of that.
type source struct {
	mapReader
	memo *ramcache.Memo
}

// mapReader is a map, or a snapshot's view of it.
type mapReader interface {
	LookupRange(first id.LBA, out []blockmap.Entry) error
	MappedRuns(first, end id.LBA, rowsMax int, each func(blockmap.Extent)) (id.LBA, error)
}

// below returns what lies below the write buffer. d.mu is held.
func (d *Disk) below() source {
	if d.m != nil {
		return source{d.m, d.memo}
	}
	return d.cfg.Under.source()
}

// holdBelow is below for who lets go of d.mu, until done is called.
func (d *Disk) holdBelow() (s source, done func()) {
	if d.m != nil {
		return d.below(), func() {}
	}
	d.under.Add(1)
	return d.below(), d.under.Done
}

// fillMapped fills from RAM, or else follows the map. A segment that has gone since
// it was looked up is looked up again. Fills are in order of LBA; they change.
func (d *Disk) fillMapped(ctx context.Context, s source, r *reader, fills []fill) error {
	fills = d.fillCached(s.memo, r, fills)
	var last error
	for range lookupsMax {
		if len(fills) == 0 {
			return nil
		}
		if err := d.lookupMap(s, r, fills); err != nil {
			return err
		}
		if fills, last = d.fillEntries(ctx, r, fills); last != nil && !gone(last) {
			return last
		}
	}
	return last
}

func gone(err error) bool {
	return errors.Is(err, datanode.ErrNotFound) || errors.Is(err, datanode.ErrGone)
}

// fillCached fills what can be without the map, and returns the rest.
func (d *Disk) fillCached(memo *ramcache.Memo, r *reader, fills []fill) []fill {
	rest := fills[:0]
	for i := range fills {
		f := &fills[i]
		if f.fp, f.named = memo.Get(f.lba); !f.named || !d.fillPages(f, &f.fp) {
			rest = append(rest, *f)
		}
	}
	if !d.fillFlash(r, rest) {
		return rest
	}
	fills, rest = rest, rest[:0]
	for i := range fills {
		if !fills[i].done {
			rest = append(rest, fills[i])
		}
	}
	return rest
}

// fillRAM fills from RAM what is below the write buffer.
func (d *Disk) fillRAM(memo *ramcache.Memo, f *fill) bool {
	fp, ok := memo.Get(f.lba)
	return ok && d.fillPages(f, &fp)
}

// fillFlash fills those that are named from the host's flash; false: none was.
func (d *Disk) fillFlash(r *reader, fills []fill) bool {
	if d.pool.Flash == nil {
		return false
	}
	var found atomic.Int64
	opening(len(fills), func(first, end int) {
		buf := sealedPool.Get().(*[]byte)
		defer sealedPool.Put(buf)
		n := int64(0)
		for i := first; i < end; i++ {
			if f := &fills[i]; f.named && !f.done {
				if f.done = d.fromFlash(f, buf); f.done {
					n++
				}
				f.named, f.missed = false, !f.done
			}
		}
		found.Add(n)
	})
	if found.Load() == 0 {
		return false
	}
	r.stored = true
	d.stats.flashReads.Add(found.Load())
	return true
}

// fromFlash fills one. What does not open there is given up: the spindles have it.
func (d *Disk) fromFlash(f *fill, buf *[]byte) bool {
	sealed, ok := d.pool.Flash.Get(f.fp, (*buf)[:0])
	*buf = sealed
	if !ok {
		return false
	}
	if err := d.open(f, sealed, &f.fp, true); err != nil {
		d.pool.Logger.Debug("a cached chunk does not open", "fingerprint", f.fp.String(), "err", err)
		d.pool.Flash.Discard(f.fp)
		return false
	}
	return true
}

// fillPeer fills from another host's flash what this one's has not, and has RAM and flash
// keep it. What does not open is as good as not there.
func (d *Disk) fillPeer(ctx context.Context, r *reader, fills []fill) {
	if d.cfg.Peer == nil {
		return
	}
	r.names, r.want = r.names[:0], r.want[:0]
	for i := range fills {
		if f := &fills[i]; !f.done {
			r.names, r.want = append(r.names, f.fp), append(r.want, i)
		}
	}
	if len(r.names) == 0 {
		return
	}
	d.cfg.Peer.Get(ctx, r.names, func(j int, sealed []byte) bool {
		f := &fills[r.want[j]]
		if err := d.openStored(f, sealed, &f.fp); err != nil {
			d.pool.Logger.Debug("a chunk from another host's flash does not open", "fingerprint", f.fp.String(), "err", err)
			return false
		}
		f.done, r.stored = true, true
		d.stats.peerReads.Add(1)
		return true
	})
}

var sealedPool = sync.Pool{New: func() any { return new([]byte) }}

// fillPages fills from a chunk's pages in RAM.
func (d *Disk) fillPages(f *fill, fp *id.Fingerprint) bool {
	if *fp == (id.Fingerprint{}) {
		f.put(nil)
		return true
	}
	if f.runs == nil {
		return d.pool.RAM.Get(f.dst, fp, f.off)
	}
	for _, r := range f.runs {
		if !d.pool.RAM.Get(f.dst[int(r.first)-f.off:int(r.end)-f.off], fp, int(r.first)) {
			return false
		}
	}
	return true
}

// lookupMap sets r.entries to the map's entry for each fill; fills are in order of
// LBA.
func (d *Disk) lookupMap(s source, r *reader, fills []fill) error {
	if cap(r.entries) < len(fills) {
		r.entries = make([]blockmap.Entry, len(fills))
	}
	r.entries = r.entries[:len(fills)]
	ticket := s.memo.Ticket()
	for i := 0; i < len(fills); {
		j := i + 1
		for j < len(fills) && fills[j].lba == fills[j-1].lba+1 {
			j++
		}
		if err := s.LookupRange(fills[i].lba, r.entries[i:j]); err != nil {
			return fmt.Errorf("disk %s, chunks %d to %d: look up: %w", d.cfg.Name, fills[i].lba, fills[j-1].lba, err)
		}
		i = j
	}
	for i := range fills {
		s.memo.Put(ticket, fills[i].lba, &r.entries[i].Fingerprint)
	}
	return nil
}

// fillEntries reads and opens chunks as r.entries says. It returns the fills whose
// segments are gone, with that error; any other error ends it.
func (d *Disk) fillEntries(ctx context.Context, r *reader, fills []fill) ([]fill, error) {
	r.ranges = r.ranges[:0]
	for i := range fills {
		f, e := &fills[i], &r.entries[i]
		asked := f.missed && f.fp == e.Fingerprint
		switch {
		case e.Ref == id.Ref{}:
			f.put(nil)
			f.done = true
		case !asked:
			f.done = d.fillPages(f, &e.Fingerprint)
		}
		f.fp, f.named = e.Fingerprint, !asked && !f.done
	}
	d.fillFlash(r, fills)
	d.fillPeer(ctx, r, fills)
	r.want = r.want[:0]
	for i := range fills {
		if !fills[i].done {
			r.ranges = append(r.ranges, d.pool.Geometry.Locate(r.entries[i].Ref))
			r.want = append(r.want, i)
		}
	}
	if len(r.ranges) == 0 {
		return nil, nil
	}
	r.stored = true
	d.stats.chunkReads.Add(int64(len(r.ranges)))
	r.errs = slices.Grow(r.errs[:0], len(r.ranges))[:len(r.ranges)]
	defer clear(r.errs)
	data := d.pool.Stripes.ReadIn(ctx, &r.stripes, r.ranges)
	opening(len(data), func(first, end int) {
		for j := first; j < end; j++ {
			i := r.want[j]
			r.errs[j] = d.fillStored(ctx, &fills[i], r.ranges[j], data[j], &r.entries[i].Fingerprint)
		}
	})
	left := fills[:0] // not before they are done with
	var last error
	for j, err := range r.errs {
		i := r.want[j]
		f, e := &fills[i], &r.entries[i]
		switch {
		case err == nil:
		case gone(err):
			last = d.at(e, f.lba, err)
			left = append(left, *f)
		default:
			return nil, d.at(e, f.lba, err)
		}
	}
	return left, last
}

// openingChunksMin is how many chunks to open are worth a goroutine: some 100 µs.
const openingChunksMin = 64

// opening runs open for the parts of n chunks, on as many processors as are worth
// it.
func opening(n int, open func(first, end int)) {
	parts := max(1, min(runtime.GOMAXPROCS(0), n/openingChunksMin))
	var wg sync.WaitGroup
	for i := range parts - 1 {
		wg.Go(func() { open(n*i/parts, n*(i+1)/parts) })
	}
	open(n*(parts-1)/parts, n)
	wg.Wait()
}

// fillStored opens what was read of a segment, or else what can be computed from
// other fragments.
func (d *Disk) fillStored(ctx context.Context, f *fill, at stripe.Range, data stripe.Data, fp *id.Fingerprint) error {
	err := data.Err
	if err == nil {
		if err = d.openStored(f, data.Bytes, fp); err == nil {
			return nil
		}
		d.stats.chunksBad.Add(1)
	}
	if !gone(err) && ctx.Err() == nil {
		_, err = d.pool.Stripes.Reconstruct(ctx, at, func(p []byte) error { return d.openStored(f, p, fp) })
	}
	return err
}

// openStored opens a chunk that this host has not in its flash, and has RAM and flash keep it.
func (d *Disk) openStored(f *fill, sealed []byte, fp *id.Fingerprint) error {
	err := d.open(f, sealed, fp, true)
	if err == nil && d.pool.Flash != nil {
		d.pool.Flash.Put(*fp, sealed)
	}
	return err
}

// at says where a read failed.
func (d *Disk) at(e *blockmap.Entry, lba id.LBA, err error) error {
	return fmt.Errorf("disk %s, chunk %d, segment %s, slot %d: %w: %w", d.cfg.Name, lba, e.Ref.Segment, e.Ref.Slot, ErrCorrupt, err)
}
