package standalone

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth/datanode/shelf"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/nbd"
)

// small is a pool that a test can fill.
func small(t testing.TB, dir string) Options {
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return Options{
		Dir: dir,
		Node: shelf.Options{
			Spindles: 12, LogBytes: 64 << 20, SpindleBytes: 64 << 20,
		},
		Host:   host.Options{DestageInterval: 50 * time.Millisecond, IdleTime: 200 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
}

func open(t testing.TB, opts Options) *Site {
	t.Helper()
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shut(t testing.TB, s *Site) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// device is a disk of the site as NBD serves it.
func device(t testing.TB, s *Site, name string) nbd.Device {
	t.Helper()
	e, release, err := host.Exports{Host: s.Host}.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return e.Device
}

func create(t testing.TB, s *Site, name string, size int64) nbd.Device {
	t.Helper()
	if _, err := s.Host.CreateDisk(t.Context(), host.DiskSpec{Name: name, Bytes: size}); err != nil {
		t.Fatal(err)
	}
	return device(t, s, name)
}

// model is what a disk should hold.
type model struct {
	data []byte
	rng  *rand.Rand
}

func newModel(size int64, seed uint64) *model {
	return &model{make([]byte, size), rand.New(rand.NewPCG(seed, 9))}
}

// step does one random operation to both.
func (m *model) step(t testing.TB, d nbd.Device) {
	t.Helper()
	ctx := t.Context()
	off := m.rng.IntN(len(m.data))
	n := 1 + m.rng.IntN(min(len(m.data)-off, 64<<10))
	if m.rng.IntN(3) > 0 { // mostly aligned
		off, n = off&^4095, max(n&^4095, 4096)
		n = min(n, len(m.data)-off)
	}
	p := m.data[off : off+n]
	var err error
	switch k := m.rng.IntN(12); {
	case k < 6:
		m.fill(p)
		err = d.WriteAt(ctx, p, int64(off), k == 0)
	case k == 6:
		clear(p)
		err = d.Zero(ctx, int64(off), int64(n), true, false)
	case k == 7:
		first, end := (off+4095)&^4095, (off+n)&^4095
		if first < end {
			clear(m.data[first:end])
		}
		err = d.Trim(ctx, int64(off), int64(n), false)
	case k == 8:
		err = d.Flush(ctx)
	default:
		got := make([]byte, n)
		if err = d.ReadAt(ctx, got, int64(off)); err == nil && !bytes.Equal(got, p) {
			t.Fatalf("read of %d bytes at %d differs from the model", n, off)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fill makes chunks that are new, repeated, compressible or zero.
func (m *model) fill(p []byte) {
	switch m.rng.IntN(4) {
	case 0:
		for i := range p {
			p[i] = byte(m.rng.Uint32())
		}
	case 1:
		word := []byte{byte(m.rng.IntN(4)), 'x'}
		copy(p, bytes.Repeat(word, len(p)/2+1))
	case 2:
		clear(p)
	default:
		tag := m.rng.Uint32()
		for i := range p {
			p[i] = byte(tag >> (i % 4 * 8) * uint32(i/512))
		}
	}
}

func (m *model) check(t testing.TB, d nbd.Device) {
	t.Helper()
	got := make([]byte, len(m.data))
	if err := d.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != m.data[i] {
			t.Fatalf("byte %d is %d, want %d", i, got[i], m.data[i])
		}
	}
}

func TestDiskAgainstModel(t *testing.T)    { diskAgainstModel(t, 4<<20, 3, 100) }
func TestSimDiskAgainstModel(t *testing.T) { diskAgainstModel(t, 32<<20, 12, 400) }

// diskAgainstModel runs random operations through restarts and the loss of the
// host's directory, and verifies everything at the end.
func diskAgainstModel(t *testing.T, size int64, rounds, steps int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := small(t, t.TempDir())
	s := open(t, opts)
	if isNew, err := s.Host.NeverHadDisk(t.Context()); !isNew || err != nil || s.NewRootKey == "" {
		t.Errorf("a new pool does not say that it is new: %v", err)
	}
	m := newModel(size, seed)
	d := create(t, s, "vm1", int64(len(m.data)))
	for round := range rounds {
		for range steps {
			m.step(t, d)
		}
		if round%2 == 1 {
			quiesce(t, s)
		}
		m.check(t, d)
		shut(t, s)
		if round%3 == 1 {
			if err := os.RemoveAll(filepath.Join(opts.Dir, "host")); err != nil {
				t.Fatal(err)
			}
		}
		s = open(t, opts)
		d = device(t, s, "vm1")
		m.check(t, d)
	}
	quiesce(t, s)
	if err := s.Host.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	verify(t, s)
	m.check(t, d)
	st := d.(interface{ Stats() disk.Stats }).Stats()
	t.Logf("%+v", st)
	shut(t, s)
}

func quiesce(t testing.TB, s *Site) {
	t.Helper()
	if err := s.Host.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// verify fails the test for each finding.
func verify(t testing.TB, s *Site) *host.VerifyReport {
	t.Helper()
	r, err := s.Host.Verify(context.WithoutCancel(t.Context()), host.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("verify: %s: %s: %s", f.Kind, f.Where, f.What)
	}
	return r
}
