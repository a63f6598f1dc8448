// Package nbdtest tests what speaks NBD: one conformance suite ([Run]) for any
// server, ours or not, exports to serve, and a raw
// connection ([Raw]) that says what a well-behaved client would not.
package nbdtest
