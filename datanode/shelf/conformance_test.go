package shelf

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/datanodetest"
)

// small is a node that a test makes quickly.
func small(fs vfs.FS) Options {
	return Options{PoolID: [16]byte{7}, Spindles: 4, LogBytes: 12 << 20, SpindleBytes: 16 << 20, IndexCacheBytes: 1 << 20, FS: fs}
}

// opener returns what the suite opens nodes with, each in a directory of its
// own.
func opener(fs func() vfs.FS, wrap func(datanode.Node) datanode.Node) func(t *testing.T) (datanode.Node, func() datanode.Node) {
	return func(t *testing.T) (datanode.Node, func() datanode.Node) {
		opts := small(fs())
		dir := "/data"
		if opts.FS == vfs.Default {
			dir = t.TempDir()
		}
		s := fresh(t, dir, opts)
		reopen := func() datanode.Node {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			if s, err = Open(t.Context(), dir, opts); err != nil {
				t.Fatal(err)
			}
			return wrap(s)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return wrap(s), reopen
	}
}

// fresh creates and opens a node.
func fresh(t testing.TB, dir string, opts Options) *Shelf {
	t.Helper()
	if err := Create(dir, opts); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func plain(n datanode.Node) datanode.Node { return n }

// The race detector sees one run, which reaches all locks.
func TestConformance(t *testing.T) {
	const seed = 1
	t.Logf("delays of seed %d", seed)
	datanodetest.Run(t, opener(
		func() vfs.FS { return vfs.Default },
		func(n datanode.Node) datanode.Node { return datanodetest.Codec(n, seed) },
	))
}

func TestSimConformanceOnDisk(t *testing.T) {
	datanodetest.Run(t, opener(func() vfs.FS { return vfs.Default }, plain))
}
