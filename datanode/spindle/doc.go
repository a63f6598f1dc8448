// Package spindle keeps fragments on drives: it stores them whole, finds them
// by (segment, index), verifies them without keys, and knows what is free.
//
// Nouns: a spindle is a directory with a superblock; a [Set] is the spindles of
// a data node. A slab is a preallocated file of a spindle: a header, a table,
// and blocks of 4 KiB. A fragment is a header (the segment's header and a
// checksum for each block) and data; its parts are runs of blocks, nearly
// always one. Each part has an entry in its slab's table. A small file holds a
// copy of the registry.
//
// The format is in docs/format/spindle.md.
//
// # Invariants
//
//  1. An entry is written when its blocks are stable, and blocks are reused when
//     the clearing of their entry is stable and nobody reads them. So an entry
//     never names blocks that hold something else.
//  2. A fragment is there if and only if all its parts have a sound entry of one
//     serial number. Of two of one name the higher serial number is right; so a
//     replacement is one step, at the moment its last entry is stable.
//  3. Every free block can be used: a fragment that has no room in one piece is
//     stored in pieces. What was reserved can therefore be written.
//  4. Only the newest slab has free blocks that take room in the file system:
//     what is freed is punched, and the rest of a slab when the next one is made.
//  5. A spindle that failed a write or a sync serves no more until it is opened
//     again (I2). A failed read is the fault of one fragment.
//  6. A call that begins at one drive uses no other one: another is made in the place of
//     one that does not serve when no call is at work there (Replace).
//
// Concurrency: all methods may be called at once. Each call does its work in
// goroutines that end before it does, but for the probes of Check, one per
// spindle, and of Replace, at a drive that hangs: Close waits for these. Syncs of
// a slab are shared by whoever waits.
//
// A crash leaves entries without their other parts, replaced fragments, and
// blocks that no entry names: Open clears the first two and frees all three.
//
// Errors: those of datanode.FragmentNode; [ErrVersion] by Open.
//
// It does not decide which spindle gets a fragment, nor repair one: hosts do. It
// does not lock its directories: who opens a Set keeps others from it.
package spindle
