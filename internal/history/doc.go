// Package history holds the random histories of whole pools: data node, host and
// all between, over a file system in memory. It has no code but tests.
//
// Nouns: a history is a pool with up to five disks, and some hundreds of
// operations on it: write, part of a chunk, zero, trim, snapshot, several disks'
// snapshot, rollback, clone, clone of a clone, removal of anything in any order,
// resize, rename, destage, checkpoint, pass, reclaim, verify, restart, and what
// goes wrong. The model has, for each disk and snapshot, what each sector holds.
// A life is one opening of the pool. A fault is what a call to the data node
// meets: a crash before or after it, an answer that is lost.
//
// After each operation what it touched is read, and every now and then every disk
// and snapshot as a whole. A crash in the middle of an operation leaves the state
// before it or after it; which of them is then what counts. In the end, after a
// quiet cycle, verify finds nothing, leaks included, and the bytes stored are
// bounded by what the model says can be reached.
//
//   - TestSimTwoHosts: the same where two hosts share the pool, with moves of disks.
//   - TestSimHistories: -histories N of them, each with a seed that is printed if
//     it fails; -history-seed goes through one again. Background work runs by the
//     clock in some histories, so that not all of them repeat exactly. With
//     -history-dir a run that was cut off goes on.
package history
