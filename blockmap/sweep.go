package blockmap

import (
	"context"

	"plinth/internal/id"
)

// Version is an entry that somebody sees: the map itself, now, or a snapshot.
type Version struct {
	LBA     id.LBA
	Gen     id.Gen
	Entry   Entry
	Head    bool        // the map itself sees it
	Viewers int         // how many see it: at least one
	Only    id.Snapshot // the snapshot that alone sees it, else 0
}

// Use is what a snapshot sees.
type Use struct {
	Mapped     int64 // LBAs that are not zeros
	OnlyMapped int64 // of them, those whose entry nobody else sees
	OnlyBytes  int64 // the sealed length of those
}

// SweepReport says what a sweep found.
type SweepReport struct {
	Kept      int64 // versions that somebody sees
	Deleted   int64 // rows of versions and trims that were deleted
	Head      int64 // LBAs that the map itself shows
	Snapshots map[id.Snapshot]Use
}

// Sweep drops snapshots from the map, calls each for every version that
// somebody else sees, by LBA and rising generation, and deletes all others,
// while the map is in use. s is taken before the call, the keys of drop that are
// true are dropped. pace, if it is not nil, is called without locks after every
// few thousand rows, with their number, and may wait.
//
// A sweep that is interrupted leaves a map that reads the same; the next one
// finds the rest. Errors: of ctx, pace, each and Objects, ErrClosed, ErrFailed,
// ErrCorrupt.
func (s *Snapshot) Sweep(ctx context.Context, drop map[id.Snapshot]bool,
	pace func(ctx context.Context, rows int) error, each func(*Version) error) (*SweepReport, error) {
	return nil, ErrInvalid
}

// ScanKept calls each as Sweep does, and changes nothing.
func (s *Snapshot) ScanKept(ctx context.Context, drop map[id.Snapshot]bool, each func(*Version) error) (*SweepReport, error) {
	return nil, ErrInvalid
}
