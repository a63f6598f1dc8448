package disk

import (
	"context"
	"errors"
	"fmt"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// lookupsMax bounds how often a read follows the map again because what it
// found there was gone: the map had moved on meanwhile.
const lookupsMax = 8

// ReadAt fills p from byte off. Of writes under way at the same time it may see
// any, of writes that have returned it sees all. Errors: ErrOutOfRange,
// ErrClosed, ErrFailed, ErrCorrupt.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.enter(off, int64(len(p))); err != nil {
		return err
	}
	defer d.leave()
	for len(p) > 0 {
		n := min(len(p), portionBytesMax-int(off%int64(d.size)))
		if err := d.read(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return d.pool.MayReply()
}

// fill is what a read still wants of one chunk.
type fill struct {
	lba    id.LBA
	dst    []byte  // of the caller, for bytes [off, off+len(dst)) of the chunk
	off    int     // in the chunk
	runs   extents // the wanted bytes, in the chunk
	sealed []byte  // where the write buffer has it
}

// whole reports whether all of the chunk goes to dst.
func (f *fill) whole(size chunk.Size) bool {
	return len(f.dst) == int(size) && f.runs[0] == extent{0, int64(size)}
}

// put copies the wanted bytes out of the chunk's plaintext, nil for zeros.
func (f *fill) put(plain []byte) {
	for _, r := range f.runs {
		dst := f.dst[int(r.first)-f.off : int(r.end)-f.off]
		if plain == nil {
			clear(dst)
		} else {
			copy(dst, plain[r.first:r.end])
		}
	}
}

func (d *Disk) read(ctx context.Context, p []byte, off int64) error {
	var buffered, mapped []fill
	d.mu.RLock()
	if d.err != nil { // the write buffer may have been given up
		defer d.mu.RUnlock()
		return d.err
	}
	layers := d.layers
	for pc := range d.size.Split(off, int64(len(p))) {
		f := fill{lba: pc.LBA, dst: p[:pc.Len:pc.Len], off: pc.Off, runs: extents{{int64(pc.Off), int64(pc.Off + pc.Len)}}}
		p = p[pc.Len:]
		for i := len(layers) - 1; i >= 0 && len(f.runs) > 0 && f.sealed == nil; i-- {
			layers[i].fill(&f)
		}
		switch {
		case f.sealed != nil:
			buffered = append(buffered, f)
		case len(f.runs) > 0:
			mapped = append(mapped, f)
		}
	}
	m, done := d.mapped()
	d.mu.RUnlock()
	defer done()
	for i := range buffered {
		if err := d.fillSealed(&buffered[i]); err != nil {
			return err
		}
	}
	return d.fillMapped(ctx, m, mapped)
}

// fill copies what the layer knows of the wanted bytes; a sealed chunk is only
// noted. The disk's mu is held.
func (l *layer) fill(f *fill) {
	e := l.entries[f.lba]
	switch {
	case e == nil:
		if len(l.zeros) > 0 && l.zeros.contains(int64(f.lba)) {
			f.put(nil)
			f.runs = nil
		}
	case e.sealed != nil:
		f.sealed = e.sealed
	default:
		known, rest := f.runs.split(e.valid)
		part := *f
		part.runs = known
		part.put(e.plain)
		f.runs = rest
	}
}

// fillSealed opens a chunk of the write buffer.
func (d *Disk) fillSealed(f *fill) error {
	h, err := chunk.ParseHeader(f.sealed)
	if err == nil {
		err = d.open(f, f.sealed, h.Fingerprint)
	}
	if err != nil {
		return fmt.Errorf("disk %s, chunk %d in the write buffer: %w: %w", d.cfg.Name, f.lba, ErrCorrupt, err)
	}
	return nil
}

// open decrypts a sealed chunk to where it is wanted.
func (d *Disk) open(f *fill, sealed []byte, fp id.Fingerprint) error {
	if f.whole(d.size) {
		plain, err := d.pool.Opener.OpenChunk(f.dst[:0:d.size], sealed, fp)
		if err == nil && len(plain) != int(d.size) {
			err = fmt.Errorf("a chunk of %d bytes: %w", len(plain), chunk.ErrCorrupt)
		}
		return err
	}
	buf := plainPool.Get().(*[]byte)
	defer plainPool.Put(buf)
	plain, err := d.pool.Opener.OpenChunk((*buf)[:0], sealed, fp)
	if err == nil && len(plain) != int(d.size) {
		err = fmt.Errorf("a chunk of %d bytes: %w", len(plain), chunk.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	f.put(plain)
	return nil
}

// mapReader is a map, or a snapshot's view of it.
type mapReader interface {
	LookupRange(first id.LBA, out []blockmap.Entry) error
	MappedRuns(first, end id.LBA, rowsMax int, each func(blockmap.Extent)) (id.LBA, error)
}

// mapped returns what lies below the write buffer, to be used until done is
// called. d.mu is held.
func (d *Disk) mapped() (m mapReader, done func()) {
	if d.m != nil {
		return d.m, func() {}
	}
	d.under.Add(1)
	return d.cfg.Under.view, d.under.Done
}

// fillMapped follows the map. A segment that has gone since it was looked up is
// looked up again.
func (d *Disk) fillMapped(ctx context.Context, m mapReader, fills []fill) error {
	var last error
	for range lookupsMax {
		if len(fills) == 0 {
			return nil
		}
		entries, err := d.lookupMap(m, fills)
		if err != nil {
			return err
		}
		if fills, last = d.fillEntries(ctx, fills, entries); last != nil && !gone(last) {
			return last
		}
	}
	return last
}

func gone(err error) bool {
	return errors.Is(err, datanode.ErrNotFound) || errors.Is(err, datanode.ErrGone)
}

// lookupMap returns the map's entry for each fill; fills are in order of LBA.
func (d *Disk) lookupMap(m mapReader, fills []fill) ([]blockmap.Entry, error) {
	entries := make([]blockmap.Entry, len(fills))
	for i := 0; i < len(fills); {
		j := i + 1
		for j < len(fills) && fills[j].lba == fills[j-1].lba+1 {
			j++
		}
		if err := m.LookupRange(fills[i].lba, entries[i:j]); err != nil {
			return nil, fmt.Errorf("disk %s, chunks %d to %d: look up: %w", d.cfg.Name, fills[i].lba, fills[j-1].lba, err)
		}
		i = j
	}
	return entries, nil
}

// fillEntries reads and opens chunks. It returns the fills whose segments are
// gone, with that error; any other error ends it.
func (d *Disk) fillEntries(ctx context.Context, fills []fill, entries []blockmap.Entry) ([]fill, error) {
	var ranges []stripe.Range
	var want []int
	for i := range fills {
		if entries[i].Ref == (id.Ref{}) {
			fills[i].put(nil)
			continue
		}
		ranges = append(ranges, d.pool.Geometry.Locate(entries[i].Ref))
		want = append(want, i)
	}
	if len(ranges) == 0 {
		return nil, nil
	}
	d.stats.chunkReads.Add(int64(len(ranges)))
	var left []fill
	var last error
	for j, data := range d.pool.Stripes.Read(ctx, ranges) {
		i := want[j]
		f, e := &fills[i], entries[i]
		err := data.Err
		if err == nil {
			err = d.open(f, data.Bytes, e.Fingerprint)
			if err != nil {
				d.stats.chunksBad.Add(1)
			}
		}
		if err != nil && !gone(err) && ctx.Err() == nil {
			_, err = d.pool.Stripes.Reconstruct(ctx, ranges[j], func(p []byte) error {
				return d.open(f, p, e.Fingerprint)
			})
		}
		switch {
		case err == nil:
		case gone(err):
			left, last = append(left, *f), d.at(e, f.lba, err)
		default:
			return nil, d.at(e, f.lba, err)
		}
	}
	return left, last
}

// at says where a read failed.
func (d *Disk) at(e blockmap.Entry, lba id.LBA, err error) error {
	return fmt.Errorf("disk %s, chunk %d, segment %s, slot %d: %w: %w", d.cfg.Name, lba, e.Ref.Segment, e.Ref.Slot, ErrCorrupt, err)
}
