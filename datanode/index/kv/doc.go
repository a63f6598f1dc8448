// Package kv opens one Pebble for a data node and turns its failures into
// errors of the contract.
//
// A [Store] begins with a superblock, an envelope ([Seal]) with magic, version
// and incompat bits, so that a foreign or newer directory is refused. Pebble
// says that it cannot go on by ending the process; a Store says it by ErrDead,
// at once and for every later call, because nobody knows what the device lost.
//
// Concurrency: all methods may be called at once. Every use lies between Enter
// and Leave; Close waits for them.
//
// A crash leaves everything that was committed before the last Sync that
// returned, and of what came later a prefix in the order of the commits.
package kv
