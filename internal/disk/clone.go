package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"plinth/blockmap"
	"plinth/internal/id"
)

// HoldLists keeps the disk from giving anything up until ReleaseLists was called
// as often. A pass that finds lists held changes none of them.
//
// It is what keeps the chunks of a young clone, which holds nothing itself. The
// parent's lists have all that its newest checkpoint needs: a pass clears a bit
// only if no version in the map needs it, and of what moved only after the
// checkpoint that says so is recorded. So who holds the lists and then reads
// that checkpoint finds nothing in it that was given up, and nothing of it is
// until the clone has stated, in a pass of its own, all that it needs.
func (d *Disk) HoldLists() {
	d.KeepLists()
	d.AwaitLists()
}

// KeepLists is HoldLists but for the wait for an update that has begun, which may be of
// a data node that does not answer. AwaitLists is that.
func (d *Disk) KeepLists() { d.holds.Add(1) }

// AwaitLists waits until no update of the lists is under way.
func (d *Disk) AwaitLists() {
	d.listMu.Lock()
	defer d.listMu.Unlock()
}

// ReleaseLists ends one HoldLists.
func (d *Disk) ReleaseLists() {
	if d.holds.Add(-1) < 0 {
		panic("lists released more often than held")
	}
}

// CloneRecord returns the checkpoint record with which a new disk begins as a
// snapshot of this one, false if the snapshot is in no checkpoint yet. The
// caller has called HoldLists before, and calls ReleaseLists when the new disk
// has passed. Errors: Await's.
func (d *Disk) CloneRecord(ctx context.Context, s id.Snapshot) (value []byte, ok bool, err error) {
	view, err := d.await(ctx, s)
	if err != nil {
		return nil, false, err
	}
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	d.mu.RLock()
	_, later := d.markedAt[s]
	d.mu.RUnlock()
	if later || d.checkpoint.revision == 0 {
		return nil, false, nil
	}
	first := state{bytes: view.Bytes()}
	value, err = json.Marshal(&CheckpointRecord{
		Version: checkpointCloneVersion, Epoch: d.cfg.Epoch, Manifest: d.checkpoint.manifest,
		ManifestBytes: d.checkpoint.manifestBytes, State: first.marshal(), CloneOf: s,
	})
	return value, err == nil, err
}

// attachManifest opens the map of a checkpoint: of this disk, or of another one
// that it begins as a clone of.
func (d *Disk) attachManifest(ctx context.Context, rec *CheckpointRecord, manifest []byte, opts blockmap.Options) (*blockmap.Map, error) {
	if rec.CloneOf == 0 {
		return blockmap.Attach(ctx, manifest, opts)
	}
	m, err := blockmap.AttachClone(ctx, manifest, rec.CloneOf, rec.State, opts)
	if err != nil {
		return nil, fmt.Errorf("as a clone of snapshot %d: %w", rec.CloneOf, err)
	}
	return m, nil
}

// hasMap reports whether the disk has a map: always, but for a clone that was
// opened with Config.Under before its checkpoint record was there.
func (d *Disk) hasMap() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.m != nil
}

// Independent attaches the checkpoint that the registry by now has for a clone
// that was opened with Config.Under, as its map, under the feet of its calls. Until
// then all that is written stays in the log and the write buffer: no round, pass
// or checkpoint is made, and snapshots of the clone can be taken but not read. At
// return nothing reads Config.Under any more. It does nothing where the disk has a
// map. After an error the disk goes on as before, and it may be called again.
func (d *Disk) Independent(ctx context.Context) error {
	if err := d.attachUnder(ctx); err != nil {
		return fmt.Errorf("disk %s: %w", d.cfg.Name, err)
	}
	d.under.Wait() // no more enter
	return nil
}

func (d *Disk) attachUnder(ctx context.Context) error {
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if err := d.usable(); err != nil || d.m != nil {
		return err
	}
	a, err := d.attachNewest(ctx)
	if err != nil {
		return err
	}
	if a == nil {
		return errors.New("a clone without a checkpoint cannot become independent")
	}
	// The map must be just what the calls have seen so far.
	if under := d.cfg.Under; a.cloneOf != under.snapshot || a.state != d.state {
		return errors.Join(fmt.Errorf("the checkpoint is of snapshot %d with %d bytes, the clone is of %d with %d: %w",
			a.cloneOf, a.state.bytes, under.snapshot, d.state.bytes, ErrCorrupt), a.m.Close())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.m, d.checkpoint = a.m, a.checkpoint
	d.signal()
	return nil
}
