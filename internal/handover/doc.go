// Package handover passes listening sockets from a process that stops serving to
// one that goes on, so that who connects meanwhile waits and is not refused.
//
// The one that serves awaits a successor on a unix socket of its own ([Await]);
// the successor asks there ([Take]). Lines of text go to and fro, the last with
// the sockets' descriptors (SCM_RIGHTS):
//
//	successor   plinth hand over 1
//	predecessor plinth process PID              at once
//	predecessor prepared                        when little is left to do
//	successor   go                              no way back from here on
//	predecessor {"sockets":[{"network":"tcp","address":"127.0.0.1:10809","owned":false}, ...]}
//	successor   taken
//
// Before "go" either side may go away, and the predecessor serves on. After it
// the predecessor stops, which is the caller's work, and passes the sockets when
// it has let go of everything. A successor that dies then leaves nobody who
// serves, as a stop would. Of several successors the first is served; the others
// find that nobody answers.
//
// Everybody who can open the unix socket can have all: its mode must be 0600.
package handover

import "time"

const (
	hello    = "plinth hand over 1"
	answer   = "plinth process "
	prepared = "prepared"
	proceed  = "go"
	taken    = "taken"

	// messageBytesMax bounds a line, socketsMax what comes with one.
	messageBytesMax = 32 << 10
	socketsMax      = 64
	// handOverTimeMax bounds all that follows the first answer: preparing,
	// draining and closing a pool. They have bounds of their own, below this.
	handOverTimeMax = 2 * time.Minute
)

// answerTimeMax bounds every wait for a side that has nothing to do but answer.
// A variable for tests.
var answerTimeMax = 5 * time.Second
