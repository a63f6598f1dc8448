package host

import "errors"

var (
	// ErrExists: a disk or snapshot of that name is there.
	ErrExists = errors.New("name is taken")
	// ErrUnknownDisk: no disk of that name.
	ErrUnknownDisk = errors.New("no such disk")
	// ErrUnknownSnapshot: the disk has no snapshot of that name.
	ErrUnknownSnapshot = errors.New("no such snapshot")
	// ErrInUse: clients are connected to the disk or snapshot, and must leave
	// first, or the disk has snapshots, which must be removed first.
	ErrInUse = errors.New("in use")
	// ErrBusy: the disks could not be marked in time. Try again.
	ErrBusy = errors.New("busy")
	// ErrTooMany: the registry has no room for more snapshots.
	ErrTooMany = errors.New("too many snapshots")
	// ErrInvalid: an argument that no pool would take; the text says why.
	ErrInvalid = errors.New("invalid")
	// ErrNoPool: the registry has no pool: creation did not end, or the
	// registry is lost.
	ErrNoPool = errors.New("no pool")
	// ErrElsewhere: another host serves the disk; ElsewhereError says which. What is to
	// be done with it is done there.
	ErrElsewhere = errors.New("disk is elsewhere")
	// ErrNoLease: the host's lease has ended, or it has none yet: what it would answer
	// may be old. It tries to get another one.
	ErrNoLease = errors.New("the host has no lease")
	// ErrClosed: the agent is shutting down.
	ErrClosed = errors.New("agent is shutting down")
)
