// Package flashcache keeps sealed chunks on a host's own flash, found by
// fingerprint.
//
// Nouns: the device is a file or a raw block device. A region is its unit of
// writing and of eviction. A record is a sealed chunk with its fingerprint behind
// it; a region has records, a table of them, and a footer. The regions are in two
// queues, small and main, each evicted first in, first out. A ghost is what is
// remembered of an evicted chunk. To reinsert is to write a chunk again when its
// region is evicted.
//
// The format is in docs/format/flashcache.md, the choice of what to evict in
// docs/design/flashcache.md.
//
// # Eviction
//
// S3-FIFO (Yang et al., SOSP 2023), by regions. A new chunk goes to small, which
// has a tenth of a full cache. When its region is evicted, what was got meanwhile
// is reinserted in main and the rest leaves ghosts; a chunk that comes while its
// ghost is there goes to main at once. Main reinserts what was got since it was
// written. So a scan passes through small and leaves main as it is. Reinsertion
// spends credit that Put earns: with it, 1.2 bytes are written for one that Put
// takes. Where credit is short, it goes to what was got most.
//
// # RAM
//
// An entry of the index is 12 bytes: 32 + 9 bits of the fingerprint, beside 6 to 17
// that choose the shard; 40 bits of a place in units of 16 bytes (16 TiB); 13
// of a length in such units; 2 that count how often it was got. Tables are between
// 82 and 90 % full, and beside every cell there is a ghost of a byte:
// (12 + 1) / 0.82 = 15.9 bytes for a cached chunk at most. Beside it come 128
// bytes per shard (one for 128 MiB of the device, 64 at least), 8 to 16 per region,
// and four regions as buffers, 32 MiB at most.
//
// # Invariants
//
//  1. A record is in the index from the moment its bytes can be read, in a buffer
//     or on the device, and out of it before its region is evicted or its buffer
//     is another's. Get looks at the index before and after it reads.
//  2. What Get returns was stored under the whole fingerprint that it asked for.
//     Whether the bytes are intact is the caller's to verify.
//  3. Put waits for no I/O, and no lock is held over I/O but a shared one of reads,
//     for which only Close waits.
//  4. A footer is written when records and table are stable.
//
// Concurrency: all methods may be called at once. The order of locks is a Cache's
// reading, its mu, then a buffer's; a shard's is taken last. One goroutine of the
// Cache's writes, evicts and loads; Close ends it.
//
// A crash takes the chunks that were in buffers. A loss of power may tear regions
// that were being written over: their old table can still name records that are
// no more, which Get finds out by their fingerprints, or whose first bytes are
// no more, which the caller does.
//
// Errors: a read, write or sync that fails turns the cache off until it is opened
// again, with one line in the log and a text in Stats. Nothing else is lost: every
// chunk in a cache is also where it came from.
//
// It does not verify, decrypt or fetch chunks, and holds no keys.
package flashcache
