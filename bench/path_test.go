package bench_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"plinth/bench"
	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/nbd"
	"plinth/nbd/client"
)

// diskBytes is the size of a disk under a benchmark: its writes are overwritten
// in the buffer or in segments, whose space is there for many times as much.
const diskBytes = 256 << 20

// cold is a size of the RAM cache: none, so that reads go to segments; warm is one
// that has the whole disk.
const (
	cold = -1
	warm = 2 * diskBytes
)

// site is a pool of 8+2 in a temporary directory, with one disk.
func site(b *testing.B, ramBytes int64) (*standalone.Site, nbd.Device) {
	b.Helper()
	s, err := standalone.Open(b.Context(), standalone.Options{
		Dir:    b.TempDir(),
		Node:   shelf.Options{LogBytes: 1 << 30, SpindleBytes: 4 << 30},
		Host:   host.Options{RAMCacheBytes: ramBytes},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	if _, err := s.Host.CreateDisk(b.Context(), host.DiskSpec{Name: "vm1", Bytes: diskBytes}); err != nil {
		b.Fatal(err)
	}
	e, release, err := host.Exports{Host: s.Host}.Open(b.Context(), "vm1")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(release)
	return s, e.Device
}

// fill writes the whole disk, half of it compressible, and destages it.
func fill(b *testing.B, s *standalone.Site, d bench.Target) {
	b.Helper()
	_, err := bench.Run(b.Context(), bench.Config{Workload: bench.Write, BlockBytes: 1 << 20, Depth: 4, Once: true, Compressible: 50}, d)
	if err == nil {
		err = s.Host.Quiesce(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkDestage writes a disk of new data at 1 MiB and destages it: bytes
// are the guest's, time ends when they are in segments.
func BenchmarkDestage(b *testing.B) {
	s, d := site(b, cold)
	b.SetBytes(diskBytes)
	for b.Loop() {
		fill(b, s, d)
	}
}

// BenchmarkRead reads at random places: from segments, through the map, and from
// the RAM cache; all of it has been read before.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name string
		ram  int64
	}{{"cold", cold}, {"warm", warm}} {
		s, d := site(b, c.ram)
		fill(b, s, d)
		for _, bytes := range []int64{4 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/bytes=%d", c.name, bytes), func(b *testing.B) {
				p := make([]byte, bytes)
				for off := int64(0); off < diskBytes; off += bytes {
					if err := d.ReadAt(b.Context(), p, off); err != nil {
						b.Fatal(err)
					}
				}
				rng := rand.New(rand.NewPCG(1, 2))
				b.SetBytes(bytes)
				b.ReportAllocs()
				for b.Loop() {
					off := rng.Int64N(diskBytes/bytes) * bytes
					if t, ok := d.(nbd.TryReader); ok && t.TryReadAt(p, off) {
						continue
					}
					if err := d.ReadAt(b.Context(), p, off); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkPath is the whole path: our client, NBD over a unix socket, disk, log
// or segments, in one process. Writes are destaged meanwhile.
func BenchmarkPath(b *testing.B) {
	s, d := site(b, cold)
	fill(b, s, d)
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	server := nbd.NewServer(host.Exports{Host: s.Host}, nbd.Options{Errno: host.Errno, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ctx, l) })
	defer func() { cancel(); server.Close(); serving.Wait() }()
	for _, c := range []struct {
		op           string
		bytes, depth int
	}{
		{"read", 4 << 10, 1}, {"read", 4 << 10, 32}, {"write", 4 << 10, 1}, {"write", 4 << 10, 32},
		{"read", 1 << 20, 4}, {"write", 1 << 20, 4},
	} {
		b.Run(fmt.Sprintf("%s/bytes=%d/depth=%d", c.op, c.bytes, c.depth), func(b *testing.B) {
			conn, err := client.Dial(b.Context(), "unix", socket, "vm1", client.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			operate(b, conn, c.op == "read", c.bytes, c.depth)
		})
		if err := s.Host.Quiesce(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// operate does b.N operations at random places with depth of them in flight.
func operate(b *testing.B, t bench.Target, read bool, bytes, depth int) {
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			p := make([]byte, bytes)
			noise := rand.NewChaCha8([32]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())})
			for left.Add(-1) >= 0 {
				off := rand.Int64N(diskBytes/int64(bytes)) * int64(bytes)
				var err error
				if read {
					err = t.ReadAt(b.Context(), p, off)
				} else {
					for i := 0; i < bytes; i += 4096 {
						noise.Read(p[i : i+2048]) // the rest is zeros and compresses away
					}
					err = t.WriteAt(b.Context(), p, off, false)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
