// Package rack joins several data nodes to one: [Rack] implements datanode.Node.
//
// Nouns: a member is a node of the rack, with a range of the pool's spindles. The keeper
// of a segment is the member that has it in its index: the one with the first spindle
// of the segment's layout. A follower of a disk's log is a member that has all of it
// (package logset).
//
// Fragments go to their spindles' members. A member that does not answer is its
// spindles failing, for as long as that lasts. Logs are kept by log sets. A look-up
// goes to all members, and what is hit is made stable before it is told. Whatever else
// is said of a segment goes to its keeper; walks go to all. The registry is one
// member's, or stands beside them.
//
// # Invariants
//
//  1. No call under an epoch reaches a member that was not fenced with it (I1, I11).
//  2. A hit is stable at its keeper when Lookup returns (I10): the Publish that makes
//     it so for one node would have to name every member that had one.
//  3. While a member does not answer nothing is deleted (I13). What a member missed of
//     a deletion it is told later, as long as this rack is open.
//
// # Concurrency
//
// All methods may be called at once. What runs in the background belongs to a disk's
// log, from Fence to the next one, to DropLog or Close.
//
// # What it does not do
//
// A chunk moves only to a segment of the same keeper, which records it in one step.
// What a deletion left on a member that was
// away until the rack was closed stays there, and so does what was written and not
// published when a host died: a leak.
package rack
