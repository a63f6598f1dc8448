// Package disk is one open disk: reads and writes at any byte, an ordered log
// that acknowledges them, and the way of what was written into segments.
//
// Nouns: a [Pool] is what the disks of one host session share: the data node,
// stripes, keys and admission ([Space]). A [Disk] is open under one epoch. Its
// write buffer is a list of layers, each the newest state of the chunks that a
// run of log operations touched; the last one takes writes, the older are
// frozen and wait to be destaged. A round ([Destage]) moves the oldest layer of
// each of several disks into segments. A checkpoint makes the map durable. A
// pass is the owner's scan that states what of the spindles the disk needs. A
// mark is a snapshot or a rollback in the log; an [Image] is a snapshot to be
// read. A clone is a disk whose first checkpoint is another disk's.
//
// # The order of things
//
//	write:   admit → seal → log append → layer → (sync) → reply
//	read:    layers, newest first → memo, RAM, flash → map → RAM, flash → fragment
//	         range → verify → reply
//	round:   sync log → look up, pack, write fragments → publish → results
//	         append and sync → map → memo → drop layer → trim operations (I7)
//	checkpoint: tables → manifest → record in the registry → trim results
//	pass:    lists, moves, snapshot of the map, no round under way → who exists →
//	         sweep: live bits, patches → checkpoint, if anything was patched →
//	         live bits ∪ what was registered since → lists
//	mark:    append locks of all disks → marks → unlock → sync; then the registry
//	clone:   hold the parent's lists → read its checkpoint → record → open; the
//	         clone's first pass → release. Or: hold → open, reading the parent's
//	         snapshot → checkpoint of the parent → record → Independent
//
// # Invariants
//
//   - I2, I6: nothing replies before its record is appended, and where asked
//     synced, and the pool's MayReply has agreed.
//   - I3: operations enter the layer in the order of the log. A snapshot ends its
//     layer, a resize or rollback has one of its own, so that no result crosses it.
//   - I12: a pass gives up what no version in the map needs, and the old place of
//     what moved only when a recorded checkpoint has the new one. So the newest
//     checkpoint names nothing that this disk has given up.
//   - Only what is in the map is read of a snapshot. A rollback is in the map
//     before any call comes in again. So the write buffer need not know of either.
//   - A snapshot in the map that the registry does not name, and of which it is
//     known that it never will, is forgotten by the next pass.
//   - I4: a round destages only what it has synced before.
//   - I14: what does not open under its fingerprint is reconstructed or is an
//     error that names disk, chunk and segment.
//
// # Concurrency
//
// All methods may be called at once. Locks are taken in the order Pool.round,
// destageMu, checkpointMu, appendMu, mu, listMu; queueMu is a leaf. Freezing a
// layer takes mu alone, so that a writer that waits for room in the log, holding
// appendMu, cannot block the round that makes room. MarkAll takes the appendMu of
// several disks, in the order of their numbers, and gives up after a while. Those that HoldAll
// holds up append nothing (held), but nobody has their appendMu. A Disk
// starts no goroutine, but to wait for appendMu for as long as another has it, to
// open many chunks for one read, and to fetch ahead of a sequential reader: Close
// waits for all of them.
//
// A crash leaves the log and the last checkpoint, from which [Open] makes the
// same disk again.
//
// # Durable records
//
// The map's state, kept in each of its batches (64 bytes, big-endian): version 1
// (u8), 7 zero bytes, operations destaged through (u64), their chain's MAC (16),
// last result applied (u64), its chain's MAC (16), the disk's size in bytes
// (u64). The checkpoint record is JSON: see [CheckpointRecord].
//
// Errors: [ErrNoSpace], [ErrOutOfRange], [ErrClosed], [ErrFailed], [ErrBusy],
// [ErrNoSnapshot], [ErrCorrupt].
package disk
