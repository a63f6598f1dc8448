// Package wire carries the calls of datanode.Node between hosts and data nodes:
// [Server] serves a node, [Client] is one far away.
//
// Nouns: a frame is a header and, for most kinds, a message. A session is one
// client's calls at one server; it uses several connections, and outlives them
// for a while. A slot is a place for one call of a session; a slot and the number
// of the call in it name a call. A path is one of the node's addresses; on each
// the client has a connection for small calls and one for bulk. A node's boot is
// one life of its server.
//
// The bytes are in docs/format/wire.md, the reasons in docs/design/wire.md.
//
// # Invariants
//
//  1. Nothing is said or heard but under TLS 1.3, with both certificates verified
//     and of the same cluster; a call is begun only if the client's role may.
//  2. A server begins each call of a session that changes something at most once,
//     however often it is sent. What it gave is kept until the client uses the
//     slot again or the session ends.
//  3. A client uses a slot again only when the server has said that it is done with
//     the call before, also if the caller has given up. So what may still happen
//     at the server is in a slot, and an old copy of a call on a slow connection
//     is older than what the slot has seen.
//  4. A client sends to one boot only. A new session is welcomed only when nothing
//     of the client's session before runs any more.
//  5. What is allocated for a peer is bounded before it is: by the length of the
//     frame and the memory of the session and the server for messages, by the
//     bytes of the message for what is in it.
//
// # Memory
//
// A client copies requests before they are sent: a caller that is let go has its
// memory back. A server hands a node requests that lie in the frame, and uses
// that again when the call returns; replies' long runs of bytes are sent from
// where the node has put them. A reply that refers to bytes owns its frame.
//
// # Concurrency
//
// All methods may be called at once. A connection has a reader, a writer and a
// watch; a client one goroutine a connection and a watch; a server a bounded
// number that carry calls out. Close ends them all and waits. Locks are taken
// in this order: at a client a slot's, the client's, a link's; at a server the
// server's, a session's, the scheduler's; then a connection's, a stream's.
//
// # Errors
//
// Those of the node, by code and text, those of the context, and ErrUnreachable,
// ErrOutcome, ErrTimeout, ErrRestarted, ErrForbidden and ErrClosed of package
// datanode, which say what the caller must do.
package wire
