package disk

import (
	"context"
	"encoding/json"
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
	d.listMu.Lock()
	defer d.listMu.Unlock()
	d.holds++
}

// ReleaseLists ends one HoldLists.
func (d *Disk) ReleaseLists() {
	d.listMu.Lock()
	defer d.listMu.Unlock()
	if d.holds--; d.holds < 0 {
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
