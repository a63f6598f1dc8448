package blockmap

import (
	"context"
	"fmt"

	"plinth/internal/id"
)

// ErrNoSnapshot is returned for a snapshot that the map has not got, or that it
// has dropped meanwhile.
var ErrNoSnapshot = fmt.Errorf("%w: no such snapshot", ErrInvalid)

// PatchesMax bounds the patches of a batch.
const PatchesMax = 1 << 12

// Mark ends a version of the map, if one of the ids is set: never both.
type Mark struct {
	// Snapshot makes the map, with this batch, a snapshot of that id, which the
	// map has not got. Batches that follow are of higher generations (NextGen).
	Snapshot id.Snapshot
	// Rollback makes the map show what that snapshot shows. The batch has no
	// trims and no updates, and a generation above all earlier ones.
	Rollback id.Snapshot
	// Bytes is the size of the disk at a snapshot; a rollback ignores it.
	Bytes int64
}

// Patch says that the entry of generation Gen of an LBA, as far as it still lies
// at From, lies at To. Nothing else about it changes.
type Patch struct {
	LBA      id.LBA
	Gen      id.Gen
	From, To id.Ref
}

// SnapshotRow describes a snapshot in a map.
type SnapshotRow struct {
	ID    id.Snapshot
	Bytes int64  // of the disk
	Gen   id.Gen // the highest that it shows
}

// NextGen returns the least generation that a next batch may have, with or
// without trims.
func (m *Map) NextGen(trims bool) id.Gen {
	m.apply.Lock()
	defer m.apply.Unlock()
	if trims {
		return m.head.gen + 1
	}
	return m.head.gen
}

// Snapshots returns the snapshots in the map, by rising id.
func (m *Map) Snapshots() []SnapshotRow { return nil }

// At returns a view of a snapshot, which is cheap to keep: it pins nothing.
// Errors: ErrNoSnapshot, ErrClosed, ErrFailed and those of Objects.
func (m *Map) At(s id.Snapshot) (*View, error) { return nil, ErrNoSnapshot }

// Get returns the entry of one generation of an LBA, whether or not it shows,
// and false if there is none. Errors are LookupRange's.
func (m *Map) Get(lba id.LBA, gen id.Gen) (Entry, bool, error) { return Entry{}, false, ErrInvalid }

// AttachClone attaches a manifest as another disk's first map: it shows what
// snapshot s of the manifest's disk shows, and has no snapshots. state replaces
// the owner's. Doing it again gives the same map. Errors: Attach's, and
// ErrNoSnapshot.
func AttachClone(ctx context.Context, manifest []byte, s id.Snapshot, state []byte, opts Options) (*Map, error) {
	return nil, ErrNoSnapshot
}

// View is a map as one of its snapshots shows it. Its methods return
// ErrNoSnapshot once the snapshot was dropped. All may be called at once.
type View struct{ m *Map }

// Bytes returns the size of the disk when the snapshot was taken.
func (v *View) Bytes() int64 { return 0 }

// LookupRange is Map.LookupRange of the snapshot.
func (v *View) LookupRange(first id.LBA, out []Entry) error { return ErrNoSnapshot }

// MappedRuns is Map.MappedRuns of the snapshot.
func (v *View) MappedRuns(first, end id.LBA, rowsMax int, each func(Extent)) (id.LBA, error) {
	return 0, ErrNoSnapshot
}

// Changes calls each for the runs of LBAs in [first, end), in order, of which
// the view shows another content than since does: another fingerprint, or
// zeros instead of data or data instead of zeros. since is of the same map.
// rowsMax and the result are those of MappedRuns.
func (v *View) Changes(since *View, first, end id.LBA, rowsMax int, each func(Extent)) (id.LBA, error) {
	return 0, ErrNoSnapshot
}
