package kv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx/crashfs"
)

// killing is a file system whose process dies just before a manifest is synced for the nth
// time, or a log.
type killing struct {
	*crashfs.Parking
	kind string // what the names of these files have
	left atomic.Int64
	dead chan *crashfs.FS // gets what is left
}

func (k *killing) file(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.Contains(name, k.kind) {
		return f, err
	}
	return &killingFile{f, k}, nil
}

func (k *killing) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := k.Parking.Create(name, c)
	return k.file(name, f, err)
}

func (k *killing) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := k.Parking.ReuseForWrite(from, to, c)
	return k.file(to, f, err)
}

type killingFile struct {
	vfs.File
	k *killing
}

func (f *killingFile) Sync() error { f.k.die(); return f.File.Sync() }

func (f *killingFile) SyncData() error { f.k.die(); return f.File.SyncData() }

func (k *killing) die() {
	if k.left.Add(-1) == 0 {
		k.dead <- k.FS.Kill()
	}
}

// compacted writes tables over each other, which a compaction makes one.
func compacted(s *Store) error {
	for round := range 3 {
		b := s.DB.NewBatch()
		for i := range 10 {
			if err := b.Set(fmt.Appendf(nil, "%d", i), fmt.Append(nil, round), nil); err != nil {
				return err
			}
		}
		if err := errors.Join(s.Commit(b), s.Sync(), s.DB.Flush()); err != nil {
			return err
		}
	}
	return s.DB.Compact(context.Background(), []byte("0"), []byte("a"), false)
}

// A process dies before a manifest or a log is synced. The next one reads what is not stable
// yet, and removes tables because of it; then power is lost: the store opens again, and has what
// the second process read.
func TestCrashKilledThenPowerLost(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	yes := func(string) bool { return true }
	opts := Options{Name: "test", Create: true}
	deaths := 0
	for _, kind := range []string{"MANIFEST", ".log"} {
		for n := int64(1); ; n++ {
			fs := crashfs.New()
			fs.Order("store")
			k := &killing{Parking: crashfs.Park(fs, yes, yes), kind: kind, dead: make(chan *crashfs.FS, 1)}
			s, err := OpenStore(k, "/store", opts)
			if err != nil {
				t.Fatal(err)
			}
			k.Parking.Opened()
			k.left.Store(n)
			done := make(chan error, 1)
			go func() { done <- compacted(s) }() // who is dead does not come back
			var left *crashfs.FS
			select {
			case left = <-k.dead:
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
			}
			if left == nil {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				break
			}
			deaths++
			if s, err = OpenStore(left, "/store", opts); err != nil {
				t.Fatalf("after the process died at sync %d of %s: %v", n, kind, err)
			}
			had, _ := s.View([]byte("5"), func([]byte) error { return nil })
			time.Sleep(20 * time.Millisecond) // Pebble removes what it thinks obsolete meanwhile
			for range 16 {
				after := left.Crash(rng, rng.IntN(101))
				s, err := OpenStore(after, "/store", opts)
				if err != nil {
					t.Fatalf("the process died at sync %d of %s, then power was lost: %v", n, kind, err)
				}
				if has, err := s.View([]byte("5"), func([]byte) error { return nil }); err != nil || had && !has {
					t.Fatalf("the process died at sync %d of %s, then power was lost: what was read is not there: %v", n, kind, err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if deaths < 6 {
		t.Errorf("%d deaths: the test shows nothing", deaths)
	}
}
