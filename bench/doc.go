// Package bench measures a block device under load: the workloads that fio
// names, with content that compresses and deduplicates as much as one asks for.
//
// Nouns: a [Target] is what is measured. A job is a stream of operations with
// its own share of the target and up to Depth of them in flight; a worker has
// one of them in flight. Content is what writes write: a function of a key.
//
// # How it measures
//
//   - Random offsets are drawn evenly and independently: blocks repeat, unlike
//     with fio's random map. Sequential jobs divide the target among themselves
//     and begin again at the end of their share.
//   - Making content is outside an operation's latency, and inside the CPU time:
//     some 0.4 µs for 4 KiB.
//   - CPU time is this process's, user and system. What a server in another
//     process spends is not in it.
//   - Latencies are kept in a histogram of fixed size with an error below 1.6 %.
//
// With Verify, every block remembers how often it was written; reads of blocks
// that were written are compared, and at the end all of them are read back.
//
// Concurrency: Run starts Jobs × Depth goroutines and ends them before it
// returns. It keeps no state between runs.
package bench
