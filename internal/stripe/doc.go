// Package stripe cuts segments into fragments with parity, lays them over
// spindles, and reads them back whatever up to m of the k+m have lost.
//
// Nouns: a [Geometry] is how many data (k) and parity (m) fragments a segment
// has; [Layouts] are the lists of k+m spindles that stripes may use; a
// [Builder] packs sealed chunks into a [Segment], [PackObject] the units of a
// checkpoint object; a [Range] is bytes of one fragment; a [Store] writes,
// reads, reconstructs and checks stripes on a data node.
//
// # Format
//
// docs/format/stripe.md: layouts byte by byte, addresses, packing, parity.
//
// # Invariants
//
//  1. A sealed chunk or unit never straddles a fragment: it is one Range.
//  2. The parity matrix of a geometry never changes; a test pins its output.
//  3. A segment's number is used for one attempt to write it. A stripe that was
//     written in part is never completed or written again under its number.
//  4. A fragment is rewritten only when every block of it is either as read
//     under a valid checksum, or computed from k others that are, or proved by
//     the caller's check. A guess never gets a valid checksum.
//
// Concurrency: the methods of a Store may be called at once, those of a Builder
// not. Parity is computed on the caller's goroutine. A read around a slow spindle
// starts one, which ends before the read does; nothing else does.
// Repairs of one stripe at the same time write the same bytes.
//
// A crash in Write leaves fragments of a segment that nobody refers to. A crash
// in a repair leaves the old fragment or the new one.
//
// Errors are those of package datanode, by code.
//
// It does not know what a sealed chunk is: whether bytes are right is for the
// caller to say ([Store.Reconstruct] takes a check). Fragments read by
// [Store.Read] are not tested against their checksums, because the caller
// authenticates every chunk anyway.
package stripe
