package nbd

import (
	"context"
	"errors"

	"plinth/nbd/internal/wire"
)

// Errors that devices and Exports return and the errno table knows (errno.go).
var (
	// ErrNoSpace is returned by a Device that has no room for a write. The
	// client gets ENOSPC.
	ErrNoSpace = errors.New("nbd: no space left")
	// ErrReadOnly is returned by a Device that refuses to change. The client
	// gets EPERM.
	ErrReadOnly = errors.New("nbd: device is read-only")
	// ErrOutOfRange is returned by a Device for a range beyond its size. The
	// client gets ENOSPC for writes, EINVAL for the rest.
	ErrOutOfRange = errors.New("nbd: out of range")
	// ErrUnknownExport is returned by Exports for a name it does not have.
	ErrUnknownExport = errors.New("nbd: unknown export")
	// ErrShutdown is returned by a Device or Exports that is going away. The
	// client gets ESHUTDOWN and should disconnect.
	ErrShutdown = errors.New("nbd: shutting down")
)

// PayloadBytesMax is the longest read or write that a Device sees, in bytes.
// Trim and Zero may be as long as 4 GiB - 1.
const PayloadBytesMax = wire.PayloadBytesMax

// Device is what an export serves. All methods may be called concurrently,
// block until done, and take offsets and lengths in bytes, at any byte within
// [0, Size()); the server checks them first. p is owned by the caller and must
// not be kept after return. fua asks that what the call changed is on stable
// media when it returns. The context ends when the connection breaks or the
// server is closed; a method must then return soon, with any error.
type Device interface {
	// Size returns the size in bytes, which may only grow. It is read at the
	// handshake, and again when a client asks for more than there was then.
	Size() int64
	// ReadAt fills p wholly, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes all of p. A later ReadAt on any connection sees it.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// Trim hints that n bytes at off are no longer needed.
	Trim(ctx context.Context, off, n int64, fua bool) error
	// Zero makes n bytes at off read as zeros. mayTrim says that the space
	// may be given back (NO_HOLE was not set).
	Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error
	// Flush returns when everything that was completed before the call, on
	// any connection, is on stable media.
	Flush(ctx context.Context) error
}

// TryReader is an optional ability of a Device, probed once per connection:
// reads that need no waiting. The server calls it on the goroutine that reads
// requests, which saves two hand-overs; so it must return within
// microseconds.
type TryReader interface {
	// TryReadAt fills p wholly and reports true, or reports false; then the
	// server calls ReadAt. p may be partly written in either case.
	TryReadAt(p []byte, off int64) bool
}

// TryWriter is the same ability for writes without FUA.
type TryWriter interface {
	// TryWriteAt writes all of p and reports true, or leaves the device as it
	// is and reports false; then the server calls WriteAt.
	TryWriteAt(p []byte, off int64) bool
}

// Extenter is an optional ability of a Device: to tell what is allocated. A
// device without it is taken for wholly allocated.
type Extenter interface {
	// Extents calls each for consecutive extents from off on, until they cover
	// n bytes or each returns false. It may end early when that saves work, but
	// not before the first extent, and the last extent may reach beyond.
	Extents(ctx context.Context, off, n int64, each func(Extent) bool) error
}

// Extent is a run of bytes of one status.
type Extent struct {
	N    int64 // bytes, more than 0
	Hole bool  // takes no space
	Zero bool  // reads as zeros
}

// Changer is an optional ability of a Device: to tell what has changed since
// some earlier state of it (the metadata context qemu:dirty-bitmap:NAME).
type Changer interface {
	// Bitmap returns NAME, which stays: 1 to BitmapBytesMax bytes of UTF-8
	// without NUL. Empty: the device tells nothing.
	Bitmap() string
	// Changes calls each for consecutive runs of bytes from off on, dirty if
	// they may have changed, under the rules of Extenter.Extents.
	Changes(ctx context.Context, off, n int64, each func(n int64, dirty bool) bool) error
}

// BitmapBytesMax bounds the name of a Changer, in bytes.
const BitmapBytesMax = 200

// Prefetcher is an optional ability of a Device: to make later reads fast
// (CACHE).
type Prefetcher interface {
	// Prefetch hints that n bytes at off, perhaps more than memory holds, will
	// be read. It may do part of it, or nothing.
	Prefetch(ctx context.Context, off, n int64) error
}

// FastZeroer is an optional ability of a Device: to know what zeroing costs
// (FAST_ZERO).
type FastZeroer interface {
	// ZeroIsFast reports, at once, that a Zero would take less time than writing
	// zeros.
	ZeroIsFast(off, n int64, mayTrim bool) bool
}

// Numberer is an optional ability of a Device: to tell each change from a repetition of
// it by the request's cookie, for clients that give them so (client.Numbered).
type Numberer interface {
	// Numbered returns the device for one WriteAt, Trim or Zero.
	Numbered(cookie uint64) Device
}

// Export is a device with its name and properties.
type Export struct {
	// Name is the canonical name, which may differ from the one asked for
	// (the empty name asks for the default export). At most 4096 bytes.
	Name string
	// Description is shown to people. At most 4096 bytes; may be empty.
	Description string
	Device      Device
	// ReadOnly exports answer EPERM to everything that would change them.
	ReadOnly bool
	// MultiConn is the device's word that a Flush on one connection covers
	// writes completed on all (CAN_MULTI_CONN).
	MultiConn bool
	// Rotational tells clients that seeks are slow.
	Rotational bool
	// PreferredBlockSize is the alignment, in bytes, at which the device needs
	// no read-modify-write: a power of two in [512, 32 MiB]. Any other value,
	// zero too, is advertised as 4096.
	PreferredBlockSize uint32
}

// ExportInfo is what a client may learn of an export without opening it.
type ExportInfo struct {
	Name               string
	Description        string
	Size               int64 // bytes
	ReadOnly           bool
	MultiConn          bool
	Rotational         bool
	Cache              bool // the device is a Prefetcher
	FastZero           bool // the device is a FastZeroer
	PreferredBlockSize uint32
	// Bitmap is the device's as a Changer. Empty: none.
	Bitmap string
}

// Info returns e's description, so that what INFO and GO say is one thing.
func (e Export) Info() ExportInfo {
	_, cache := e.Device.(Prefetcher)
	_, fastZero := e.Device.(FastZeroer)
	bitmap := ""
	if c, ok := e.Device.(Changer); ok {
		bitmap = c.Bitmap()
	}
	return ExportInfo{
		Name:               e.Name,
		Description:        e.Description,
		Size:               e.Device.Size(),
		ReadOnly:           e.ReadOnly,
		MultiConn:          e.MultiConn,
		Rotational:         e.Rotational,
		Cache:              cache,
		FastZero:           fastZero && !e.ReadOnly,
		PreferredBlockSize: e.PreferredBlockSize,
		Bitmap:             bitmap,
	}
}

// Exports says what a server offers. Its methods may be called concurrently,
// with names of at most 4096 bytes of valid UTF-8 without NUL, as the client
// sent them. The context ends with the time for the handshake.
type Exports interface {
	// List returns the exports to show, of which Name and Description are
	// used.
	List(ctx context.Context) ([]ExportInfo, error)
	// Describe returns what Open's Export would say of itself, or
	// ErrUnknownExport.
	Describe(ctx context.Context, name string) (ExportInfo, error)
	// Open is called once per connection that is about to enter transmission.
	// release is called once, when that connection has ended and no call to
	// the device is under way. A name it does not have is ErrUnknownExport.
	Open(ctx context.Context, name string) (e Export, release func(), err error)
}
