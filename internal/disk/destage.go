package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"plinth/datanode"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// segmentWritersMax is how many segments of a round are encoded and written at
// a time: each holds some 20 MiB meanwhile.
const segmentWritersMax = 2

// Destage moves the oldest frozen layer of each of the disks into segments,
// together, so that small layers share segments. A disk without one is left
// alone. An error of one disk fails that disk only and is returned when the
// others are done; an error of the spindles ends the round with all layers kept.
func (p *Pool) Destage(ctx context.Context, disks []*Disk) error {
	p.round.Lock()
	defer p.round.Unlock()
	r := &round{pool: p, placed: make(map[id.Fingerprint]place), pace: func(ctx context.Context) error { return ctx.Err() }}
	if p.Pace != nil {
		r.pace = p.Pace()
	}
	var errs []error
	for _, d := range disks {
		w, err := d.beginWork(ctx)
		if err != nil {
			errs = append(errs, err)
		}
		if w != nil {
			defer d.destageMu.Unlock()
			r.works = append(r.works, w)
		}
	}
	if len(r.works) == 0 {
		return errors.Join(errs...)
	}
	if err := r.store(ctx); err != nil {
		for _, w := range r.works {
			w.d.stats.failed.Add(1)
		}
		return errors.Join(append(errs, err)...)
	}
	// A result that is cut short would fail its disk; it takes milliseconds.
	ctx = context.WithoutCancel(ctx)
	for _, w := range r.works {
		if err := w.finish(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Rotate ends the active layer, so that rounds can destage what has been
// acknowledged so far.
func (d *Disk) Rotate() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil && !d.closing {
		d.freeze()
	}
}

// Frozen reports whether there is a layer that waits for a round.
func (d *Disk) Frozen() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.err == nil && !d.closing && d.m != nil && len(d.layers) > 1
}

// beginWork takes the disk's oldest frozen layer, makes the log stable that far
// and resolves what is in it. It returns nil if there is nothing to do; else
// destageMu is held.
func (d *Disk) beginWork(ctx context.Context) (w *work, err error) {
	d.destageMu.Lock()
	defer func() {
		if w == nil {
			d.destageMu.Unlock()
		}
	}()
	d.mu.Lock()
	if d.err != nil || d.closing || d.m == nil || len(d.layers) == 1 {
		d.mu.Unlock()
		return nil, nil
	}
	l := d.layers[0]
	d.mu.Unlock()
	if err := d.sync(ctx); err != nil {
		return nil, err
	}
	return d.resolve(ctx, l)
}

// round is one destaging of several disks.
type round struct {
	pool   *Pool
	works  []*work
	placed map[id.Fingerprint]place // what this round stores
	group  *errgroup.Group
	packs  []*pack
	open   *pack // not yet full
	pace   func(context.Context) error
}

// pack is a segment in the making.
type pack struct {
	builder *stripe.Builder
	segment *stripe.Segment
}

// place is a slot of a pack, and the disk that it was born for.
type place struct {
	pack  *pack
	slot  id.Slot
	owner *work
}

// store finds or makes a place for every chunk of every work: after it all
// references are filled in and stable.
func (r *round) store(ctx context.Context) error {
	var deferred []*work
	if err := r.write(ctx, func(ctx context.Context) error {
		for _, w := range r.works {
			again, err := r.place(ctx, w, w.all(), true)
			if err != nil {
				return err
			}
			if w.again = again; len(again) > 0 {
				deferred = append(deferred, w)
			}
		}
		return nil
	}); err != nil || len(deferred) == 0 {
		return err
	}
	// What another disk of this round has stored is now known to the index, and
	// only a look-up gives this disk a hold on it (I10).
	return r.write(ctx, func(ctx context.Context) error {
		for _, w := range deferred {
			if _, err := r.place(ctx, w, w.again, false); err != nil {
				return err
			}
		}
		return nil
	})
}

// write runs fill, writes the packs that it fills, and publishes them.
func (r *round) write(ctx context.Context, fill func(context.Context) error) error {
	var gctx context.Context
	r.group, gctx = errgroup.WithContext(ctx)
	r.group.SetLimit(segmentWritersMax)
	r.packs, r.open = nil, nil
	err := fill(gctx)
	if err == nil {
		r.seal(gctx)
	}
	if werr := r.group.Wait(); werr != nil {
		err = werr
	}
	if err == nil {
		failpoint.Reach(failpoint.Fragments)
		err = r.publish(ctx)
	}
	if err != nil { // the next round writes it all again, elsewhere
		for _, p := range r.packs {
			if p.segment != nil {
				r.pool.Stripes.Discard(ctx, p.segment.Header.Segment)
			}
		}
	}
	return err
}

// publish makes the segments known, and the registrations of look-ups stable.
func (r *round) publish(ctx context.Context) error {
	var entries []datanode.SegmentEntry
	for _, p := range r.packs {
		entries = append(entries, p.segment.Entry())
	}
	for first := true; first || len(entries) > 0; first = false {
		n := min(len(entries), datanode.SegmentsMax)
		if err := r.pool.Node.Publish(ctx, &datanode.PublishRequest{Segments: entries[:n]}); err != nil {
			return fmt.Errorf("publish segments: %w", err)
		}
		entries = entries[n:]
	}
	for _, w := range r.works {
		for i := range w.updates {
			if p := w.places[i].pack; p != nil && p.segment != nil {
				w.updates[i].Ref = p.segment.Ref(w.places[i].slot)
			}
		}
	}
	return nil
}

// place looks up the work's updates of these indexes and packs the misses.
// With wait, a chunk that another disk of the round stores is returned instead
// of stored twice.
func (r *round) place(ctx context.Context, w *work, which []int, wait bool) (again []int, err error) {
	fps := make([]id.Fingerprint, 0, datanode.FingerprintsMax)
	for batch := range slices.Chunk(which, datanode.FingerprintsMax) {
		fps = fps[:0]
		for _, i := range batch {
			fps = append(fps, w.updates[i].Fingerprint)
		}
		if err := r.pace(ctx); err != nil {
			return nil, err
		}
		hits, err := w.d.lookup(ctx, fps)
		if err != nil {
			return nil, err
		}
		for j, i := range batch {
			if hits[j].Found {
				w.updates[i].Ref = hits[j].Ref
				w.d.stats.hits.Add(1)
				continue
			}
			at, ok := r.placed[fps[j]]
			switch {
			case ok && at.owner == w:
				w.places[i] = at
				w.d.stats.hits.Add(1)
			case ok && wait:
				again = append(again, i)
			default:
				if w.places[i], err = r.add(ctx, w, i); err != nil {
					return nil, err
				}
				r.placed[fps[j]] = w.places[i]
				w.d.stats.misses.Add(1)
			}
		}
	}
	return again, nil
}

// add packs one chunk.
func (r *round) add(ctx context.Context, w *work, i int) (place, error) {
	for {
		if r.open == nil {
			r.open = &pack{builder: stripe.NewBuilder(r.pool.Geometry)}
		}
		u := &w.updates[i]
		slot, ok := r.open.builder.Add(w.d.cfg.ID, w.d.cfg.Epoch, u.Fingerprint, w.sealed[i], int(w.d.size))
		if ok {
			return place{r.open, slot, w}, nil
		}
		if r.open.builder.Len() == 0 {
			return place{}, fmt.Errorf("a chunk of %d bytes does not fit an empty segment", len(w.sealed[i]))
		}
		r.seal(ctx)
		if err := r.pace(ctx); err != nil {
			return place{}, cmp.Or(context.Cause(ctx), err) // why an earlier segment failed, if one did
		}
	}
}

// seal starts writing the open pack; it waits while enough are being written.
func (r *round) seal(ctx context.Context) {
	p := r.open
	if p == nil {
		return
	}
	r.open = nil
	r.packs = append(r.packs, p)
	r.group.Go(func() error {
		segment, err := p.builder.Seal()
		if err != nil {
			return err
		}
		if err := r.pool.Stripes.Write(ctx, segment, r.pool.Number); err != nil {
			return fmt.Errorf("write segment: %w", err)
		}
		segment.Free()
		p.segment, p.builder = segment, nil
		return nil
	})
}

// lookup asks the index, which registers what it finds for this disk.
func (d *Disk) lookup(ctx context.Context, fps []id.Fingerprint) ([]datanode.Hit, error) {
	d.listMu.Lock()
	defer d.listMu.Unlock()
	d.seq++
	reply, err := d.pool.Node.Lookup(ctx, &datanode.LookupRequest{
		Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Seq: d.seq, Fingerprints: fps,
	})
	if err != nil {
		return nil, d.outcome(fmt.Errorf("look up fingerprints: %w", err))
	}
	if len(reply.Hits) != len(fps) {
		return nil, fmt.Errorf("look up: %d answers for %d fingerprints", len(reply.Hits), len(fps))
	}
	for i, h := range reply.Hits { // what leaves is stored anew, so that nothing new needs it
		if h.Found && d.pool.Stripes.Leaves(h.Ref.Segment) {
			reply.Hits[i] = datanode.Hit{}
		}
	}
	if d.registered != nil {
		for _, h := range reply.Hits {
			if h.Found {
				d.registered[h.Ref.Segment] = d.registered[h.Ref.Segment].set(h.Ref.Slot)
			}
		}
	}
	return reply.Hits, nil
}

// bitmap is a set of slots: bit s&7 of byte s>>3.
type bitmap []byte

func (b bitmap) set(s id.Slot) bitmap {
	if n := int(s>>3) + 1; n > len(b) {
		b = append(b, make([]byte, n-len(b))...)
	}
	b[s>>3] |= 1 << (s & 7)
	return b
}

func (b bitmap) has(s id.Slot) bool {
	return int(s>>3) < len(b) && b[s>>3]&(1<<(s&7)) != 0
}

func (b bitmap) or(o bitmap) bitmap {
	if len(o) > len(b) {
		b = append(b, make([]byte, len(o)-len(b))...)
	}
	for i := range o {
		b[i] |= o[i]
	}
	return b
}
