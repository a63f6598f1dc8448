// Package nbd serves disks over the Network Block Device protocol: fixed
// newstyle negotiation (LIST, INFO, GO, EXPORT_NAME, ABORT, STARTTLS,
// STRUCTURED_REPLY, EXTENDED_HEADERS, LIST_META_CONTEXT, SET_META_CONTEXT) and transmission
// (READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, DISC, and every
// flag of theirs) with simple, structured and extended headers, over TCP and
// unix sockets.
//
// A client may also go over to a protocol of the caller's own (Options.Others), which
// then has the connection, TLS and its proof included.
//
// Nouns: a [Server] offers [Exports]; an [Export] is a [Device] with a name; a
// connection negotiates (handshake), then carries requests (transmission). The
// window is what a connection may have in flight, a worker a goroutine that
// calls the device for one request at a time.
//
// # Invariants
//
//  1. A device sees only ranges within the size that the client was told, and
//     at most PayloadBytesMax bytes of payload.
//  2. Nothing is allocated for a length from the wire before it is judged. A
//     connection holds at most Options.RequestsMax requests and
//     Options.BytesInFlightMax bytes, or one request.
//  3. Every request that was read whole is answered exactly once, with its own
//     cookie, unless the connection breaks. A reply says success only after
//     the device did.
//  4. A payload leaves only for a read that succeeded: buffers are shared with
//     other exports.
//  5. An export that was opened is released exactly once, after the last call
//     to its device has returned.
//
// # Order
//
// Replies go out in the order in which the device finishes. Requests in flight
// together are not ordered, as the protocol has it: who needs an order waits
// for a reply. FLUSH and FUA promise what Device does.
//
// # Concurrency
//
// All methods of Server may be called at once. A connection has a reader and
// up to RequestsMax+1 workers, started as requests need them (queue.go), a
// writer (replies.go) and one who watches the time (overdue.go); the server owns
// them, and Close and Shutdown wait for them. A reader that calls the device itself
// for long becomes a worker, and another goroutine the reader (alone.go): there is
// one reader at a time, but for those moments in which there is none. Lock order:
// Server.mu, conn.mu, window.mu; overdue before window.mu and replies.mu, which are
// held alone, as patience.mu is.
//
// # Errors
//
// What a device returns becomes one of the protocol's numbers in one place
// (errno.go). A client that breaks the protocol in a request is answered
// EINVAL where the stream is still in step, and disconnected where it is not.
//
// Every device call has a deadline (Options.RequestTimeout), which the device
// should heed: one that does not holds its slot of the window until it returns,
// and its client gets EIO.
package nbd
