// Package remote runs a host agent whose data node is another process, over the
// wire.
//
// Nouns: a session is one wire.Client, one lease and one host.Host on them. An
// agent has one session after the other. A device is an open export of an NBD
// client: it outlives sessions. A holder is a process that serves the pool.
//
// # Sessions
//
// A session ends as soon as one call of its client has failed for want of the
// node's answer, or its lease has. Then nothing that it kept in memory is believed
// any more: the client is closed, so that all calls fail, the host after it, and
// the next session begins as after a crash: it claims new epochs, fences, and
// replays the logs. docs/design/wire.md has the reasons.
//
// # Invariants
//
//   - A call of an NBD client fails only with an error of a session that goes on,
//     or with the end of its context. Otherwise it is done again in the next
//     session, from where it was in the log (disk.Interrupted), and so done once.
//   - What was acknowledged, or read, in a session is in the next one, or the disk
//     does not open there (disk.Tail).
//   - I6: replies leave while the lease lasts by this machine's clock. Between two
//     sessions of an agent no other holder has served, or the agent ends.
//   - No session serves before all devices were opened in it: nobody else can
//     rename or remove what clients have open.
//
// # Concurrency
//
// An agent has one goroutine, a lease another; Close ends them and waits. Agent.mu
// guards devices and what they are opened in; it is not held over calls.
//
// Errors: [ErrServed], [ErrLost], and those of wire.Dial, the root key and the
// host.
package remote
