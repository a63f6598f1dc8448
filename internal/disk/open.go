package disk

import (
	"context"
	"errors"
	"fmt"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// Open takes the disk over: it fences older owners, attaches the newest
// checkpoint, replays results and operations, and serves. Errors: ErrCorrupt
// for a log or checkpoint that does not verify, logrec.ErrUnsupported, and those
// of the data node; nothing is changed then but the epoch.
func Open(ctx context.Context, p *Pool, cfg Config) (*Disk, error) {
	d := &Disk{
		pool: p, cfg: cfg, size: cfg.Chunk, objects: p.Objects.Owner(cfg.ID, cfg.Epoch),
		changed: make(chan struct{}), unsettled: make(map[id.Snapshot]struct{}), markedAt: make(map[id.Snapshot]id.Pos),
		unsaved: make(map[id.Segment]bool), memo: p.RAM.NewMemo(), ahead: newAhead(p), done: newLedger(),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	if err := d.openLog(ctx); err != nil {
		d.cancel()
		return nil, fmt.Errorf("open disk %s (%d): %w", cfg.Name, cfg.ID, err)
	}
	return d, nil
}

func (d *Disk) openLog(ctx context.Context) error {
	req := &datanode.FenceRequest{Disk: d.cfg.ID, Epoch: d.cfg.Epoch}
	if d.cfg.AcceptLostLog {
		_, _, s, err := d.readCheckpoint(ctx)
		if err != nil {
			return err
		}
		req.Floor = [datanode.Streams]id.Pos{datanode.Ops: s.through + 1, datanode.Results: s.result + 1}
	}
	fence, err := d.pool.Node.Fence(ctx, req)
	if err != nil {
		return err
	}
	if err := d.attach(ctx); err != nil {
		return err
	}
	err = d.replay(ctx, fence)
	if err == nil {
		return nil
	}
	d.dropLayers()
	return errors.Join(err, d.closeMap())
}

// attach opens the map at the newest checkpoint, or a new one; none yet where
// the disk is a clone that reads another disk's snapshot meanwhile.
func (d *Disk) attach(ctx context.Context) error {
	a, err := d.attachNewest(ctx)
	switch {
	case err != nil:
		return err
	case a != nil:
		d.m, d.state, d.checkpoint, d.stats.fromCheckpoint = a.m, a.state, a.checkpoint, true
		if d.done.owner(a.epoch, a.state.through); a.done != nil {
			if err := d.done.read(a.done, 0); err != nil {
				return errors.Join(fmt.Errorf("checkpoint record: %w: %w", ErrCorrupt, err), d.closeMap())
			}
		}
		d.warm = a.warm
		return nil
	case d.cfg.Under != nil:
		d.state.bytes = d.cfg.Under.Size()
		return nil
	}
	d.state.bytes = d.cfg.Bytes
	d.m, err = blockmap.Create(d.mapOptions())
	return err
}

func (d *Disk) mapOptions() blockmap.Options {
	opts := d.cfg.Map
	opts.Objects = d.objects
	opts.Stale = func(o blockmap.Object) bool { return d.pool.Stripes.Usual() && d.liesPoorly(o) }
	opts.Failed = func(err error) { d.fail(fmt.Errorf("map: %w", err)) }
	return opts
}

// attached is the map of a checkpoint.
type attached struct {
	m          *blockmap.Map
	state      state
	checkpoint checkpointState
	cloneOf    id.Snapshot
	warm       []uint64
	epoch      id.Epoch // of its owner
	done       []byte   // CheckpointRecord.Done
}

// attachNewest opens the map at the newest checkpoint, nil if there is none.
func (d *Disk) attachNewest(ctx context.Context) (*attached, error) {
	rec, revision, s, err := d.readCheckpoint(ctx)
	if err != nil || rec == nil {
		return nil, err
	}
	manifest := make([]byte, rec.ManifestBytes)
	if err := d.objects.ReadAt(ctx, rec.Manifest, manifest, 0); err != nil {
		return nil, fmt.Errorf("read the checkpoint's manifest: %w", err)
	}
	objects, err := blockmap.ManifestObjects(manifest)
	if err != nil {
		return nil, err
	}
	m, err := d.attachManifest(ctx, rec, manifest, d.mapOptions())
	if err != nil {
		return nil, fmt.Errorf("attach the checkpoint: %w", err)
	}
	return &attached{m, s, checkpointState{revision, append(objects, rec.Manifest), s.result, rec.Manifest, rec.ManifestBytes}, rec.CloneOf, unmarshalWarm(rec.Warm), rec.Epoch, rec.Done}, nil
}

// readCheckpoint returns the record of the newest checkpoint, its revision and
// state; no record if there is none.
func (d *Disk) readCheckpoint(ctx context.Context) (*CheckpointRecord, uint64, state, error) {
	reply, err := d.pool.Node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: CheckpointKey(d.cfg.ID)})
	if errors.Is(err, datanode.ErrNotFound) {
		return nil, 0, state{}, nil
	}
	if err != nil {
		return nil, 0, state{}, err
	}
	rec, s, err := parseCheckpoint(reply.Value)
	return rec, reply.Revision, s, err
}

// replay brings map and write buffer to the end of the log.
func (d *Disk) replay(ctx context.Context, fence *datanode.FenceReply) error {
	if err := covers(fence, datanode.Results, d.state.result+1); err != nil {
		return err
	}
	key := d.cfg.MACKey.Reveal()
	d.results = logrec.NewChain(key, d.cfg.ID, datanode.Results, d.state.resultMAC)
	if err := d.replayResults(ctx); err != nil {
		return err
	}
	d.bytes = d.state.bytes
	d.layers = []*layer{newLayer(d.size)}
	d.ops = logrec.NewChain(key, d.cfg.ID, datanode.Ops, d.state.throughMAC)
	if err := covers(fence, datanode.Ops, d.state.through+1); err != nil {
		return err
	}
	if err := d.trimDone(ctx, fence); err != nil {
		return err
	}
	check := d.cfg.Resume.begin(d.state.through, d.state.throughMAC)
	if err := d.replayOps(ctx, &check); err != nil {
		return err
	}
	if err := check.end(d.next - 1); err != nil {
		return err
	}
	return d.endRollback(ctx)
}

// trimDone gives up what an owner died before giving up: operations that are in
// results, and results that are in the checkpoint. Nobody else does: with a log
// full of them there is no write, and so no round, for ever. The results may
// come of an owner that had not synced them yet (I7).
func (d *Disk) trimDone(ctx context.Context, fence *datanode.FenceReply) error {
	through := [datanode.Streams]id.Pos{datanode.Ops: d.state.through, datanode.Results: d.checkpoint.result}
	if fence.First[datanode.Ops] > through[datanode.Ops] && fence.First[datanode.Results] > through[datanode.Results] {
		return nil
	}
	if err := d.sync(ctx); err != nil {
		return err
	}
	for stream, pos := range through {
		if fence.First[stream] > pos {
			continue
		}
		if err := d.pool.Node.TrimLog(ctx, &datanode.TrimLogRequest{
			Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: datanode.Stream(stream), Through: pos,
		}); err != nil {
			return d.outcome(fmt.Errorf("trim the log: %w", err))
		}
	}
	return nil
}

// covers checks that a stream has all from a position on. It lacks some only if
// the log lost what was stable when the checkpoint, or a result, was recorded.
func covers(fence *datanode.FenceReply, stream datanode.Stream, from id.Pos) error {
	first, end := fence.First[stream], fence.End[stream]
	if first <= from && from <= end {
		return nil
	}
	return fmt.Errorf("log stream %d begins at position %d and ends before %d, but what is needed begins at %d: "+
		"the log was lost or rolled back: %w", stream, first, end, from, ErrCorrupt)
}

// eachRecord reads a stream from a position to its end and verifies it.
func (d *Disk) eachRecord(ctx context.Context, stream datanode.Stream, from id.Pos, chain *logrec.Chain, f func(r *datanode.Record) error) error {
	for {
		reply, err := d.pool.Node.ReadLog(ctx, &datanode.ReadLogRequest{
			Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: stream, From: from,
		})
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if len(reply.Records) == 0 {
			return nil
		}
		for i := range reply.Records {
			r := &reply.Records[i]
			if r.Pos != from {
				return fmt.Errorf("the log gave position %d for %d: %w", r.Pos, from, ErrCorrupt)
			}
			if err := chain.Verify(r); err != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			if err := f(r); err != nil {
				return err
			}
			from++
		}
	}
}

// replayOps applies the operations that no result covers to the write buffer.
func (d *Disk) replayOps(ctx context.Context, check *resumption) error {
	d.next = d.state.through + 1
	return d.eachRecord(ctx, datanode.Ops, d.next, d.ops, func(r *datanode.Record) error {
		d.next = r.Pos + 1
		d.stats.opsReplayed++
		check.see(r.Pos, r.MAC)
		d.done.owner(r.Epoch, r.Pos)
		typ := logrec.Type(r.Type)
		if typ == logrec.TypeDone {
			return d.apply(logrec.Op{Type: typ}, nil, r)
		}
		if typ.Optional() {
			return nil
		}
		op, err := logrec.DecodeOp(typ, r.Data)
		if err != nil {
			return fmt.Errorf("operation %d: %w", r.Pos, err)
		}
		plain, charge, err := d.replayed(&op, r)
		if err != nil {
			return fmt.Errorf("operation %d: %w: %w", r.Pos, ErrCorrupt, err)
		}
		if err := d.pool.Space.Force(ctx, charge); err != nil {
			return err
		}
		err = d.apply(op, plain, r)
		d.active().charge += charge
		return err
	})
}

// replayed returns a part's plaintext, and what the operation is charged.
func (d *Disk) replayed(op *logrec.Op, r *datanode.Record) (plain []byte, charge int64, err error) {
	size := int64(d.size)
	switch op.Type {
	case logrec.TypeWrite:
		return nil, int64(len(op.Chunks)) * d.chunkCharge(), nil
	case logrec.TypePart:
		ad := chunk.PartAD{Disk: d.cfg.ID, Epoch: r.Epoch, Pos: r.Pos, Offset: uint64(op.Off)}
		plain, err = d.pool.Opener.OpenPart(nil, op.Sealed, ad)
		if err == nil && (int64(len(plain)) != op.Len || op.Off%size+op.Len > size) {
			err = fmt.Errorf("a part of %d bytes at %d", len(plain), op.Off)
		}
		return plain, d.chunkCharge(), err
	case logrec.TypeZero:
		return nil, 2 * d.chunkCharge(), nil
	}
	return nil, 0, nil
}
