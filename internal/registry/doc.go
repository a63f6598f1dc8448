// Package registry is the small consistent store of everything that is not
// data: datanode.RegistryNode over one Pebble.
//
// Nouns: an entry is a key with its value and its revision, the number of the
// transaction that last put it. Revisions are global: they rise by one with each
// transaction that changes anything and are never used twice. A dump is the
// whole registry as one sequence of bytes, for copies on spindles and for
// [Restore]; docs/format/registry.md has its bytes.
//
// # Invariants
//
//  1. A transaction is all or nothing, and happens at one instant between its
//     guards' checks and its return. A read that begins after a Fence returned
//     sees every transaction whose guard passed before that Fence.
//  2. When a commit returns nil it is stable here and in copies. When copying
//     failed, its error says so: the commit is stable here and stays, and the
//     next commit's copy, or the next Open's, has it too.
//  3. A dump takes at most [DumpBytesMax] bytes; a transaction that would make
//     it larger is refused.
//
// Concurrency: all methods may be called at once; commits wait for each other
// and reads for commits. A crash leaves every commit that returned, and of one
// that did not all or nothing.
package registry
