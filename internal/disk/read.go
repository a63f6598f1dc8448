package disk

import (
	"context"
	"fmt"
	"sync"

	"plinth/blockmap"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// tryOpensMax bounds the chunks of the write buffer that TryReadAt opens, at 1 to
// 2 µs each.
const tryOpensMax = 8

// ReadAt fills p from byte off. Of writes under way at the same time it may see
// any, of writes that have returned it sees all. Errors: ErrOutOfRange,
// ErrClosed, ErrFailed, ErrCorrupt.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.enter(off, int64(len(p))); err != nil {
		return err
	}
	defer d.leave()
	r := readers.Get().(*reader)
	defer readers.Put(r)
	d.ahead.begin(ctx, off, int64(len(p)))
	first := off
	r.stored = false
	for len(p) > 0 {
		n := min(len(p), portionBytesMax-int(off%int64(d.size)))
		if err := d.read(ctx, r, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	d.readAhead(first, off-first, !r.stored)
	return d.mayReply()
}

// TryReadAt is ReadAt for what is in memory: it neither waits nor allocates, but
// when it has more fetched, and takes microseconds. False says that ReadAt is to be called; p may be partly
// written then.
func (d *Disk) TryReadAt(p []byte, off int64) bool {
	var sealed [tryOpensMax]fill
	n, ok := d.tryFill(sealed[:], p, off)
	if !ok {
		return false
	}
	for i := range n {
		if d.fillSealed(&sealed[i]) != nil {
			return false
		}
	}
	d.readAhead(off, int64(len(p)), true)
	return d.mayReply() == nil
}

// tryFill fills p but for some chunks of the write buffer, which it notes.
func (d *Disk) tryFill(sealed []fill, p []byte, off int64) (n int, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock() // until the end: so a rollback need not wait for this as for a call
	if d.admits(off, int64(len(p))) != nil {
		return 0, false
	}
	memo := d.below().memo
	for pc := range d.size.Split(off, int64(len(p))) {
		f := fill{lba: pc.LBA, dst: p[:pc.Len:pc.Len], off: pc.Off}
		p = p[pc.Len:]
		switch d.fillLayers(&f); {
		case f.done:
		case f.sealed == nil:
			if !d.fillRAM(memo, &f) {
				return 0, false
			}
		case n == len(sealed):
			return 0, false
		default:
			sealed[n] = f
			n++
		}
	}
	return n, true
}

// fill is what a read still wants of one chunk.
type fill struct {
	lba    id.LBA
	dst    []byte  // of the caller, for bytes [off, off+len(dst)) of the chunk
	off    int     // in the chunk
	runs   extents // the wanted bytes, in the chunk; nil: all of dst
	sealed []byte  // where the write buffer has it
	done   bool    // nothing is wanted
	// fp names the chunk in flash, if named; missed: flash had nothing of that name.
	fp     id.Fingerprint
	named  bool
	missed bool
}

// whole reports whether all of the chunk goes to dst.
func (f *fill) whole(size chunk.Size) bool { return f.runs == nil && len(f.dst) == int(size) }

func (f *fill) wanted() extents {
	if f.runs == nil {
		return extents{{int64(f.off), int64(f.off + len(f.dst))}}
	}
	return f.runs
}

// put copies the wanted bytes out of the chunk's plaintext, nil for zeros.
func (f *fill) put(plain []byte) {
	if f.runs == nil {
		copyOrClear(f.dst, plain, f.off)
		return
	}
	for _, r := range f.runs {
		copyOrClear(f.dst[int(r.first)-f.off:int(r.end)-f.off], plain, int(r.first))
	}
}

func copyOrClear(dst, plain []byte, off int) {
	if plain == nil {
		clear(dst)
	} else {
		copy(dst, plain[off:])
	}
}

// reader is the memory of one call of ReadAt.
type reader struct {
	buffered, mapped []fill
	entries          []blockmap.Entry
	ranges           []stripe.Range
	names            []id.Fingerprint // that another host is asked for
	want             []int            // by range, or by name: the fill
	errs             []error          // by range
	stripes          stripe.Memory
	stored           bool // something was not in memory
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// read fills one portion.
func (d *Disk) read(ctx context.Context, r *reader, p []byte, off int64) error {
	r.buffered, r.mapped = r.buffered[:0], r.mapped[:0]
	defer func() { clear(r.buffered); clear(r.mapped) }() // of what is the caller's
	d.mu.RLock()
	if d.err != nil { // the write buffer may have been given up
		defer d.mu.RUnlock()
		return d.err
	}
	for pc := range d.size.Split(off, int64(len(p))) {
		f := fill{lba: pc.LBA, dst: p[:pc.Len:pc.Len], off: pc.Off}
		p = p[pc.Len:]
		switch d.fillLayers(&f); {
		case f.done:
		case f.sealed != nil:
			r.buffered = append(r.buffered, f)
		default:
			r.mapped = append(r.mapped, f)
		}
	}
	s, done := d.holdBelow()
	d.mu.RUnlock()
	defer done()
	for i := range r.buffered {
		if err := d.fillSealed(&r.buffered[i]); err != nil {
			return err
		}
	}
	return d.fillMapped(ctx, s, r, r.mapped)
}

// fillLayers fills what the write buffer knows; a sealed chunk is only noted. d.mu
// is held.
func (d *Disk) fillLayers(f *fill) {
	for i := len(d.layers) - 1; i >= 0 && !f.done && f.sealed == nil; i-- {
		d.layers[i].fill(f)
	}
}

// fill copies what the layer knows of the wanted bytes; a sealed chunk is only
// noted. The disk's mu is held.
func (l *layer) fill(f *fill) {
	e := l.entries[f.lba]
	switch {
	case e == nil:
		if len(l.zeros) > 0 && l.zeros.contains(int64(f.lba)) {
			f.put(nil)
			f.done = true
		}
	case e.sealed != nil:
		f.sealed = e.sealed
	case f.runs == nil && e.valid.covers(int64(f.off), int64(f.off+len(f.dst))):
		f.put(e.plain)
		f.done = true
	default:
		known, rest := f.wanted().split(e.valid)
		part := *f
		if part.runs = known; len(known) > 0 {
			part.put(e.plain)
		}
		f.runs, f.done = rest, len(rest) == 0
	}
}

// fillSealed opens a chunk of the write buffer.
func (d *Disk) fillSealed(f *fill) error {
	h, err := chunk.ParseHeader(f.sealed)
	if err == nil {
		err = d.open(f, f.sealed, &h.Fingerprint, false)
	}
	if err != nil {
		return fmt.Errorf("disk %s, chunk %d in the write buffer: %w: %w", d.cfg.Name, f.lba, ErrCorrupt, err)
	}
	return nil
}

// open decrypts a sealed chunk to where it is wanted, and keeps it in RAM if it is
// told to.
func (d *Disk) open(f *fill, sealed []byte, fp *id.Fingerprint, keep bool) error {
	whole, dst := f.whole(d.size), f.dst[:0]
	if !whole {
		buf := plainPool.Get().(*[]byte)
		defer plainPool.Put(buf)
		dst = (*buf)[:0]
	}
	plain, err := d.pool.Opener.OpenChunk(dst, sealed, *fp)
	if err == nil && len(plain) != int(d.size) {
		err = fmt.Errorf("a chunk of %d bytes: %w", len(plain), chunk.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	if !whole {
		f.put(plain)
	}
	if keep {
		d.pool.RAM.Put(fp, plain)
	}
	return nil
}
