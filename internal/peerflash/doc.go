// Package peerflash reads sealed chunks from the flash cache of another host, and
// serves a host's own to others.
//
// Nouns: a lender is a host that serves its flash cache, by a [Server]. A [Peer] is a
// lender as a host that asks it sees it. A line is a Peer's connection. A [Source] is a
// Peer as one disk reads from it.
//
// A host that a disk has come to finds its own flash cold and that of the disk's host
// before warm. A read of a spindle takes 8 to 10 ms, one of another host's flash well
// under one. All of it is a hint: whoever asks goes to the spindles for what does not
// come, and verifies what comes.
//
// The bytes are in docs/format/wire.md, the reasons in docs/design/read.md.
//
// # Invariants
//
//  1. Get takes Options.Answer and no longer, for each turn of requests that it needs:
//     it never dials, never waits for another read, and gives up with its context.
//  2. A Peer that does not answer, or answers what does not verify, is left alone for a
//     time that doubles; one that has little of what a Source asks for is asked for a
//     sample only.
//  3. Nothing is allocated for a length from the wire before it is judged, and what
//     either end holds is bounded: requestsMax requests of a connection, lentMax of all
//     that a Server has under way, of at most ChunksMax chunks and BytesMax bytes each.
//  4. A Server waits for nothing but its flash, and for a moment until its reply is
//     taken: what it has no room for is not here.
//
// Concurrency: all methods may be called at once. A line has a goroutine that reads and
// one that writes, a Peer one that dials; Close ends them and waits. A connection of a
// Server is the caller's goroutine, with one for each request under way; Serve returns
// when they have ended. No lock is held over I/O but a connection's own, by who writes a
// reply.
//
// It does not verify, decrypt or keep chunks, and does not prove who is at the other
// end: the connection is one between hosts that have (package forward).
package peerflash
