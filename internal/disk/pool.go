package disk

import (
	"context"
	"log/slog"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/longlock"
	"plinth/internal/object"
	"plinth/internal/ramcache"
	"plinth/internal/stripe"
)

// Pool is what the disks of one host session share. Its fields are set before
// the first Open and do not change.
type Pool struct {
	Node    datanode.Node
	Stripes *stripe.Store
	Objects *object.Store
	Sealer  *chunk.Sealer
	Opener  *chunk.Opener
	Hasher  *chunk.Hasher
	Space   *Space
	Logger  *slog.Logger
	// RAM is the host's cache of plaintext, and Flash that of sealed chunks; nil: none.
	RAM   *ramcache.Cache
	Flash Flash
	// Geometry is the stripes'.
	Geometry stripe.Geometry
	// LogBytes is the capacity of the data node's log; 0: large.
	LogBytes int64
	// Number returns a segment number that was never used.
	Number object.Number
	// MayReply is asked before each reply to a read or write (I6); its error is
	// the reply instead.
	MayReply func() error
	// Pace, if set, is called when a round begins, and what it returns between the
	// steps of the round: it may wait for CPU time.
	Pace func() func(context.Context) error

	round longlock.Mutex // one Destage at a time
}

// Flash keeps sealed chunks on the host. What it gives is verified, and given up by
// Discard where that fails. None of the calls waits for long; Put copies sealed.
type Flash interface {
	// Get appends the sealed chunk to dst, if it is there.
	Get(fp id.Fingerprint, dst []byte) (sealed []byte, ok bool)
	Put(fp id.Fingerprint, sealed []byte)
	Discard(fp id.Fingerprint)
}

// Peer gives sealed chunks that another host has in its flash: the one that had the disk
// before.
type Peer interface {
	// Get calls got, one by one, with those of the chunks that come, until it has all
	// answers or some ms are over. sealed is valid until got returns, which reports
	// whether it verified.
	Get(ctx context.Context, fps []id.Fingerprint, got func(i int, sealed []byte) bool)
}

// Config is a disk as the catalog has it.
type Config struct {
	ID    id.Disk
	Name  string // for messages
	Bytes int64  // size at creation; the log knows later ones
	Chunk chunk.Size
	Suite chunk.Suite
	// Stable makes every write wait for stable media.
	Stable bool
	// Epoch was claimed for this Open in the registry.
	Epoch  id.Epoch
	MACKey *chunk.Secret
	// AcceptLostLog opens the disk as its newest checkpoint has it where the log
	// is lost: what was acknowledged since and not in it is gone.
	AcceptLostLog bool
	// MayReply, if set, is asked in the place of the pool's.
	MayReply func() error
	// Resume is what the last owner knew of the log's end, if that was this process
	// and its clients go on: what it has acknowledged must be there.
	Resume *Tail
	// Under is what a clone reads where it was not written while the registry has
	// no checkpoint record of it, until Independent; else nil. Its disk stays open,
	// with its lists held.
	Under *Image
	// Peer is asked for what neither RAM nor Flash has; nil: none.
	Peer Peer
	// Map says where the map's disposable directory is.
	Map blockmap.Options
}
