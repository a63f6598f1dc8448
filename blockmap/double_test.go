package blockmap

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

var errInjected = errors.New("injected")

// store is Objects in memory, which can fail.
type store struct {
	mu        sync.Mutex
	next      uint64
	objects   map[uint64][]byte
	rand      *rand.Rand
	failPuts  int // one call in so many fails; 0: none
	failReads int
	reads     int
	readBytes int64
}

func newStore() *store { return &store{objects: map[uint64][]byte{}, rand: newRand(0)} }

// fail makes one in so many calls of Put and ReadAt fail, 0 for none.
func (s *store) fail(puts, reads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failPuts, s.failReads = puts, reads
}

func (s *store) Put(ctx context.Context, name string, size int64, r io.Reader) (Object, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failPuts > 0 && s.rand.IntN(s.failPuts) == 0 {
		return nil, errInjected
	}
	if int64(len(b)) != size {
		return nil, errors.New("another size than stated")
	}
	s.next++
	s.objects[s.next] = b
	return binary.BigEndian.AppendUint64(nil, s.next), ctx.Err()
}

func (s *store) ReadAt(ctx context.Context, o Object, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	s.readBytes += int64(len(p))
	if s.failReads > 0 && s.rand.IntN(s.failReads) == 0 {
		return errInjected
	}
	b, ok := s.objects[binary.BigEndian.Uint64(o)]
	if !ok {
		return errors.New("object is gone")
	}
	if off+int64(len(p)) > int64(len(b)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, b[off:])
	return ctx.Err()
}

// keep deletes all objects but those named.
func (s *store) keep(lists ...[]Object) {
	named := map[uint64]bool{}
	for _, l := range lists {
		for _, o := range l {
			named[binary.BigEndian.Uint64(o)] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.objects {
		if !named[n] {
			delete(s.objects, n)
		}
	}
}

// testOptions returns options for a map in memory.
func testOptions(t testing.TB, s *store) Options {
	return Options{
		FS: vfs.NewMem(), Dir: "map", Objects: s,
		Failed: func(err error) { t.Errorf("map failed: %v", err) },
		Logger: slog.New(slog.DiscardHandler),
	}
}

func mustCreate(t testing.TB, opts Options) *Map {
	t.Helper()
	m, err := Create(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, m) })
	return m
}

func mustAttach(t testing.TB, manifest []byte, opts Options) *Map {
	t.Helper()
	m, err := Attach(context.Background(), manifest, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, m) })
	return m
}

func mustClose(t testing.TB, m *Map) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func mustApply(t testing.TB, m *Map, b *Batch, state string) {
	t.Helper()
	if err := m.Apply(b, []byte(state)); err != nil {
		t.Fatal(err)
	}
}

func mustCheckpoint(t testing.TB, m *Map) *Checkpoint {
	t.Helper()
	c, err := m.Checkpoint(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// entryOf returns an entry that n names; never zero.
func entryOf(n uint64) Entry {
	var e Entry
	binary.LittleEndian.PutUint64(e.Fingerprint[:], n*0x9E3779B97F4A7C15+1)
	binary.LittleEndian.PutUint64(e.Fingerprint[8:], n*0xC2B2AE3D27D4EB4F+1)
	e.Ref = id.Ref{
		Segment:  id.MakeSegment(id.Layout(n%300), 1+n/1900),
		Slot:     id.Slot(n % 1900),
		Location: id.Location(n%1900<<18 | 260),
	}
	return e
}

func updates(first id.LBA, n int, seed uint64) []Update {
	out := make([]Update, n)
	for i := range out {
		out[i] = Update{first + id.LBA(i), entryOf(seed + uint64(i))}
	}
	return out
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
