// Package datanode is a shelf without a controller, as hosts see it: a log that
// acknowledges writes, spindles that hold fragments, an index of fingerprints
// with the reference lists of segments, and the registry. It knows no keys and
// computes no parity; what it stores is sealed by hosts.
//
// This package holds the contract: [Node], the messages of its calls and its
// error codes. Package shelf implements it from writelog, spindle, index and
// internal/registry.
//
// # Calls
//
// Every call takes a context and one request and gives one reply, all plain
// data, so that a call can cross a wire. A node keeps no slice of a request
// after it returns, and a caller owns the reply. Calls may be issued
// concurrently. A call that returns an error may have been carried out (its
// reply was lost): all calls are safe to repeat, or are refused the second time
// by a position or sequence number.
//
// # Invariants
//
//   - I1: A call that carries (disk, epoch) is refused with ErrFenced when the
//     epoch is below the newest one that Fence was called with for the disk.
//   - I2: When Append returns, its records survive the death of the process.
//     When Sync returns, they survive a loss of power.
//   - I10: A segment is born with all its slots held, per run of slots, by
//     (disk, epoch). A slot found by Lookup is registered in the same step.
//   - I11: A reference list refuses an update whose (epoch, seq) is not above
//     the list's last one.
//   - I12: A location is live while a durable root reaches it: whoever holds a
//     slot that was moved holds the copy too.
//   - I13: While the index is incomplete nothing is condemned or deleted.
package datanode
