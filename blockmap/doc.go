// Package blockmap keeps a disk's map: for each chunk of the disk, where its
// sealed chunk lies. It is the only code on a host that knows Pebble.
//
// Nouns: an [Entry] is what one LBA maps to. A [Map] is one disk's map, open on
// one host: a Pebble without a log of its own, since the disk's log is that. A
// generation is a version number that rises only with a mark; a view is the
// list of generation intervals that the map, or a snapshot of it, shows. A mark
// keeps what the map shows as a snapshot, and a rollback shows it again; a
// [View] reads one. A trim is an [Extent] that hides every entry of an older
// generation. A sweep deletes what nobody sees. A [Patch] says that a sealed
// chunk has moved. A table is a file of Pebble's with sorted entries; an
// [Object] is the durable copy of one. A [Checkpoint] is a manifest that names
// the tables of one instant; attaching is to open one, as the same map or as a
// clone's.
//
// # Format, version 1
//
// Rows of the Pebble; integers in keys are big-endian, in values little-endian.
//
//	key                                              value
//	LBA (8), generation inverted (8)                 entry, or nothing: zeros
//	2^64-3 (8), snapshot (8)                         snapshot
//	2^64-2 (8), generation (8), first (8), end (8)   nothing: a trim
//	2^64-1 (8), 0 (8)                                head
//
//	entry                        head
//	 0  16B  fingerprint          0  u16  version, 1
//	16  u64  segment              2  u16  intervals of the view
//	24  u16  slot                 4  u32  incompatible features
//	26  u32  location             8  u64  generation: highest applied
//	                             16  u64  floor: no entry is older
//	snapshot                     24  u64  updates ever applied
//	 0  u16  version, 1          32  2×u64 per interval: from, end
//	 2  u16  intervals            …  state of the owner, to the end
//	 4  u32  incompatible, 0
//	 8  u64  bytes of the disk
//	16  2×u64 per interval: from, end
//
// The head's feature 1 says that there are, or were, snapshots. The last
// interval of the map has no end (2^64-1); that of a snapshot ends after the
// generation that it was taken at.
//
// docs/format/map.md has the manifest.
//
// # Invariants
//
//  1. A batch and the owner's state are one atomic step. A checkpoint holds a
//     prefix of the applied batches and the state of exactly that prefix.
//  2. Generations of batches do not fall; a trim's is above all earlier ones,
//     and a batch's above those of all snapshots. So what a snapshot sees never
//     changes, but for patches, and whatever nobody sees is never seen again.
//  3. At each moment of a sweep, and so in each checkpoint, the map and every
//     snapshot read the same: a snapshot's row goes before all that only it saw,
//     zeros go after what they hide, and trims last. No reader sees an entry
//     beside trims of another instant.
//  4. A table's name stands for the same bytes as long as a map is attached,
//     and an object never changes. Tables are uploaded before the manifest that
//     names them is returned.
//  5. Nothing that the map may read, or that its next checkpoint may name, is
//     missing in [Map.Objects], but for what is being put at this moment.
//
// # Concurrency
//
// All methods may be called at once, but one caller at a time may Apply. Locks
// are taken in the order checkpoints or sweeping, apply, shown, mu. Look-ups
// take only shown, and never wait for an Apply without trims. A Checkpoint stops Apply while Pebble flushes what came during
// the first flush, and links its files (docs/design/map.md has figures).
//
// # Crash
//
// Options.Dir may be lost or torn at any time: nothing in it is made durable,
// and both Create and Attach begin by removing it. What a crash leaves are
// objects of a checkpoint that was never recorded.
//
// # Errors
//
// [ErrClosed], [ErrFailed], [ErrInvalid], [ErrNoSnapshot], [ErrCorrupt], [ErrUnsupported]; errors
// of Objects are passed on, and the same call may succeed later.
//
// It does not order or repeat batches, decides nothing about the life of
// objects, and does not encrypt: Objects does.
package blockmap
