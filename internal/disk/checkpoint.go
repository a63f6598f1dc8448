package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/object"
)

// CheckpointRecord is the registry's word on a disk's newest checkpoint, as
// JSON under [CheckpointKey]. It names the manifest and says where the results
// that follow begin.
type CheckpointRecord struct {
	Version  int             `json:"version"` // 1; 2 of a clone
	Epoch    id.Epoch        `json:"epoch"`
	Manifest blockmap.Object `json:"manifest"`
	// ManifestBytes is the manifest's length.
	ManifestBytes int64 `json:"manifest_bytes"`
	// State is the map's state in the checkpoint (package disk): the heads of
	// both MAC chains are in it, so that a log rolled back behind it is found. A
	// clone's is that of a new disk.
	State []byte `json:"state"`
	// CloneOf says that the manifest is another disk's, which this disk begins as
	// a clone of: as that snapshot in it. 0: the disk's own.
	CloneOf id.Snapshot `json:"clone_of,omitempty"`
	// Warm is the disk's warm list (warm.go): a hint.
	Warm []byte `json:"warm,omitempty"`
	// Done is a logrec.Done of what the checkpoint covers.
	Done []byte `json:"done,omitempty"`
}

const (
	checkpointVersion      = 1
	checkpointCloneVersion = 2 // of a record with CloneOf
	manifestBytesMax       = 256 << 20
)

// CheckpointKey is the registry key of a disk's checkpoint record.
func CheckpointKey(d id.Disk) string { return fmt.Sprintf("ckpt/%016x", uint64(d)) }

// checkpointState is what a disk knows of its newest checkpoint.
type checkpointState struct {
	revision uint64            // of the registry record, 0: none
	objects  []blockmap.Object // the manifest and all that it names
	result   id.Pos            // results through here are in it

	manifest      blockmap.Object
	manifestBytes int64
}

// OwesPass reports whether what checkpoints took that lay where it should not stay is to be
// given up, which a pass does.
func (d *Disk) OwesPass() bool { return d.replaced.Load() != d.replacedPassed.Load() }

// liesPoorly reports whether an object lies where it should not stay: a node's loss is its
// loss, or a node leaves.
func (d *Disk) liesPoorly(o blockmap.Object) bool {
	segments, err := object.Segments(o)
	return err == nil && slices.ContainsFunc(segments, d.pool.Stripes.Poor)
}

func (d *Disk) anyPoorly(all []blockmap.Object) bool { return slices.ContainsFunc(all, d.liesPoorly) }

// CheckpointPoor reports whether the newest checkpoint lies where it should not stay, and
// the next one would not.
func (d *Disk) CheckpointPoor() bool {
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	return d.anyPoorly(d.checkpoint.objects) && d.pool.Stripes.Usual()
}

// parseCheckpoint decodes a record and its state.
func parseCheckpoint(b []byte) (*CheckpointRecord, state, error) {
	var rec CheckpointRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, state{}, fmt.Errorf("checkpoint record: %w: %w", ErrCorrupt, err)
	}
	switch {
	case rec.Version != checkpointVersion && rec.Version != checkpointCloneVersion:
		return nil, state{}, fmt.Errorf("checkpoint record of version %d: a newer plinth wrote it", rec.Version)
	case (rec.Version == checkpointCloneVersion) != (rec.CloneOf != 0):
		return nil, state{}, fmt.Errorf("checkpoint record of version %d, clone of snapshot %d: %w", rec.Version, rec.CloneOf, ErrCorrupt)
	}
	if rec.ManifestBytes <= 0 || rec.ManifestBytes > manifestBytesMax {
		return nil, state{}, fmt.Errorf("checkpoint record: manifest of %d bytes: %w", rec.ManifestBytes, ErrCorrupt)
	}
	s, err := unmarshalState(rec.State)
	return &rec, s, err
}

// CheckpointDue returns how many map updates no checkpoint has, and the number
// of results that only the log has.
func (d *Disk) CheckpointDue() (updates int64, results uint64) {
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if d.usable() != nil || d.m == nil {
		return 0, 0
	}
	s, err := unmarshalState(d.m.State())
	if err != nil {
		return 0, 0 // a new map
	}
	return int64(d.m.Stats().UpdatesSinceCheckpoint), uint64(s.result - d.checkpoint.result)
}

// Checkpoint makes the map durable and then gives up the results that it
// contains: tables, manifest, record, trim, in this order. It is harmless at any
// time; what a failure leaves is garbage that a pass frees.
func (d *Disk) Checkpoint(ctx context.Context) error {
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if err := d.usable(); err != nil || d.m == nil { // without a map all is in the log
		return err
	}
	if d.recording != nil {
		if err := d.record(ctx); err != nil {
			return err
		}
	}
	c, err := d.m.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("checkpoint of disk %s: %w", d.cfg.Name, err)
	}
	if len(c.State) == 0 {
		return nil // nothing was ever applied
	}
	s, err := unmarshalState(c.State)
	poor := d.anyPoorly(d.checkpoint.objects)
	better := poor && d.pool.Stripes.Usual()
	if err != nil || s.result == d.checkpoint.result && d.checkpoint.revision != 0 && !better {
		return err
	}
	failpoint.Reach(failpoint.Tables)
	manifest, err := d.objects.Put(ctx, "manifest", int64(len(c.Manifest)), bytes.NewReader(c.Manifest))
	if err != nil {
		return fmt.Errorf("checkpoint of disk %s: store the manifest: %w", d.cfg.Name, err)
	}
	value, err := json.Marshal(&CheckpointRecord{
		Version: checkpointVersion, Epoch: d.cfg.Epoch, Manifest: manifest,
		ManifestBytes: int64(len(c.Manifest)), State: c.State, Warm: d.warmList(), Done: d.done.carry(s.through),
	})
	if err != nil {
		return err
	}
	failpoint.Reach(failpoint.Manifest)
	d.recording = &recording{value, poor, checkpointState{
		objects: append(c.Objects, manifest), result: s.result, manifest: manifest, manifestBytes: int64(len(c.Manifest)),
	}}
	if err := d.record(ctx); err != nil {
		return err
	}
	failpoint.Reach(failpoint.Record)
	return d.outcome(d.pool.Node.TrimLog(ctx, &datanode.TrimLogRequest{
		Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: datanode.Results, Through: s.result,
	}))
}

// recording is a checkpoint that the registry may name already: from before its
// record is committed until it is known to be. Its objects stay, and no other is
// made before.
type recording struct {
	value []byte
	poor  bool // the one before lies where it should not stay
	next  checkpointState
}

// record commits what is being recorded. After an error of the registry, which
// may come after the fact, it looks whether the record is there. checkpointMu is
// held.
func (d *Disk) record(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // whether it is recorded must be known
	key := CheckpointKey(d.cfg.ID)
	reply, err := d.pool.Node.RegistryCommit(ctx, &datanode.RegistryTxn{
		Guards:   []datanode.Guard{{Disk: d.cfg.ID, Epoch: d.cfg.Epoch}},
		Compares: []datanode.Compare{{Key: key, Revision: d.checkpoint.revision}},
		Puts:     []datanode.Put{{Key: key, Value: d.recording.value}},
	})
	var revision uint64
	if err == nil {
		revision = reply.Revision
	} else {
		err = fmt.Errorf("record the checkpoint of disk %s: %w", d.cfg.Name, err)
		now, gerr := d.pool.Node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: key})
		switch {
		case gerr == nil && bytes.Equal(now.Value, d.recording.value):
			d.pool.Logger.Warn("checkpoint is recorded although the registry reported an error", "disk", d.cfg.Name, "err", err)
			revision = now.Revision
		case gerr == nil && errors.Is(err, datanode.ErrConflict): // another owner
			return d.fail(err)
		default:
			return d.outcome(err)
		}
	}
	if d.recording.poor {
		d.replaced.Add(1)
	}
	d.checkpoint, d.recording = d.recording.next, nil
	d.checkpoint.revision = revision
	d.mu.Lock()
	maps.DeleteFunc(d.markedAt, func(_ id.Snapshot, at id.Pos) bool { return at <= d.checkpoint.result })
	d.mu.Unlock()
	d.stats.saves.Add(1)
	return nil
}

// checkpointObjects returns the objects of every checkpoint that the registry
// names or may name. checkpointMu is held.
func (d *Disk) checkpointObjects() []blockmap.Object {
	objects := d.checkpoint.objects
	if d.recording != nil {
		objects = slices.Concat(objects, d.recording.next.objects)
	}
	return objects
}
