package disk

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/object"
	"plinth/internal/ramcache"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
)

// house is a data node and what host sessions on it share: all that a disk
// needs, the real thing, in memory.
type house struct {
	testing.TB
	node datanode.Node // as disks see it
	*shelf.Shelf
	numbers atomic.Uint64
	maps    atomic.Uint64
	hasher  *chunk.Hasher
	mac     *chunk.Secret

	mu       sync.Mutex
	keys     map[id.Key]*chunk.Secret
	epochs   map[id.Disk]id.Epoch
	appended map[logPlace]id.Epoch // by whom each position was appended
}

// logPlace is a position of a stream of a disk.
type logPlace struct {
	disk   id.Disk
	stream datanode.Stream
	pos    id.Pos
}

// newHouse makes a data node; wrap, if set, is what disks reach it through.
func newHouse(t testing.TB, wrap func(datanode.Node) datanode.Node) *house {
	t.Helper()
	return newHouseOf(t, "/node", shelf.Options{FS: crashfs.New()}, wrap)
}

// newHouseOf is newHouse in a directory, with a log and spindles of these sizes.
func newHouseOf(t testing.TB, dir string, size shelf.Options, wrap func(datanode.Node) datanode.Node) *house {
	t.Helper()
	opts := shelf.Options{
		PoolID: [16]byte{7}, Spindles: 4, LogBytes: cmp.Or(size.LogBytes, 16<<20), SpindleBytes: cmp.Or(size.SpindleBytes, 32<<20),
		IndexCacheBytes: 1 << 20, FS: size.FS, Logger: slog.New(slog.DiscardHandler),
	}
	if err := shelf.Create(dir, opts); err != nil {
		t.Fatal(err)
	}
	s, err := shelf.Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &house{
		TB: t, Shelf: s, hasher: chunk.NewHasher(chunk.NewSecret()), mac: chunk.NewSecret(),
		keys: map[id.Key]*chunk.Secret{}, epochs: map[id.Disk]id.Epoch{}, appended: map[logPlace]id.Epoch{},
	}
	h.node = h.watched(s)
	if wrap != nil {
		h.node = wrap(h.node)
	}
	return h
}

func (h *house) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// fails fails the test unless err wraps all that is wanted.
func (h *house) fails(what string, err error, wanted ...error) {
	h.Helper()
	for _, w := range wanted {
		if !errors.Is(err, w) {
			h.Fatalf("%s: got %v, want %v", what, err, w)
		}
	}
}

// Key implements chunk.Keys.
func (h *house) Key(k id.Key) (*chunk.Secret, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.keys[k]; s != nil {
		return s, nil
	}
	return nil, chunk.ErrUnknownKey
}

// session is a host's: a pool with a data key of its own, every other one with a
// RAM cache, every fourth also with a flash cache that damages some chunks.
func (h *house) session() *Pool {
	h.Helper()
	h.mu.Lock()
	key, secret := id.Key(len(h.keys)+1), chunk.NewSecret()
	h.keys[key] = secret
	h.mu.Unlock()
	g := stripe.Geometry{K: 2, M: 1}
	layouts, err := stripe.MakeLayouts(g, []id.Spindle{0, 1, 2, 3}, 1)
	h.ok(err)
	stripes, err := stripe.NewStore(h.node, layouts, stripe.Options{})
	h.ok(err)
	sealer, err := chunk.NewSealer(key, secret, nil, chunk.SealerOptions{})
	h.ok(err)
	number := func(context.Context) (uint64, error) { return h.numbers.Add(1), nil }
	opener := chunk.NewOpener(h, h.hasher, chunk.OpenerOptions{})
	var ram *ramcache.Cache // without one, reads find out what is lost below it
	if key%2 == 0 {
		ram, err = ramcache.New(ramcache.BytesMin) // less than a disk has
		h.ok(err)
		h.Cleanup(func() { h.ok(ram.Close()) })
	}
	var cache Flash
	if key%4 == 0 {
		cache = &flash{chunks: map[id.Fingerprint][]byte{}, damage: sometimes}
	}
	logger := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return &Pool{
		Node: h.node, Stripes: stripes, Sealer: sealer, Opener: opener, Hasher: h.hasher, RAM: ram, Flash: cache, Logger: logger,
		Geometry: g, Number: number, MayReply: func() error { return nil },
		Objects: &object.Store{Index: h.node, Stripes: stripes, Sealer: sealer, Opener: opener, Geometry: g, Number: number},
		Space: NewSpace(h.node, SpaceOptions{
			Host: fmt.Sprint("session ", key), ChargedBytesMax: 64 << 20, K: g.K, M: g.M,
			Nudge: func() {}, Relieve: h.reclaim,
		}),
	}
}

// reclaim deletes what nobody needs.
func (h *house) reclaim(ctx context.Context) error {
	for {
		reply, err := h.node.Reclaim(ctx, &datanode.ReclaimRequest{})
		if err != nil || !reply.More {
			return err
		}
	}
}

const houseDiskBytes = 4 << 20

// open opens a disk under a new epoch.
func (h *house) open(p *Pool, n id.Disk) *Disk {
	h.Helper()
	d, err := h.tryOpen(p, n)
	h.ok(err)
	return d
}

func (h *house) tryOpen(p *Pool, n id.Disk) (*Disk, error) { return h.resume(p, n, nil) }

// resume opens a disk after an owner of this process.
func (h *house) resume(p *Pool, n id.Disk, tail *Tail) (*Disk, error) {
	h.mu.Lock()
	h.epochs[n]++
	epoch := h.epochs[n]
	h.mu.Unlock()
	d, err := Open(h.Context(), p, Config{
		ID: n, Name: fmt.Sprint("vm", n), Bytes: houseDiskBytes, Chunk: chunk.SizeDefault, Suite: chunk.AES256GCM,
		Epoch: epoch, MACKey: h.mac, Resume: tail,
		Map: blockmap.Options{FS: crashfs.New(), Dir: fmt.Sprint("/map-", h.maps.Add(1))},
	})
	if err == nil {
		h.Cleanup(func() { d.Close() })
	}
	return d, err
}

// round destages what a disk has acknowledged.
func (h *house) round(d *Disk) error {
	d.Rotate()
	for d.Frozen() {
		if err := d.pool.Destage(h.Context(), []*Disk{d}); err != nil {
			return err
		}
	}
	return d.Err()
}

// watched is the node that sees to it that no position is given twice.
func (h *house) watched(n datanode.Node) datanode.Node { return &watcher{n, h} }

type watcher struct {
	datanode.Node
	h *house
}

func (w *watcher) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	reply, err := w.Node.Append(ctx, r)
	if err != nil {
		return nil, err
	}
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	for _, rec := range r.Records {
		at := logPlace{r.Disk, r.Stream, rec.Pos}
		if by, ok := w.h.appended[at]; ok {
			w.h.Errorf("disk %d, stream %d: position %d was appended under epoch %d and again under %d", at.disk, at.stream, at.pos, by, r.Epoch)
		}
		w.h.appended[at] = r.Epoch
	}
	return reply, nil
}

// content is what a disk should hold.
type content struct {
	data []byte
	rng  *rand.Rand
}

func newContent(seed uint64) *content {
	return &content{make([]byte, houseDiskBytes), rand.New(rand.NewPCG(seed, 1))}
}

// write changes disk and content alike: a random run of bytes, most of them at
// chunk borders, sometimes zeros or trimmed.
func (c *content) write(ctx context.Context, d *Disk) error {
	off := c.rng.IntN(len(c.data))
	n := 1 + c.rng.IntN(min(len(c.data)-off, 40<<10))
	kind := c.rng.IntN(8)
	if kind > 2 {
		off, n = off&^4095, max(n&^4095, 4096)
	}
	p := c.data[off : off+n]
	switch kind {
	case 0:
		clear(p)
		return d.Zero(ctx, int64(off), int64(n), false)
	case 3:
		clear(p)
		return d.Trim(ctx, int64(off), int64(n), false)
	case 4: // a content that many chunks have
		for i := range p {
			p[i] = byte(i>>12%3 + 1)
		}
	default:
		random := make([]byte, 0, n+8)
		for len(random) < n {
			random = binary.LittleEndian.AppendUint64(random, c.rng.Uint64())
		}
		copy(p, random)
	}
	return d.WriteAt(ctx, p, int64(off), false)
}

func (h *house) fill(d *Disk, c *content, writes int) {
	h.Helper()
	for range writes {
		h.ok(c.write(h.Context(), d))
	}
}

// same reads the whole disk.
func (h *house) same(d *Disk, c *content) {
	h.Helper()
	got := make([]byte, len(c.data))
	h.ok(d.ReadAt(h.Context(), got, 0))
	if !bytes.Equal(got, c.data) {
		for i := range got {
			if got[i] != c.data[i] {
				h.Fatalf("disk %d: byte %d is %d, want %d", d.ID(), i, got[i], c.data[i])
			}
		}
	}
}
