package host

import "errors"

var (
	// ErrExists: a disk of that name is there.
	ErrExists = errors.New("name is taken")
	// ErrUnknownDisk: no disk of that name.
	ErrUnknownDisk = errors.New("no such disk")
	// ErrInUse: clients are connected to the disk. They must leave first.
	ErrInUse = errors.New("disk is in use")
	// ErrInvalid: an argument that no pool would take; the text says why.
	ErrInvalid = errors.New("invalid")
	// ErrNoPool: the registry has no pool: creation did not end, or the
	// registry is lost.
	ErrNoPool = errors.New("no pool")
	// ErrClosed: the agent is shutting down.
	ErrClosed = errors.New("agent is shutting down")
)
