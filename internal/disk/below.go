package disk

import (
	"context"
	"errors"
	"fmt"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/ramcache"
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
		fp, ok := memo.Get(f.lba)
		if ok && d.fillContent(r, f, &fp) {
			continue
		}
		f.missed = ok
		rest = append(rest, *f)
	}
	return rest
}

// fillContent fills with the chunk of that name from RAM or flash; zeros have none.
func (d *Disk) fillContent(r *reader, f *fill, fp *id.Fingerprint) bool {
	return d.fillPages(f, fp) || d.fillFlash(r, f, fp)
}

// fillRAM fills from RAM what is below the write buffer.
func (d *Disk) fillRAM(memo *ramcache.Memo, f *fill) bool {
	fp, ok := memo.Get(f.lba)
	return ok && d.fillPages(f, &fp)
}

// fillFlash fills from the host's flash. What does not open there is given up: the
// spindles have it.
func (d *Disk) fillFlash(r *reader, f *fill, fp *id.Fingerprint) bool {
	if d.pool.Flash == nil {
		return false
	}
	sealed, ok := d.pool.Flash.Get(*fp, r.sealed[:0])
	r.sealed = sealed
	if !ok {
		return false
	}
	if err := d.open(f, sealed, fp, true); err != nil {
		d.pool.Logger.Warn("a cached chunk does not open", "fingerprint", fp, "err", err)
		d.pool.Flash.Discard(*fp)
		return false
	}
	d.stats.flashReads.Add(1)
	return true
}

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
	r.ranges, r.want = r.ranges[:0], r.want[:0]
	for i := range fills {
		switch f, e := &fills[i], &r.entries[i]; {
		case e.Ref == id.Ref{}:
			f.put(nil)
		case f.missed || !d.fillContent(r, f, &e.Fingerprint):
			r.ranges = append(r.ranges, d.pool.Geometry.Locate(e.Ref))
			r.want = append(r.want, i)
		}
	}
	if len(r.ranges) == 0 {
		return nil, nil
	}
	d.stats.chunkReads.Add(int64(len(r.ranges)))
	left := fills[:0] // not before they are done with
	var last error
	for j, data := range d.pool.Stripes.Read(ctx, r.ranges) {
		i := r.want[j]
		f, e := &fills[i], &r.entries[i]
		err := data.Err
		if err == nil {
			err = d.openStored(f, data.Bytes, &e.Fingerprint)
			if err != nil {
				d.stats.chunksBad.Add(1)
			}
		}
		if err != nil && !gone(err) && ctx.Err() == nil {
			_, err = d.pool.Stripes.Reconstruct(ctx, r.ranges[j], func(p []byte) error {
				return d.openStored(f, p, &e.Fingerprint)
			})
		}
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

// openStored opens a chunk of a segment, and has RAM and flash keep it.
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
