package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/keyring"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

const (
	poolDir      = "pool"
	spindles     = 3
	spindleBytes = 32 << 20
	logBytes     = 9 << 20
	// callTimeMax bounds an operation: a history that hangs has failed.
	callTimeMax = 30 * time.Second
)

var geometry = stripe.Geometry{K: 2, M: 1}

// errStopped says that an opening has met the crash and stopped for good.
var errStopped = errors.New("the opening has stopped")

// pool is data node and host of one life.
type pool struct {
	fs     *crashfs.FS
	node   *shelf.Shelf
	host   *host.Host
	other  *host.Host // nil: there is one host
	names  map[*host.Host]string
	faults *faults
	clock  *clock
	after  *crashfs.FS // what a crash left; nil: there was none
}

// plan says how a history's pools run.
type plan struct {
	id      keyring.PoolID
	key     string // file of the root key
	options host.Options
	two     bool // hosts
	log     slog.Handler
	clock   *clock
}

func newPlan(t testing.TB, r *rand.Rand, c *clock) *plan {
	p := &plan{clock: c, id: keyring.NewPoolID(), key: filepath.Join(t.TempDir(), "root.key"), log: slog.DiscardHandler}
	if testing.Verbose() && *verbose {
		p.log = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	p.options = host.Options{
		DestageInterval: time.Hour, IdleTime: time.Hour, CacheBytes: 4 << 20,
		CheckpointUpdates: int64(1 + r.IntN(300)),
	}
	p.options.RAMCacheBytes = host.RAMCacheBytesMin
	if p.options.CheckpointUpdates%2 == 0 {
		p.options.RAMCacheBytes = -1 // reads find out what is lost below it
	}
	if r.IntN(2) == 0 { // background work
		p.options.DestageInterval = time.Duration(1+r.IntN(10)) * time.Millisecond
		p.options.IdleTime = time.Duration(10+r.IntN(60)) * time.Millisecond
	}
	return p
}

// create makes a new pool on a file system.
func (p *plan) create(ctx context.Context, fs *crashfs.FS) error {
	root, err := keyring.CreateRootFile(p.key)
	if err != nil {
		return err
	}
	if err := fs.MkdirAll(poolDir, 0o700); err != nil {
		return err
	}
	o := p.node(fs)
	o.Spindles, o.LogBytes, o.SpindleBytes, o.Width = spindles, logBytes, spindleBytes, geometry.Width()
	if err := shelf.Create(poolDir, o); err != nil {
		return err
	}
	node, err := shelf.Open(ctx, poolDir, p.node(fs))
	if err != nil {
		return err
	}
	header, _ := keyring.CreatePool(root, p.id)
	return errors.Join(host.Format(ctx, node, header, geometry, spindles), node.Close())
}

func (p *plan) node(fs vfs.FS) shelf.Options {
	return shelf.Options{PoolID: p.id, IndexCacheBytes: 4 << 20, Logger: slog.New(p.log), FS: fs}
}

func ofIndex(path string) bool { return strings.Contains(path, "/index/") }

// open begins a life. rebuilt says that the index is lost.
func (p *plan) open(fs *crashfs.FS, rebuilt bool) (*pool, error) {
	type result struct {
		pool *pool
		err  error
	}
	park, done := crashfs.Park(fs, ofIndex, ofIndex), make(chan result, 1)
	go func() {
		pool, err := p.start(fs, park, rebuilt)
		park.Opened()
		done <- result{pool, err}
	}()
	limit, cancel := p.clock.within(context.Background(), callTimeMax)
	defer cancel()
	select {
	case r := <-done:
		return r.pool, r.err
	case <-park.Parked():
		return nil, errStopped
	case <-limit.Done():
		return nil, errors.New("the opening hangs")
	}
}

func (p *plan) start(fs *crashfs.FS, park vfs.FS, rebuilt bool) (*pool, error) {
	ctx := context.Background()
	open := shelf.Open
	if rebuilt {
		open = shelf.Recover
	}
	node, err := open(ctx, poolDir, p.node(park))
	if err != nil {
		return nil, fmt.Errorf("open the node: %w", err)
	}
	l := &pool{fs: fs, node: node, faults: &faults{Node: node}, clock: p.clock}
	if err := p.hosts(ctx, l); err != nil {
		return nil, errors.Join(fmt.Errorf("open the host: %w", err), node.Close())
	}
	node.SetLayoutVersion(l.host.LayoutVersion())
	return l, nil
}

// host opens a host on a pool's node.
func (p *plan) host(ctx context.Context, l *pool, dir string) (*host.Host, error) {
	root, err := keyring.LoadRootFile(p.key)
	if err != nil {
		return nil, err
	}
	o := p.options
	o.Sole, o.FS, o.Dir, o.MayReply, o.Logger = true, vfs.NewMem(), dir, l.node.Held, slog.New(p.log)
	return host.Open(ctx, l.faults, root, o)
}

// close ends a life. After a crash it does not matter what it says, but that it
// ends.
func (l *pool) close() error {
	done := make(chan error, 1)
	go func() {
		var err error
		if l.other != nil {
			err = l.other.Close()
		}
		done <- errors.Join(err, l.host.Close(), l.node.Close())
	}()
	limit, cancel := l.clock.within(context.Background(), callTimeMax)
	defer cancel()
	select {
	case err := <-done:
		return err
	case <-limit.Done():
		return errors.New("close hangs")
	}
}

// with opens an export for the time of a call.
func (l *pool) with(name string, do func(d nbd.Device) error) error {
	disk, _, _ := strings.Cut(name, "@")
	e, release, err := host.Exports{Host: l.at(disk)}.Open(context.Background(), name)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer release()
	return do(e.Device)
}

// compare reads chunks first to end-1 of an export, which holds what i says.
func (l *pool) compare(name string, i *image, first, end int64) error {
	return l.with(name, func(d nbd.Device) error {
		if size := d.Size(); size != i.chunks*chunkBytes {
			return fmt.Errorf("%s has %d bytes, want %d", name, size, i.chunks*chunkBytes)
		}
		end := min(end, i.chunks)
		if first >= end {
			return nil
		}
		p := make([]byte, (end-first)*chunkBytes)
		if err := d.ReadAt(context.Background(), p, first*chunkBytes); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		for lba := first; lba < end; lba++ {
			got := p[(lba-first)*chunkBytes:][:chunkBytes]
			if want := i.at[lba]; !bytes.Equal(got, want.bytes()) {
				c, err := parse(got)
				return errors.Join(fmt.Errorf("%s has %v at chunk %d, want %v", name, c, lba, want), err)
			}
		}
		return nil
	})
}

// whole compares all of an export.
func (l *pool) whole(name string, i *image) error {
	if err := l.compare(name, i, 0, nearChunks+4); err != nil {
		return err
	}
	if i.chunks <= nearChunks+4 {
		return nil
	}
	if err := l.compare(name, i, far-4, far+farChunks+4); err != nil {
		return err
	}
	return l.extents(name, i)
}

// extents sees that nothing but what i holds is said to be data.
func (l *pool) extents(name string, i *image) error {
	return l.with(name, func(d nbd.Device) error {
		e, ok := d.(nbd.Extenter)
		if !ok {
			return fmt.Errorf("%s tells no extents", name)
		}
		for at := int64(0); at < i.chunks*chunkBytes; {
			err := e.Extents(context.Background(), at, i.chunks*chunkBytes-at, func(x nbd.Extent) bool {
				for lba := at / chunkBytes; !x.Hole && lba*chunkBytes < at+x.N; lba++ {
					if !used(lba) {
						ok = false
					}
				}
				at += x.N
				return true
			})
			if err != nil || !ok {
				return fmt.Errorf("extents of %s: data where none was written, before %d: %w", name, at, err)
			}
		}
		return nil
	})
}
