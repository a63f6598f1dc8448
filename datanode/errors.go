package datanode

import (
	"errors"
	"fmt"
)

// Code classifies an error for the wire. Codes are never renumbered.
type Code uint16

const (
	CodeUnknown     Code = 0
	CodeInvalid     Code = 1
	CodeFenced      Code = 2
	CodePosition    Code = 3
	CodeLogFull     Code = 4
	CodeNoSpace     Code = 5
	CodeNotFound    Code = 6
	CodeGone        Code = 7
	CodeCorrupt     Code = 8
	CodeSpindle     Code = 9
	CodeStaleLayout Code = 10
	CodeConflict    Code = 11
	CodeClosed      Code = 12
	CodeDead        Code = 13
	CodeStaleUpdate Code = 14
	// What lies between a host and a node adds these.
	CodeUnreachable  Code = 15
	CodeOutcome      Code = 16
	CodeTimeout      Code = 17
	CodeRestarted    Code = 18
	CodeForbidden    Code = 19
	CodeWrongCluster Code = 20
	CodeVersion      Code = 21
	CodeBusy         Code = 22
	CodeLeaseLost    Code = 23
	CodeCompacted    Code = 24
)

// Error is the only kind of error that a Node returns, besides those of the
// context. Two errors are equal for errors.Is when their codes are.
type Error struct {
	Code Code
	Text string // for people; never parsed
}

func (e *Error) Error() string { return e.Text }

// Is reports whether target is an *Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// The errors of a Node, by code. Compare with errors.Is.
var (
	// ErrInvalid: a request out of its stated bounds. A fault of the caller.
	ErrInvalid = &Error{CodeInvalid, "invalid request"}
	// ErrFenced: a newer epoch owns the disk. The caller stops serving it.
	ErrFenced = &Error{CodeFenced, "fenced: a newer owner has the disk"}
	// ErrPosition: an append not at the log's end. The caller reads the end.
	ErrPosition = &Error{CodePosition, "append is not at the end of the log"}
	// ErrLogFull: no room in the log. The caller destages, trims and retries.
	ErrLogFull = &Error{CodeLogFull, "log is full"}
	// ErrNoSpace: the spindles have no room left after the reserves.
	ErrNoSpace = &Error{CodeNoSpace, "no space left on the spindles"}
	// ErrNotFound: no such log, fragment, segment or key.
	ErrNotFound = &Error{CodeNotFound, "not found"}
	// ErrGone: the segment is being deleted or was. The caller looks up again.
	ErrGone = &Error{CodeGone, "segment is gone"}
	// ErrCorrupt: stored bytes fail their checks.
	ErrCorrupt = &Error{CodeCorrupt, "stored data is corrupt"}
	// ErrSpindle: the spindle has failed or is absent. The caller reconstructs,
	// or writes to a layout without it.
	ErrSpindle = &Error{CodeSpindle, "spindle has failed or is absent"}
	// ErrStaleLayout: the caller must load the layouts anew.
	ErrStaleLayout = &Error{CodeStaleLayout, "stripe layouts have changed"}
	// ErrConflict: a compare of a registry transaction failed.
	ErrConflict = &Error{CodeConflict, "registry has changed"}
	// ErrClosed: the node is shutting down.
	ErrClosed = &Error{CodeClosed, "data node is closed"}
	// ErrDead: the log's device failed a write or a sync; nothing more is
	// acknowledged until an operator has looked.
	ErrDead = &Error{CodeDead, "log device has failed"}
	// ErrStaleUpdate: a list update at or below the last (epoch, seq).
	ErrStaleUpdate = &Error{CodeStaleUpdate, "reference list has a newer update"}

	// ErrUnreachable: no connection to the node, or none of the registry's nodes
	// answers. The call was not carried out and will not be. The caller tries again
	// later, or another node.
	ErrUnreachable = &Error{CodeUnreachable, "data node cannot be reached"}
	// ErrOutcome: the call was sent, and its answer did not come. It may have been
	// carried out, or may yet be. The caller reads the state before it goes on, and
	// of a transaction of the registry it keeps what that names and what it replaces.
	ErrOutcome = &Error{CodeOutcome, "outcome of the call is unknown"}
	// ErrTimeout: the node ended the call at its deadline. It may have been
	// carried out.
	ErrTimeout = &Error{CodeTimeout, "call has timed out at the data node"}
	// ErrRestarted: the node's process is another than the one that the caller
	// began with; the call was not carried out. What the process kept in memory
	// (reservations, look-ups not yet published) is gone: the caller begins anew.
	ErrRestarted = &Error{CodeRestarted, "data node was restarted"}
	// ErrForbidden: the caller's certificate does not allow it. For an operator.
	ErrForbidden = &Error{CodeForbidden, "not allowed by the certificate"}
	// ErrWrongCluster: the other end belongs to another cluster or pool.
	ErrWrongCluster = &Error{CodeWrongCluster, "wrong cluster"}
	// ErrVersion: the two ends have no version of the protocol in common.
	ErrVersion = &Error{CodeVersion, "no common version of the protocol"}
	// ErrBusy: the node has as many sessions or connections as it takes.
	ErrBusy = &Error{CodeBusy, "data node takes no more sessions"}
	// ErrLeaseLost: the lease has ended. Its holder stops serving what it held.
	ErrLeaseLost = &Error{CodeLeaseLost, "lease has ended"}
	// ErrCompacted: the registry forgot that revision. The caller lists again.
	ErrCompacted = &Error{CodeCompacted, "revision is forgotten"}
)

// Errorf returns an error of base's code with a text of its own, base's after
// it.
func Errorf(base *Error, format string, args ...any) *Error {
	return &Error{base.Code, fmt.Sprintf(format, args...) + ": " + base.Text}
}

// AsError returns err as an *Error: itself where it wraps one, its text and
// CodeUnknown otherwise; nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return &Error{e.Code, err.Error()}
	}
	return &Error{CodeUnknown, err.Error()}
}
