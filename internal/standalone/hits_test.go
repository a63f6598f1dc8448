package standalone

import (
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"plinth/datanode/shelf"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
)

// TestCrashAfterDuplicates: a round that stores nothing, because the index has all of
// it, ends when it is stable there that this disk needs it, too. Then power is lost.
func TestCrashAfterDuplicates(t *testing.T) {
	fs := crashfs.New()
	fs.Order("index") // Pebble
	opts := Options{
		Dir: "pool", FS: fs, Keys: host.RootSource{File: filepath.Join(t.TempDir(), "key")}, Geometry: stripe.Geometry{K: 2, M: 1},
		Node:   shelf.Options{Spindles: 3, LogBytes: 16 << 20, SpindleBytes: 32 << 20, IndexCacheBytes: 1 << 20},
		Host:   host.Options{DestageInterval: time.Millisecond, IdleTime: time.Hour, RAMCacheBytes: -1},
		Logger: slog.New(slog.DiscardHandler),
	}
	s := open(t, opts)
	data := image(rand.Uint64(), 1<<20)
	write(t, create(t, s, "first", 8<<20), data, 0)
	quiesce(t, s)
	d := create(t, s, "second", 8<<20)
	write(t, d, data, 0)
	stats := func() disk.Stats { return d.(interface{ Stats() disk.Stats }).Stats() }
	await(t, "a round of the second disk", func() bool { return stats().Destages > 0 && stats().BufferedBytes == 0 })
	if x := stats(); x.DedupeMisses > 0 || x.DedupeHits != int64(len(data)/4096) {
		t.Fatalf("the second disk stored something: %+v", x)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	opts.FS = fs.Crash(rand.New(rand.NewPCG(1, 1)), 0)
	_ = s.Close() // it fails, as the file system has gone

	s = open(t, opts)
	defer shut(t, s)
	d = device(t, s, "second")
	same(t, d, data, 0)
	verify(t, s)
	if x := stats(); x.Destages > 0 || x.BufferedBytes > 0 {
		t.Errorf("the round was lost with the power: %+v", x)
	}
}
