package blockmap

import (
	"context"
	"errors"
	"fmt"
	"io"

	"plinth/internal/id"
)

const (
	// LBAMax is above every LBA of a map: 2^52 chunks of 4 KiB are 2^64 bytes.
	LBAMax = 1 << 52
	// StateBytesMax bounds the owner's state: it is written with every batch.
	StateBytesMax = 4 << 10
	// ObjectBytesMax bounds an object's descriptor: a table of 16 MiB needs two
	// stripes, so even a long-winded descriptor has room.
	ObjectBytesMax = 64 << 10
	// UpdatesMax and TrimsMax bound a batch, so that it fits in a few memtables.
	UpdatesMax = 1 << 18
	TrimsMax   = 1 << 12
)

var (
	// ErrClosed is returned by every method after Close.
	ErrClosed = errors.New("map is closed")
	// ErrFailed is returned by every method once the map's local files are
	// broken. The caller closes it and attaches the newest checkpoint anew.
	ErrFailed = errors.New("map has failed")
	// ErrInvalid: an argument out of its stated bounds. A fault of the caller.
	ErrInvalid = errors.New("invalid use of a map")
	// ErrCorrupt: a manifest or a row fails its checks.
	ErrCorrupt = errors.New("map is corrupt")
	// ErrUnsupported: a manifest or a map of a newer version, or with a feature
	// that this code does not know.
	ErrUnsupported = errors.New("map of an unknown version or feature")
)

// Entry is what an LBA maps to: the fingerprint and the place of its sealed
// chunk. The zero Ref means that the LBA reads as zeros.
type Entry struct {
	Fingerprint id.Fingerprint
	Ref         id.Ref
}

// Zero reports whether the entry's LBA reads as zeros.
func (e *Entry) Zero() bool { return e.Ref == id.Ref{} }

// Update sets one LBA. An update to a zero entry unmaps it.
type Update struct {
	LBA id.LBA
	Entry
}

// Extent is the run of LBAs from First to End-1. It is not empty.
type Extent struct{ First, End id.LBA }

// Batch is one step of a map's history. Trims come before Updates, and of two
// updates to one LBA the later wins.
//
// Gen is not below the generation of any earlier batch, and above all of them
// if there are trims: a trim hides all that is older than its generation. A new
// map has generation 0. Small trims are better given as zero updates.
//
// Patches are alone in their batch, whose generation is the map's, and an entry
// has at most one of them.
type Batch struct {
	Gen     id.Gen
	Trims   []Extent
	Updates []Update
	Patches []Patch
	Mark    Mark
}

func (b *Batch) validate() error {
	if len(b.Updates) > UpdatesMax || len(b.Trims) > TrimsMax {
		return fmt.Errorf("%w: a batch of %d updates and %d trims", ErrInvalid, len(b.Updates), len(b.Trims))
	}
	for _, u := range b.Updates {
		if u.LBA >= LBAMax {
			return fmt.Errorf("%w: an update of LBA %d", ErrInvalid, u.LBA)
		}
	}
	for _, t := range b.Trims {
		if t.First >= t.End || t.End > LBAMax {
			return fmt.Errorf("%w: a trim from %d to %d", ErrInvalid, t.First, t.End)
		}
	}
	if err := b.Mark.validate(b); err != nil {
		return err
	}
	return b.validatePatches()
}

// Object describes a durable copy of a table to whoever implements Objects. It
// has at most ObjectBytesMax bytes and means nothing here.
type Object []byte

// Objects keeps immutable copies of tables.
type Objects interface {
	// Put stores the size bytes of r as a new object, durable at return. The
	// name is the table's, for people: it is not unique, and objects of one
	// name never replace each other. Calls may be concurrent.
	Put(ctx context.Context, name string, size int64, r io.Reader) (Object, error)
	// ReadAt fills p from byte off of the object, all of it or an error. It
	// verifies what it returns. Calls may be concurrent; p is the caller's.
	ReadAt(ctx context.Context, o Object, p []byte, off int64) error
}
