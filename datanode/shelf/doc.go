// Package shelf joins log, spindles, index and registry to a data node in one
// directory: [Shelf] implements datanode.Node in this process.
//
// Nouns: a node's superblock says what the node was made as. A copy is the
// registry as one small file on a spindle. To adopt a segment is to make one
// that lies on the spindles known to the index.
//
// The directory and the superblock, byte by byte, are in docs/format/node.md.
//
// # Invariants
//
//  1. Only Create makes a log or spindles, and only where there was no node
//     (Recover makes a log where Options say that its loss is accepted). What is
//     missing at Open is an error or absent, never empty. ReplaceSpindle alone makes
//     another drive a spindle, and AddSpindle one more; the roster says which drives are.
//  2. A change of the registry is on spindles before it is acknowledged. A
//     registry that is older than a copy of it is not opened, nor copied.
//  3. Segments are adopted before the node serves: no writer is at work that
//     could publish the same.
//  4. From the moment Recover touches an index until the registry is restored, Open
//     refuses the node. An index that is not whole Open makes anew, once it has a registry
//     that holds against its copies.
//
// # Concurrency
//
// All methods may be called at once. One goroutine checks the spindles every
// three seconds; Close ends it. One process has the directory open, by a lock
// that ends with it.
//
// # Crash
//
// A half-created node is none, and the next Create clears it. Log, spindles,
// index and registry each recover by themselves; what was written to spindles
// and not published is adopted.
//
// # What it does not do
//
// A spindle that was absent serves again after the node was opened anew, or when
// another drive is made the spindle, not before. The version of the stripe layouts
// is not kept: who keeps the layouts says it after Open (SetLayoutVersion).
package shelf
