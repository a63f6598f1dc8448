// Package crashfs is a file system in memory that loses power or its process at
// a chosen instant, for tests of stores and of Pebble on top of each other.
//
// Nouns: a sector is 512 bytes, the unit that a drive writes whole. A change is
// one alteration of a directory: a name set, taken away, or both by a rename.
// Unsynced is what the last Sync of its file or directory does not cover.
//
// # What a crash leaves
//
//   - Kill: everything that was written, as the death of a process does.
//   - Crash: all that was synced. Of unsynced bytes each sector is kept or goes
//     back to what it held at the last sync, on its own, so a write may arrive
//     in part and before an older one. Growth of a file arrives or not. Each
//     unsynced change of a directory arrives or not, a rename inside a
//     directory as one; between directories the old name stays until synced.
//     With Order, changes arrive in their order up to some point.
//   - Limit makes the instant come in the middle of a write, at any byte.
//
// Syncing a file does not sync its name.
//
// Concurrency: all methods of FS and of its files may be called concurrently.
package crashfs

import (
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrCrashed is returned by everything after the crash, reads included, on the
// old file system and its open files. A test opens what Crash or Kill returned.
var ErrCrashed = errors.New("crashfs: the file system has crashed")

const (
	// SectorBytes is the grain at which unsynced bytes are kept or lost.
	SectorBytes = 512
	// OpCost is what a sync or a change of a name takes from Limit's budget.
	OpCost = SectorBytes
)

// FS implements vfs.FS. New makes one.
type FS struct {
	mu      sync.Mutex
	root    *node
	locks   map[string]bool
	ordered string // directories of this name
	crashed bool
	limited bool
	budget  int64 // bytes still to be written, if limited
}

var _ vfs.FS = (*FS)(nil)

// New returns an empty file system without a limit.
func New() *FS {
	return &FS{root: newDir(), locks: map[string]bool{}}
}

// Order makes the changes of each directory of that name, and of those below it,
// arrive in their order, as file systems with a journal have it and Pebble needs
// it. It counts for directories that are made later, after a crash too.
func (fs *FS) Order(name string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.ordered = name
}

// Limit lets budget more bytes be written; a sync or change of a name counts as
// OpCost. What exceeds the budget crashes the file system: a write after its
// first bytes, which fit, another call before it does anything.
func (fs *FS) Limit(budget int64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.limited, fs.budget = true, budget
}

// Crashed reports whether the limit was reached, or Crash or Kill called.
func (fs *FS) Crashed() bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.crashed
}

// Crash ends this file system and returns what a loss of power leaves of it.
// Each unsynced sector, growth and change is kept with a probability of
// keepPercent, 0 to 100. It may be called again, for another outcome.
func (fs *FS) Crash(rng *rand.Rand, keepPercent int) *FS {
	return fs.end(func() bool { return rng.IntN(100) < keepPercent }, false)
}

// Kill ends this file system and returns it as the death of its process leaves
// it: all that was written, with what is unsynced still so.
func (fs *FS) Kill() *FS {
	return fs.end(nil, true)
}

// Drop ends this file system and forgets what is in it, for a test whose
// goroutines may hold on to it for long.
func (fs *FS) Drop() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.crashed = true
	fs.root.forget()
	fs.root = newDir()
}

func (fs *FS) end(keep func() bool, kill bool) *FS {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.crashed = true
	c := cloner{keep: keep, kill: kill, done: map[*node]*node{}}
	return &FS{root: c.clone(fs.root), locks: map[string]bool{}, ordered: fs.ordered}
}

// spend takes an operation's cost from the budget. The caller holds mu.
func (fs *FS) spend(cost int64) error {
	if fs.crashed {
		return ErrCrashed
	}
	if fs.limited {
		if fs.budget < cost {
			fs.crashed = true
			return ErrCrashed
		}
		fs.budget -= cost
	}
	return nil
}
