package kv

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/datanode"
)

var magic = Magic([]byte("PLNTTEST"))

func TestEnvelope(t *testing.T) {
	for _, body := range [][]byte{nil, []byte("body")} {
		b := Seal(magic, 2, body)
		got, err := Open(magic, 2, b)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%q, %v", got, err)
		}
		if _, err := Open(magic, 1, b); !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
		if _, err := Open(Magic([]byte("PLNTELSE")), 2, b); !errors.Is(err, ErrForeign) {
			t.Fatal(err)
		}
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if _, err := Open(magic, 2, b); !errors.Is(err, ErrForeign) {
				t.Fatalf("bit %d flipped: %v", i, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
		for n := range len(b) {
			if _, err := Open(magic, 2, b[:n]); err == nil {
				t.Fatalf("opened %d of %d bytes", n, len(b))
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(Seal(magic, 1, []byte("body")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if body, err := Open(magic, 1, b); err == nil && !bytes.Equal(Seal(magic, 1, body), b) {
			t.Fatalf("%x is not how it is written", b)
		}
	})
}

func TestAbove(t *testing.T) {
	for _, c := range [][2]string{{"a", "b"}, {"a\xff", "b"}, {"a\xff\x01", "a\xff\x02"}, {"\xff", ""}} {
		if got := Above([]byte(c[0])); string(got) != c[1] {
			t.Errorf("above %q: %q, want %q", c[0], got, c[1])
		}
	}
}

// A device that fails a sync kills the store, not the process.
func TestFailedSyncKills(t *testing.T) {
	var failing atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileFlush:
			if failing.Load() {
				return errorfs.ErrInjected
			}
		}
		return nil
	})
	s, err := OpenStore(errorfs.Wrap(vfs.NewMem(), inject), "/store", Options{Name: "test", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		b := s.DB.NewBatch()
		b.Set([]byte("a"), []byte("1"), nil)
		if err := s.Commit(b); err != nil {
			return err
		}
		return s.Sync()
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	failing.Store(true)
	if err := put(); !errors.Is(err, datanode.ErrDead) {
		t.Fatal(err)
	}
	failing.Store(false)
	if err := put(); !errors.Is(err, datanode.ErrDead) {
		t.Fatal(err)
	}
	if err := s.Enter(); !errors.Is(err, datanode.ErrDead) {
		t.Fatal(err)
	}
	s.Close() // says that the log failed, or nothing; it returns
}
