// Package etcd is datanode.RegistryNode over an etcd cluster, for pools of
// several hosts and data nodes.
//
// Everything lies under one prefix, plinth/POOL/ (docs/format/registry.md).
// Revisions are etcd's plus an offset that was fixed when the registry was made
// or restored.
//
// # Transactions in doubt
//
// A connection that breaks leaves open whether a transaction was applied, or will
// be. So each one also changes a slot, a key that is this Registry's alone, and
// compares it first. When the answer does not come, the same compare puts a closing
// mark: either that succeeds, and the transaction can never be applied, or the slot
// has what the transaction wrote, and says at which revision. Slots live under a
// session, a lease of this Registry: when that is gone no transaction under it can
// be applied any more. Only where etcd does not answer for a while is the outcome
// ErrOutcome.
//
// # Leases
//
// They are keys, not leases of etcd: those end by the clock of a member that
// believes to lead. One that stalls and comes back ends leases that were kept alive
// at its successor, and one that was replaced goes on keeping leases alive (etcd
// issue 15247). Here keeping alive is a transaction, and every open Registry looks
// at all leases each [Options].Poll: one that did not change for its TTL and the
// margin by that Registry's clock is ended by a transaction that compares that it
// still did not. So a clock only ever decides about a span that it saw whole.
//
// # Invariants
//
//  1. A transaction is applied once or never, and what RegistryCommit says of it
//     stays true.
//  2. No lease ends before its TTL is over since it was last kept alive, by the
//     clock of whoever ends it.
//  3. A revision is not below any that this registry gave out before, through every
//     restore by [Restore].
//
// Concurrency: all methods may be called at once. Open starts one goroutine, which
// Close ends. Every call to etcd has a deadline, [Options].Timeout.
package etcd
