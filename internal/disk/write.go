package disk

import (
	"context"
	"sync"

	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

const (
	// portionBytesMax cuts a long call, so that it admits, seals and appends
	// piece by piece: half an append. A small log makes it less.
	portionBytesMax = 4 << 20
	portionBytesMin = recordPlainBytesMax
	// logShare of the log is the most that a portion may take: what is appended
	// together must fit in what is free when most of the log is.
	logShare = 8
	// recordPlainBytesMax bounds the chunks of one write record: long enough
	// that headers are nothing, short enough for little scratch.
	recordPlainBytesMax = 256 << 10
	// slotChargeBytes is charged for a chunk beside its own bytes: header
	// blocks and tables.
	slotChargeBytes = 64
)

// WriteAt writes p at byte off. When it returns nil the write survives the death
// of this process, and with fua (or a disk that is always stable) a loss of
// power. p is not kept. It may wait for destaging to make room. Errors:
// ErrNoSpace (a prefix may be written), ErrOutOfRange, ErrClosed, ErrFailed.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.writeAt(ctx, nil, p, off, fua)
}

func (d *Disk) writeAt(ctx context.Context, tag *id.Tag, p []byte, off int64, fua bool) error {
	if err := d.enter(off, int64(len(p))); err != nil {
		return err
	}
	defer d.leave()
	var part progress
	done, err := d.isDone(tag, off, int64(len(p)))
	if err != nil {
		return err
	}
	p, off = p[done:], off+done
	for len(p) > 0 {
		n := min(len(p), d.pool.portionBytes()-int(off%int64(d.size)))
		last, err := d.write(ctx, tag, p[:n], off)
		if err != nil {
			return d.interrupted(part, int64(n), last, err)
		}
		p, off = p[n:], off+int64(n)
		part.logged(int64(n), last)
	}
	return d.interrupted(part, 0, 0, d.settle(ctx, fua))
}

// portionBytes returns how much of a call is appended at a time.
func (p *Pool) portionBytes() int {
	n := portionBytesMax
	for p.LogBytes > 0 && n > portionBytesMin && int64(n) > p.LogBytes/logShare {
		n /= 2
	}
	return n
}

// Zero makes n bytes at off read as zeros; whole chunks give their space back.
// Durability and errors are WriteAt's.
func (d *Disk) Zero(ctx context.Context, off, n int64, fua bool) error {
	return d.zero(ctx, nil, off, n, fua)
}

func (d *Disk) zero(ctx context.Context, tag *id.Tag, off, n int64, fua bool) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.leave()
	var part progress
	done, err := d.isDone(tag, off, n)
	if err != nil {
		return err
	}
	if done < n {
		size := int64(d.size)
		edges := int64(0)
		if off%size != 0 {
			edges++
		}
		if (off+n)%size != 0 {
			edges++
		}
		op := logrec.Op{Type: logrec.TypeZero, Off: off, Len: n}
		rec := []pending{{op: op, data: logrec.AppendRange(nil, off, n)}}
		last, err := d.submit(ctx, edges*d.chunkCharge(), tagged(rec, tag, off+n))
		if err != nil {
			return d.interrupted(part, n, last, err)
		}
		part.logged(n, last)
	}
	return d.interrupted(part, 0, 0, d.settle(ctx, fua))
}

// Trim gives up n bytes at off: those chunks that lie wholly in the range read
// as zeros from now on, the rest is unchanged. Durability and errors are
// WriteAt's, without ErrNoSpace.
func (d *Disk) Trim(ctx context.Context, off, n int64, fua bool) error {
	return d.trim(ctx, nil, off, n, fua)
}

func (d *Disk) trim(ctx context.Context, tag *id.Tag, off, n int64, fua bool) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.leave()
	part := progress{bytes: n} // of a trim of no whole chunk
	done, err := d.isDone(tag, off, n)
	if err != nil {
		return err
	}
	size, all := int64(d.size), off+n
	end := all
	if end < d.Size() { // the end of the disk ends its last chunk too
		end = end / size * size
	}
	if off = (off + size - 1) / size * size; off < end && done < n {
		op := logrec.Op{Type: logrec.TypeTrim, Off: off, Len: end - off}
		rec := []pending{{op: op, data: logrec.AppendRange(nil, off, end-off)}}
		last, err := d.submit(ctx, 0, tagged(rec, tag, all))
		if err != nil {
			return d.interrupted(progress{}, n, last, err)
		}
		part.at = last
	}
	return d.interrupted(part, 0, 0, d.settle(ctx, fua))
}

// Resize makes the disk larger, durably. A size below the present one is
// ErrOutOfRange.
func (d *Disk) Resize(ctx context.Context, bytes int64) error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	defer d.leave()
	if bytes < d.Size() || bytes > logrec.DiskBytesMax {
		return ErrOutOfRange
	}
	op := logrec.Op{Type: logrec.TypeResize, Len: bytes}
	if _, err := d.submit(ctx, 0, []pending{{op: op, data: logrec.AppendResize(nil, bytes)}}); err != nil {
		return err
	}
	return d.settle(ctx, true)
}

// chunkCharge is the most that one chunk may take in a segment.
func (d *Disk) chunkCharge() int64 { return int64(chunk.SealedCap(int(d.size))) + slotChargeBytes }

// write logs one portion. It returns the position of its last record, 0 where it has
// none.
func (d *Disk) write(ctx context.Context, tag *id.Tag, p []byte, off int64) (id.Pos, error) {
	var charge int64
	rest := p
	for pc := range d.size.Split(off, int64(len(p))) {
		if pc.Len < int(d.size) || !chunk.IsZero(rest[:pc.Len]) {
			charge += d.chunkCharge()
		}
		rest = rest[pc.Len:]
	}
	if err := d.pool.Space.Acquire(ctx, charge); err != nil {
		return 0, err
	}
	c := commit{charge: charge}
	var err error
	if c.recs, err = d.encode(p, off); err == nil {
		c.recs = tagged(c.recs, tag, off+int64(len(p)))
		err = d.enqueue(ctx, &c)
	}
	if err != nil {
		d.pool.Space.Release(d.ctx, c.charge)
	}
	return c.last, err
}

// enqueue commits, unless the caller has gone: a client that lost its connection
// while its write waited has sent it again, and perhaps a later one to the same
// place, which the first must not overwrite now.
func (d *Disk) enqueue(ctx context.Context, c *commit) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.commit(c)
}

// submit admits and commits one operation. It returns what write does.
func (d *Disk) submit(ctx context.Context, charge int64, recs []pending) (id.Pos, error) {
	if err := d.pool.Space.Acquire(ctx, charge); err != nil {
		return 0, err
	}
	c := commit{recs: recs, charge: charge}
	err := d.enqueue(ctx, &c)
	if err != nil {
		d.pool.Space.Release(d.ctx, c.charge)
	}
	return c.last, err
}

// encode makes the records of a write: runs of whole chunks sealed, runs of zero
// chunks, and parts, which are sealed when their position is known.
func (d *Disk) encode(p []byte, off int64) ([]pending, error) {
	scratch := scratchPool.Get().(*[]byte)
	defer scratchPool.Put(scratch)
	runMax := recordPlainBytesMax / int(d.size)
	var recs []pending
	var run sealedRun
	for pc := range d.size.Split(off, int64(len(p))) {
		plain := p[:pc.Len]
		p = p[pc.Len:]
		at := int64(pc.LBA)*int64(d.size) + int64(pc.Off)
		whole := pc.Len == int(d.size)
		if whole && !chunk.IsZero(plain) {
			if run.n == 0 {
				run = sealedRun{first: pc.LBA, buf: (*scratch)[:0]}
			}
			var err error
			if run.buf, err = d.pool.Sealer.SealChunk(run.buf, d.cfg.Suite, d.pool.Hasher.Sum(plain), plain); err != nil {
				return nil, err
			}
			run.ends[run.n] = len(run.buf)
			if run.n++; run.n == runMax {
				recs = run.appendTo(recs)
			}
			*scratch = run.buf[:0]
			continue
		}
		recs = run.appendTo(recs)
		if !whole {
			op := logrec.Op{Type: logrec.TypePart, Off: at, Len: int64(pc.Len)}
			recs = append(recs, pending{op: op, plain: plain})
			continue
		}
		if n := len(recs); n > 0 && recs[n-1].op.Type == logrec.TypeZero && recs[n-1].op.Off+recs[n-1].op.Len == at {
			recs[n-1].op.Len += int64(pc.Len)
			continue
		}
		recs = append(recs, pending{op: logrec.Op{Type: logrec.TypeZero, Off: at, Len: int64(pc.Len)}})
	}
	recs = run.appendTo(recs)
	for i := range recs {
		if recs[i].op.Type == logrec.TypeZero {
			recs[i].data = logrec.AppendRange(nil, recs[i].op.Off, recs[i].op.Len)
		}
	}
	return recs, nil
}

// sealedRun collects the sealed chunks of one write record.
type sealedRun struct {
	first id.LBA
	n     int
	buf   []byte
	ends  [recordPlainBytesMax / int(chunk.SizeMin)]int
}

// appendTo ends the run: its bytes move to a record of just their size, in
// which they stay until they are destaged.
func (r *sealedRun) appendTo(recs []pending) []pending {
	if r.n == 0 {
		return recs
	}
	data := logrec.AppendWrite(make([]byte, 0, writeHeaderCap+len(r.buf)), r.first, r.n)
	head := len(data)
	data = append(data, r.buf...)
	op := logrec.Op{Type: logrec.TypeWrite, First: r.first, Chunks: make([][]byte, r.n)}
	start := head
	for i := range r.n {
		end := head + r.ends[i]
		op.Chunks[i] = data[start:end:end]
		start = end
	}
	r.n = 0
	return append(recs, pending{op: op, data: data})
}

// writeHeaderCap is room for a write record's header.
const writeHeaderCap = 16

var scratchPool = sync.Pool{New: func() any {
	b := make([]byte, 0, recordPlainBytesMax+recordPlainBytesMax/16)
	return &b
}}

// plainPool holds buffers for one chunk's plaintext.
var plainPool = sync.Pool{New: func() any {
	b := make([]byte, 0, chunk.SizeMax)
	return &b
}}

// partRecord seals a part for its position.
func (d *Disk) partRecord(r *pending, pos id.Pos) error {
	data := make([]byte, 0, writeHeaderCap+chunk.SealedCap(len(r.plain)))
	data = logrec.AppendPart(data, r.op.Off, len(r.plain))
	ad := chunk.PartAD{Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Pos: pos, Offset: uint64(r.op.Off)}
	data, err := d.pool.Sealer.SealPart(data, d.cfg.Suite, ad, r.plain)
	r.data = data
	return err
}
