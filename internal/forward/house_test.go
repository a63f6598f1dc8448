package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/nbd"
	"plinth/nbd/memory"
)

const (
	diskBytes  = 1 << 20
	blockBytes = 4096
)

var quiet = slog.New(slog.DiscardHandler)

func newPool(t *testing.T) *keyring.Pool {
	t.Helper()
	root, err := keyring.CreateRootFile(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	_, pool := keyring.CreatePool(root, keyring.NewPoolID())
	return pool
}

func config(t *testing.T, pool *keyring.Pool, host string) *tls.Config {
	t.Helper()
	c, err := TLS(pool, host, Speaks)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shared is a disk that moves between hosts. It carries out changes late, whatever
// becomes of who asked for them, but none of a host that it has left: that is what
// the fenced log does.
type shared struct {
	*memory.Device
	slow bool

	mu    sync.RWMutex
	owner string
	life  int // counts moves
	// What was done for each slot of a session, and how many changes were.
	done    map[id.Tag]uint64
	applied int
	while   context.Context
	leave   context.CancelFunc
}

func newShared(owner string, slow bool) *shared {
	s := &shared{Device: memory.New(diskBytes), slow: slow, done: map[id.Tag]uint64{}}
	s.move(owner)
	return s
}

func (s *shared) move(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leave != nil {
		s.leave()
	}
	s.owner = owner
	s.life++
	s.while, s.leave = context.WithCancel(context.Background())
}

func (s *shared) at() (owner string, while context.Context) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.owner, s.while
}

// tenure is the disk as a host has it from when it comes until it leaves.
type tenure struct {
	*shared
	life int
}

// open returns the disk's tenure at a host.
func (s *shared) open(host string) (tenure, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.owner != host {
		return tenure{}, fmt.Errorf("%w: the disk is at %s, not at %s", nbd.ErrUnknownExport, s.owner, host)
	}
	return tenure{s, s.life}, nil
}

func (d tenure) do(f func() error) error {
	if d.slow {
		late := rand.N(2 * time.Millisecond)
		if rand.N(20) == 0 {
			late = rand.N(40 * time.Millisecond)
		}
		time.Sleep(late)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shared.life != d.life {
		return errGone
	}
	return f()
}

// What memory can do at once, a disk of this test must not.
func (d tenure) TryReadAt([]byte, int64) bool  { return false }
func (d tenure) TryWriteAt([]byte, int64) bool { return false }

func (d tenure) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.do(func() error { return d.Device.ReadAt(ctx, p, off) })
}

func (d tenure) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.do(func() error {
		d.applied++
		return d.Device.WriteAt(context.WithoutCancel(ctx), p, off, fua)
	})
}

// Once implements Once.
func (d tenure) Once(tag id.Tag) nbd.Device { return onceTenure{d, tag} }

// Carried implements Once.
func (d tenure) Carried(_ id.Epoch, pos id.Pos) (bool, error) { return pos == 1, nil }

type onceTenure struct {
	tenure
	tag id.Tag
}

func (d onceTenure) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	slot := id.Tag{Session: d.tag.Session, Number: d.tag.Number % id.TagSlots}
	return d.do(func() error {
		if d.done[slot] >= d.tag.Number {
			return nil
		}
		d.done[slot] = d.tag.Number
		d.applied++
		return d.Device.WriteAt(context.WithoutCancel(ctx), p, off, fua)
	})
}

// host serves the disk to peers while it is there.
type host struct {
	name string
	disk *shared
}

func (h host) Open(_ context.Context, name string) (nbd.Export, func(error) bool, func(), error) {
	if name != "vm" {
		return nbd.Export{}, nil, nil, nbd.ErrUnknownExport
	}
	d, err := h.disk.open(h.name)
	return nbd.Export{Name: name, Device: d}, isGone, func() {}, err
}

// errGone is what a disk answers at a host that it has left.
var errGone = errors.New("the disk has left")

func isGone(err error) bool { return errors.Is(err, errGone) }

// serve serves exports to peers until the test ends.
func serve(t *testing.T, exports Disks, c *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := nbd.NewServer(NewExports(exports), nbd.Options{TLS: c, TLSRequired: true, Logger: quiet})
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// relay passes connections on. Cut, it hangs up on clients at once, but brings the
// server what has come until then some time later.
type relay struct {
	address string
	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	silent  bool // nothing passes
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr().String(), conns: map[net.Conn]struct{}{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { r.pass(c, to) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut()
		running.Wait()
	})
	return r
}

func (r *relay) pass(c net.Conn, to string) {
	s, err := net.Dial("tcp", to)
	if err != nil {
		c.Close()
		return
	}
	r.mu.Lock()
	r.conns[c] = struct{}{}
	r.mu.Unlock()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(c, s)
		c.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		time.Sleep(rand.N(200 * time.Microsecond)) // so that a cut may fall here
		r.mu.Lock()
		_, cut := r.conns[c]
		cut, silent := !cut, r.silent
		r.mu.Unlock()
		if cut {
			time.Sleep(rand.N(60 * time.Millisecond))
		}
		if !silent {
			if _, werr := s.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	c.Close()
	s.Close()
	<-back
	r.mu.Lock()
	delete(r.conns, c)
	r.mu.Unlock()
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
		delete(r.conns, c)
	}
}

// anonymous is a pool's configuration without a certificate, or without checks.
func anonymous(t *testing.T, pool *keyring.Pool, trusting bool) *tls.Config {
	c := config(t, pool, "x")
	if trusting {
		c.InsecureSkipVerify = true
	} else {
		c.Certificates = nil
	}
	return c
}
