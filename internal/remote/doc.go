// Package remote runs a host agent whose data node is another process, over the
// wire.
//
// Nouns: a session is one wire.Client and one host.Host on it. An agent has one
// session after the other. A device is an open export of an NBD client: it outlives
// sessions, and goes on wherever its disk is (package forward). Peers are the other
// hosts of the pool.
//
// # Sessions
//
// A session ends as soon as one call of its client has failed for want of the
// node's answer. Then nothing that it kept in memory is believed any more: the
// client is closed, so that all calls fail, the host after it, and the next session
// begins as after a crash: it claims new epochs for the disks that it had, if no other
// host has, fences, and replays the logs. docs/design/wire.md has the reasons.
//
// A disk's place is what host.Locate says in the session of the moment: an open disk
// of this process, or a peer. Peers get the disks that this process has open
// (host.Here), by one listener for all sessions, and sealed chunks of the flash cache
// (host.Lend, package peerflash).
//
// # Invariants
//
//   - A call of an NBD client fails only with an error of a place that the disk has
//     not left, or with the end of its context. Otherwise it is done again at the next
//     place, from where it was in the log (disk.Interrupted), and so is done once; but for
//     other hosts of version 1 (package forward).
//   - What was acknowledged, or read, in a session is in the next one, or the disk
//     does not open there (disk.Tail).
//   - I6: replies leave while the host's lease lasts by this machine's clock.
//
// # Concurrency
//
// An agent has one goroutine, its listener for peers others, and a device one while
// it looks for its next place; Close, and the device's release, end them and wait.
//
// Errors: host.ErrInUse where another process is this host, and those of wire.Dial,
// the root key and the host.
package remote
