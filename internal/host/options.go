package host

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/ramcache"
	"plinth/internal/stripe"
)

// Options are an agent's tunables. The zero value is right: 0 means the default.
type Options struct {
	Logger *slog.Logger
	// FS and Dir are where the maps' disposable files lie. Default: the
	// operating system's; Dir has none.
	FS  vfs.FS
	Dir string
	// Name is the host's among those of the pool: as in its certificate. Default:
	// "local".
	Name string
	// Geometry is that of the stripes which the pool must have been made with.
	// Default: any.
	Geometry stripe.Geometry
	// Sole says that nobody reaches the data node but by this process, which holds
	// the lock of its directory, and that every other host that is sole has held it
	// too, for as long as it lived. Then that lock stands for the lease (I6), the
	// session does not end while the process stands still, and the session of a
	// sole host that died ends when the next one opens.
	Sole bool
	// Peer is where this process serves the host's disks to other hosts, HOST:PORT, by
	// Host.Here. Then clients follow a disk that moves (Host.Locate), and one that has
	// clients may. Default: nowhere.
	Peer string
	// LeaseTTL is that of the session of a host that is not sole: how long others
	// wait, about, to take the disks of a host that died. Default: 10 s.
	LeaseTTL time.Duration
	// MayReply is asked before each reply to a read or write, beside the lease (I6):
	// nil while the host may serve. Default: always.
	MayReply func() error
	// DestageInterval is how long a write waits at most, about, before it is
	// destaged. Default: 2 s.
	DestageInterval time.Duration
	// BufferBytesMax bounds what is acknowledged and not destaged, over all
	// disks. Default: 1 GiB or half the log, whichever is less.
	BufferBytesMax int64
	// CheckpointUpdates is the number of map updates after which a checkpoint
	// is made. Default: 1 M, where uploads cost about 8 % of random 4 KiB writes.
	CheckpointUpdates int64
	// IdleTime is how long a disk must have been quiet for its remaining
	// updates to be checkpointed and for a pass. Default: 10 s.
	IdleTime time.Duration
	// ScrubInterval is the time in which the checksums of all fragments are tested
	// once. Default: 14 days. Negative: never.
	ScrubInterval time.Duration
	// RebuildRate bounds, per second, the bytes of fragments that a rebuild reads from or
	// writes to one spindle: hosts that share one take their part each. Default: 100 MiB.
	// Negative: no bound.
	RebuildRate int64
	// AcceptLostLog opens disks whose log is lost as their newest checkpoint has
	// them.
	AcceptLostLog bool
	// Resume, if not nil, is what a Host that this process has closed knew of its
	// disks' logs, where their clients go on (Host.Tails): those disks are opened at
	// once, and no others.
	Resume map[id.Disk]*disk.Tail
	// CPU is how much of the machine the process may use. Default: all.
	CPU gate.CPU
	// CacheBytes is the maps' shared cache of blocks and entries. Default: 256 MiB.
	CacheBytes int64
	// FlashPath is the flash cache's file, on FS, or its raw device. Default: none.
	FlashPath string
	// FlashBytes is its size. Default: all of a raw device; a file needs one when
	// it is made.
	FlashBytes int64
	// DialFlash connects to a host of the pool with these keys that serves others at that
	// address, to read from its flash cache (package peerflash). Default: none, and no
	// other host is asked.
	DialFlash func(ctx context.Context, keys *keyring.Pool, address string) (net.Conn, error)
	// FlashAnswer is for how long a read waits for another host's flash before it goes to
	// the spindles. Default: 10 ms, about what they take.
	FlashAnswer time.Duration
	// Formers says which host had a disk before this one, as Host.Formers said of an
	// earlier session. Default: none but what is heard.
	Formers map[id.Disk]string
	// RAMCacheBytes is the cache of plaintext, shared by all disks. Default: an eighth
	// of the machine's or the control group's memory, whichever is less, at most
	// 8 GiB. Negative: none. RAMCacheBytesMin is the smallest.
	RAMCacheBytes int64

	clock func() time.Duration // of leases; other than BootTime in tests
}

// RAMCacheBytesMin is the smallest cache of plaintext.
const RAMCacheBytesMin = ramcache.BytesMin

const (
	hostNameDefault          = "local"
	leaseTTLDefault          = 10 * time.Second
	destageIntervalDefault   = 2 * time.Second
	bufferBytesMaxDefault    = 1 << 30
	checkpointUpdatesDefault = 1 << 20
	idleTimeDefault          = 10 * time.Second
	rebuildRateDefault       = 100 << 20
	scrubIntervalDefault     = 14 * 24 * time.Hour
	cacheBytesDefault        = 256 << 20

	ramCacheShare           = 8 // of memory: most of it is for the machines that the host runs
	ramCacheBytesDefaultMax = 8 << 30
)

func (o Options) withDefaults(logBytes int64) Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Name == "" {
		o.Name = hostNameDefault
	}
	if o.clock == nil {
		o.clock = BootTime
	}
	if o.LeaseTTL <= 0 {
		o.LeaseTTL = leaseTTLDefault
	}
	if o.Sole {
		o.LeaseTTL = datanode.LeaseTTLMax
		// Registry and host are stopped together, by whatever stops them.
		began := time.Now()
		o.clock = func() time.Duration { return time.Since(began) }
	}
	if o.MayReply == nil {
		o.MayReply = func() error { return nil }
	}
	if o.DestageInterval <= 0 {
		o.DestageInterval = destageIntervalDefault
	}
	if o.BufferBytesMax <= 0 {
		o.BufferBytesMax = bufferBytesMaxDefault
	}
	if half := logBytes / 2; half > 0 {
		o.BufferBytesMax = min(o.BufferBytesMax, half)
	}
	if o.CheckpointUpdates <= 0 {
		o.CheckpointUpdates = checkpointUpdatesDefault
	}
	if o.IdleTime <= 0 {
		o.IdleTime = idleTimeDefault
	}
	if o.ScrubInterval == 0 {
		o.ScrubInterval = scrubIntervalDefault
	}
	if o.RebuildRate == 0 {
		o.RebuildRate = rebuildRateDefault
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = cacheBytesDefault
	}
	if o.RAMCacheBytes == 0 {
		o.RAMCacheBytes = max(RAMCacheBytesMin, min(memoryBytes()/ramCacheShare, ramCacheBytesDefaultMax))
	}
	return o
}

// memoryBytes returns how much memory this process may use, as far as the kernel
// tells; 0 if it does not.
func memoryBytes() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	bytes := int64(info.Totalram) * int64(info.Unit)
	limit, err := os.ReadFile("/sys/fs/cgroup/memory.max") // "max", or there is none, at the top of the tree
	if err != nil {
		return bytes
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err == nil && n > 0 {
		bytes = min(bytes, n)
	}
	return bytes
}
