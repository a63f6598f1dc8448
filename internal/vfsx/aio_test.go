package vfsx_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"plinth/internal/vfsx"
)

// More calls at a time than there are slots, some of them when they are closed: each writes
// what it was given, where it was to.
func TestAIOBesideEachOther(t *testing.T) {
	const writers, rounds = 40, 20
	f := create(t, vfs.Default, t.TempDir()+"/f")
	if err := vfsx.Allocate(f, 0, writers*rounds*block); err != nil {
		t.Fatal(err)
	}
	aio := vfsx.NewAIO()
	d := vfsx.OpenDirect(f, aio)
	defer d.Close()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			p := vfsx.AlignedBytes(block)
			for r := range rounds {
				n := w*rounds + r
				if w == 0 && r == rounds/2 {
					aio.Close()
				}
				copy(p, bytes.Repeat([]byte{byte(n), byte(n >> 8)}, block/2))
				ok, err := d.WriteAt([][]byte{p}, int64(n)*block)
				if !ok && d == nil { // there are none in this file system
					_, err = f.WriteAt(p, int64(n)*block)
				}
				if err != nil || ok != (d != nil) {
					t.Errorf("write %d: %v, %v", n, ok, err)
				}
				if err := aio.SyncData(f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	p := make([]byte, block)
	for n := range writers * rounds {
		if _, err := f.ReadAt(p, int64(n)*block); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{byte(n), byte(n >> 8)}, block/2)) {
			t.Fatalf("block %d has %x", n, p[:8])
		}
	}
}

// What the kernel refuses comes back as an error.
func TestAIOErrors(t *testing.T) {
	f := create(t, vfs.Default, t.TempDir()+"/f")
	aio := vfsx.NewAIO()
	defer aio.Close()
	d := vfsx.OpenDirect(f, aio)
	defer d.Close()
	if _, err := d.WriteAt([][]byte{vfsx.AlignedBytes(block)}, 1<<62); d != nil && !errors.Is(err, unix.EFBIG) {
		t.Errorf("a write beyond what a file may have: %v", err)
	}
	null, err := vfs.Default.OpenReadWrite("/dev/null", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := aio.SyncData(null); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a sync of what has none: %v", err)
	}
}
