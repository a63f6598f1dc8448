package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// finish makes a work's result stable, applies it to the map, and lets go of
// the layer and of its part of the log, in this order (I7). destageMu is held.
func (w *work) finish(ctx context.Context) error {
	d, l := w.d, w.layer
	res := logrec.Result{
		Through: l.through, MAC: l.mac, SizeBytes: l.diskBytes, Mark: l.mark,
		Gen:   d.m.NextGen(len(w.trims) > 0 || l.mark.Kind == logrec.TypeRollback),
		Trims: w.trims, Updates: w.updates,
	}
	next := d.state
	next.through, next.throughMAC, next.bytes = l.through, l.mac, l.diskBytes
	failpoint.Reach(failpoint.Published)
	var err error
	if next.result, next.resultMAC, err = d.appendResult(ctx, &res); err != nil {
		return err
	}
	failpoint.Reach(failpoint.Result)
	if err := d.applyResult(&res, next); err != nil {
		return d.fail(err)
	}
	d.state = next
	d.stats.rounds.Add(1)
	d.mu.Lock()
	d.layers = slices.Delete(d.layers, 0, 1) // which forgets it
	d.signal()
	d.mu.Unlock()
	d.pool.Space.Release(ctx, l.charge)
	err = d.pool.Node.TrimLog(ctx, &datanode.TrimLogRequest{
		Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: datanode.Ops, Through: l.through,
	})
	if err != nil {
		return d.outcome(fmt.Errorf("trim the log of disk %s: %w", d.cfg.Name, err))
	}
	d.stats.trimmed.Add(1)
	return nil
}

// applyResult puts a whole result into the map, its mark with it, and tells the
// memo.
func (d *Disk) applyResult(r *logrec.Result, next state) error {
	b := blockmap.Batch{Gen: r.Gen}
	switch r.Mark.Kind {
	case logrec.TypeSnapshot:
		b.Mark = blockmap.Mark{Snapshot: r.Mark.Snapshot, Bytes: r.SizeBytes}
	case logrec.TypeRollback:
		b.Mark.Rollback = r.Mark.Snapshot
	}
	for _, t := range r.Trims {
		b.Trims = append(b.Trims, blockmap.Extent{First: t.First, End: t.End})
	}
	b.Updates = make([]blockmap.Update, len(r.Updates))
	for i, u := range r.Updates {
		b.Updates[i] = blockmap.Update{LBA: u.LBA, Entry: blockmap.Entry{Fingerprint: u.Fingerprint, Ref: u.Ref}}
	}
	if err := d.m.Apply(&b, next.marshal()); err != nil {
		return fmt.Errorf("apply result %d to the map: %w", next.result, err)
	}
	if len(r.Trims) > 0 || r.Mark.Kind == logrec.TypeRollback {
		d.memo.Forget()
	} else {
		d.memo.Changed(func(yield func(id.LBA, *id.Fingerprint) bool) {
			for i := range r.Updates {
				if u := &r.Updates[i]; !yield(u.LBA, &u.Fingerprint) {
					return
				}
			}
		})
	}
	if r.Mark.Kind == logrec.TypeSnapshot {
		d.mu.Lock()
		d.markedAt[r.Mark.Snapshot] = next.result
		d.mu.Unlock()
	}
	return nil
}

// appendResult appends a result, before it what is still to be known of operations that
// leave the log with it, and makes both stable, as appendGroup does.
func (d *Disk) appendResult(ctx context.Context, res *logrec.Result) (pos id.Pos, mac logrec.MAC, err error) {
	var recs []datanode.Record
	if done := d.done.carry(res.Through); done != nil {
		recs = append(recs, datanode.Record{Type: uint8(logrec.TypeDone), Data: done})
	}
	for _, part := range res.Cut() {
		recs = append(recs, datanode.Record{Type: uint8(logrec.TypeResult), Data: part.Append(nil)})
	}
	return d.appendGroup(ctx, recs)
}

// appendGroup appends records, of which it makes position and MAC, to the results and
// makes them stable. It returns
// the last one's position and MAC. If only some of them could be appended the
// disk fails: a new owner discards them. destageMu is held.
func (d *Disk) appendGroup(ctx context.Context, group []datanode.Record) (pos id.Pos, mac logrec.MAC, err error) {
	pos = d.state.result
	var recs []datanode.Record
	bytes, appended := 0, false
	flush := func() error {
		if len(recs) == 0 {
			return nil
		}
		err := d.appendResults(ctx, recs)
		appended = appended || err == nil
		recs, bytes = nil, 0
		return err
	}
	head := d.results.Head()
	for _, r := range group {
		if bytes+len(r.Data) > datanode.AppendBytesMax {
			if err = flush(); err != nil {
				break
			}
		}
		pos++
		mac = d.results.Next(d.cfg.Epoch, pos, logrec.Type(r.Type), r.Data)
		r.Pos, r.MAC = pos, mac
		recs = append(recs, r)
		bytes += len(r.Data)
	}
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = d.sync(ctx)
		appended = true
	}
	if err == nil {
		return pos, mac, nil
	}
	err = fmt.Errorf("append the result of disk %s: %w", d.cfg.Name, err)
	if appended || !errors.Is(err, datanode.ErrLogFull) {
		return 0, mac, d.fail(err)
	}
	d.results = logrec.NewChain(d.cfg.MACKey.Reveal(), d.cfg.ID, datanode.Results, head)
	return 0, mac, err
}

// appendResults appends records; if the log is full even for results, a
// checkpoint gives up the older ones.
func (d *Disk) appendResults(ctx context.Context, recs []datanode.Record) error {
	req := &datanode.AppendRequest{
		Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: datanode.Results, Class: datanode.ClassMark, Records: recs,
	}
	_, err := d.pool.Node.Append(ctx, req)
	if errors.Is(err, datanode.ErrLogFull) {
		if cerr := d.Checkpoint(ctx); cerr != nil {
			return errors.Join(err, cerr)
		}
		_, err = d.pool.Node.Append(ctx, req)
	}
	return err
}
