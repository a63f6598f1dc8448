// Package index is a data node's fingerprint index and its reference lists:
// datanode.IndexNode over one Pebble.
//
// Nouns: a fingerprint row says that a chunk lies in a slot of a segment. A
// reference list says which slots of a segment a disk needs, a birth that a disk
// holds a run of slots since the segment was made. A disk's holder bits are its
// list and its births that no list has replaced. A candidate is a segment that
// was seen without holder bits; a tombstone says that one is being deleted. A
// segment that is to be emptied is condemned; a move says in which slot of which
// other segment, its target, a copy of a slot's chunk is; with moves for all that
// is held it is forwarded. Both are in transit.
//
// The rows, byte by byte, are in docs/format/index.md.
//
// # Invariants
//
//  1. A hit's slot is registered in the same step in which the segment is seen
//     to be live, and a tombstone is set in one step with seeing that nothing is
//     held: no hit is ever given on a segment with a tombstone (I10).
//  2. A list row knows the newest (epoch, seq) of anything that changed it, and
//     of the last SetLists. SetLists must be above the first, a registration not
//     below the second (I11).
//  3. A birth is replaced by its disk's SetLists of at least its epoch, for
//     good: publishing the segment again does not bring it back.
//  4. Tombstone stable → fragments deleted → rows deleted, with the segment's
//     number noted as deleted, so that it is never known again.
//  5. While the index is incomplete no tombstone is set (I13).
//  6. A list for a segment that the index does not know is kept: when a spindle
//     comes back with it, what was said of it still holds.
//  7. Each slot of a slot table has its fingerprint row, in a table or in memory,
//     and a row its slot. In memory only are rows of segments that say so (keyRecent).
//  8. Whoever holds a slot that has a move holds the copy, from the step on in
//     which the move is recorded: a list never takes it away, and one that adds
//     the slot adds the copy (I12). A list update of the source counts as one of
//     the copies, so that an earlier one, late, finds them newer (I11).
//  9. The target of a move is known and not being deleted; with its tombstone the
//     moves into it end. It was live when it became a target, and what has moves
//     is not live, so that moves go round no ring.
//
// # Concurrency
//
// All methods may be called at once. Lock order: reclaim, rows, holds. Lookup
// reads fingerprints under no lock and takes holds for the registration; what
// changes rows takes rows; what changes the states of segments, lists and moves
// takes holds too. Nothing waits for a device under holds; a call that is durable
// waits after it has let go of its locks, so that one sync serves many.
//
// # Crash
//
// What was synced is there; of later changes a prefix, in their order. So a
// registration that a tombstone could have been in conflict with is never lost
// alone. A tombstone that is found at Open is carried on by the next Reclaim. A
// rebuild that was interrupted is refused by Open and begun anew.
//
// # What it does not do
//
// It trusts hosts: a host that clears the bits of a hit whose reply it has not
// seen yet loses that chunk. It decides nothing: hosts say what is condemned, and
// copy. A rebuilt index knows of no moves: source and copies are live again.
package index
