package disk

import "errors"

var (
	// ErrNoSpace: the pool cannot promise space for a write. Reads, trims and
	// removals go on; the write may be tried again after space was freed.
	ErrNoSpace = errors.New("no space left in the pool")
	// ErrOutOfRange: a request beyond the disk's end. A fault of the caller.
	ErrOutOfRange = errors.New("request is beyond the end of the disk")
	// ErrClosed: the disk is closed or closing.
	ErrClosed = errors.New("disk is closed")
	// ErrFailed: an earlier error made the disk unable to serve; it is wrapped.
	// The disk must be opened again.
	ErrFailed = errors.New("disk has failed")
	// ErrBusy: other work has held the disk for too long; nothing was done. It may
	// be tried again.
	ErrBusy = errors.New("disk is busy")
	// ErrNoSnapshot: the disk has no such snapshot, neither in its map nor in its
	// log. With one that the registry names, it was lost.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrCorrupt: stored data of this disk fails its checks and could not be
	// reconstructed. The text says which chunk, segment and spindle.
	ErrCorrupt = errors.New("disk data is corrupt")
)
