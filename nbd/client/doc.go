// Package client speaks NBD to any server: fixed newstyle, with simple,
// structured and extended headers, many requests in flight on one connection.
//
// Nouns: a [Client] is one connection to one export; [Info] is what the server
// said of it; a call is one request in flight, named on the wire by a cookie.
//
// A Client is itself an nbd.Device. Its methods may be called concurrently,
// block until the reply is there, and never resend: when the connection breaks
// every call fails with [ErrClosed] and the caller does not know whether a
// write took place. A server's refusal is an [Error], which unwraps to its
// nbd.Errno.
//
// Invariants:
//
//  1. A cookie in flight is unique: slot number below, use count above.
//  2. After a method has returned, no goroutine touches its buffer.
//  3. A reply that no call in flight asked for ends the connection.
//
// A context that ends abandons the call, not the request: the server may still
// carry it out, and the slot is free again when its reply has come. While a
// request is being sent its context is not looked at: a server that does not
// read holds the call until Close.
package client
