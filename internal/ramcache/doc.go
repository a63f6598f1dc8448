// Package ramcache keeps what reads may be answered with at once: plaintext of
// chunks, and what maps say.
//
// Nouns: a [Cache] holds pages, 4 KiB of the plaintext of a chunk each, under the
// chunk's fingerprint and the page's number in it, for all disks of a host: what
// is deduplicated on the spindles is so here. A [Memo] remembers what one map says:
// LBA → fingerprint, or zeros. Memos share one table in their Cache.
//
// # Invariants
//
//  1. A page is put only after its chunk was opened under its fingerprint (I14),
//     and never changes: there is nothing to invalidate.
//  2. What a Memo answers for an LBA is what the map says, or said before a change
//     that [Memo.Changed] or [Memo.Forget] has not been told of yet. Whoever changes
//     a map tells it afterwards, and lets readers consult the Memo for what was
//     changed only after that: a disk by dropping the layer that hides it.
//  3. So no answer of a map is remembered that was taken before a change and comes
//     after it: [Memo.Put] wants the [Ticket] that was drawn before the map was
//     asked, and refuses it if the map has changed since.
//
// Where a chunk lies is not remembered: reclaim moves chunks, and no content changes
// by that.
//
// # Memory
//
// One mapping outside Go's heap, so that the limit is the limit: a heap would hold
// up to twice as much before it is collected. Of the bytes given a page takes
// 4,096 and 116 more: 44 to 60 for its place in the queues, tables and the ghosts,
// 64 for two entries of the memos' table, since more than what is cached is worth
// knowing. Memory is taken from the machine as it is first used.
//
// Pages leave by S3-FIFO (Yang and others, "FIFO queues are all you need for cache
// eviction", SOSP 2023): new pages enter a small queue of a tenth; who is read there
// moves to the main queue, the others leave but their names, as ghosts, and go
// straight to the main queue if they come again while remembered. A scan so passes
// through a tenth. docs/design/read.md has the figures of the choice.
//
// # Concurrency
//
// All methods may be called at once; none blocks but for other calls, and none
// allocates. Pages are copied under the lock of one of up to 256 shards; an entry
// of a Memo is read and written under one of 256 locks.
//
// A crash leaves nothing. There are no errors but that of [New].
package ramcache
