package kv

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A file system without room for a table fails an open that has something to
// replay; it does not hold it up for ever.
func TestOpenOnAFullDevice(t *testing.T) {
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.HasSuffix(op.Path, ".sst") {
			return syscall.ENOSPC
		}
		return nil
	}))
	opts := Options{Name: "test", Create: true}
	s, err := OpenStore(fs, "/store", opts)
	if err != nil {
		t.Fatal(err)
	}
	b := s.DB.NewBatch()
	if err := errors.Join(b.Set([]byte("a"), []byte("1"), nil), s.Commit(b), s.Sync(), s.Close()); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	done := make(chan error)
	go func() {
		_, err := OpenStore(fs, "/store", opts)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "full") {
			t.Errorf("open: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("open hangs")
	}
}
