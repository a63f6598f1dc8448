// Package sim simulates a whole pool: hosts, data nodes, their index, the registry and
// the network between them, in one goroutine and in simulated time, all from one seed.
//
// The package itself is a [Queue] of events, which the simulations of internal/owner
// and internal/logset use too; the pool is in its tests. Each host there runs the real
// machine of internal/owner, each disk that it has the real machine of
// internal/logset, and reclaim plans with the real internal/reclaim. What those leave to
// who drives them is modelled in as few lines as it takes, without bytes: a data node is
// logs in memory, of which power takes what was not synced, and an index with lists,
// births, moves and tombstones by the rules of datanode/index; the registry compares and
// sets, with leases; a map is an array of blocks for the disk and for each snapshot.
//
// # What happens to it
//
//   - A host ends at any await, forgets all, and begins anew; or stands still for up to
//     three leases, and goes on without knowing it (a zombie).
//   - A data node ends and begins again with all it had; or loses power, and some of what
//     was not synced; or all of them lose power at once.
//   - In one pool of four a node's syncs lie, one in two. When it boots after a loss of
//     power it finds that out, does not serve, and is made anew; or it cannot know, and
//     serves what is left.
//   - A host and a data node, or the registry, are cut off from each other, in both
//     directions or in one.
//   - Messages are late by up to seconds, overtake each other, are lost on the way there
//     or back, are carried out after who sent them has given up, or twice (not those to
//     the registry, which a session numbers).
//   - Clocks differ in rate, and hosts' jump ahead. A monotonic clock does not jump back.
//
// The fault model of bytes and drives is not here: torn, lost, misdirected, rolled-back
// and flipped writes, spindles, parity, full devices. Nor are forwarded operations,
// rollback, resize, rebuild and changes of the members. See docs/reliability.md.
//
// # What is looked for
//
//   - Every block is a register. Values are unique, so whether an order exists is decided
//     exactly and in O(n log n), by zones (Gibbons and Korach, Testing Shared Memories,
//     1997): the operations of one value lie together, those of two values must not have
//     to lie in each other.
//   - A new owner finds every record that was acknowledged, or that was flushed if all
//     its nodes lost power, and its map says what these say.
//   - No data node takes a record of an older epoch than it was fenced with, and no two
//     hosts may reply for one disk.
//   - A snapshot says for ever what its disk said at its mark.
//   - What is freed is named by no checkpoint with the results after it, by no map that is
//     served, and by no base of a clone.
//   - At rest, every disk is served, and lists are exactly what is needed.
package sim
