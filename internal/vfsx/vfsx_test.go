package vfsx_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx"
)

const block = 4096

// stores are the two kinds of file systems: with descriptors and without.
func stores(t *testing.T) map[string]struct {
	fs  vfs.FS
	dir string
} {
	return map[string]struct {
		fs  vfs.FS
		dir string
	}{
		"files":  {vfs.Default, t.TempDir()},
		"memory": {vfs.NewMem(), ""},
	}
}

func TestHolesReadAsZerosAndTheRestStays(t *testing.T) {
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			f := create(t, s.fs, s.fs.PathJoin(s.dir, "f"))
			want := bytes.Repeat([]byte{0xA5}, 4*block)
			if _, err := f.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if err := vfsx.PunchHole(f, block, 2*block); err != nil {
				t.Fatal(err)
			}
			clear(want[block : 3*block])
			expect(t, f, want)
		})
	}
}

func TestAllocateExtendsAndKeepsContent(t *testing.T) {
	for name, s := range stores(t) {
		t.Run(name, func(t *testing.T) {
			f := create(t, s.fs, s.fs.PathJoin(s.dir, "f"))
			want := make([]byte, 200<<10)
			copy(want, "content")
			if _, err := f.WriteAt([]byte("content"), 0); err != nil {
				t.Fatal(err)
			}
			if err := vfsx.Allocate(f, 0, 3*block); err != nil {
				t.Fatal(err)
			}
			expect(t, f, want[:3*block])
			if err := vfsx.Extend(f, int64(len(want))); err != nil {
				t.Fatal(err)
			}
			if err := vfsx.Extend(f, block); err != nil {
				t.Fatal(err)
			}
			expect(t, f, want)
		})
	}
}

func TestSpaceIsTakenAndGivenBack(t *testing.T) {
	name := t.TempDir() + "/f"
	f := create(t, vfs.Default, name)
	if err := vfsx.Extend(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	expectBlocks(t, name, 0)
	if err := vfsx.Allocate(f, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	expectBlocks(t, name, 1<<20)
	if err := vfsx.PunchHole(f, 0, 1<<19); err != nil {
		t.Fatal(err)
	}
	expectBlocks(t, name, 1<<19)
}

// What is written past the cache is what readers of the file see, and what cannot
// be written so is left to the caller.
func TestDirectWrites(t *testing.T) {
	t.Run("by the kernel", func(t *testing.T) {
		aio := vfsx.NewAIO()
		testDirectWrites(t, aio)
		aio.Close()
		testDirectWrites(t, aio) // as usual
	})
	t.Run("as usual", func(t *testing.T) { testDirectWrites(t, nil) })
}

func testDirectWrites(t *testing.T, aio *vfsx.AIO) {
	f := create(t, vfs.Default, t.TempDir()+"/f")
	if err := vfsx.Allocate(f, 0, 8*block); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8*block)
	expect(t, f, want) // which caches it
	d := vfsx.OpenDirect(f, aio)
	if d == nil {
		t.Logf("no direct writes in %s", t.TempDir())
	}
	defer d.Close()
	p := vfsx.AlignedBytes(4 * block)
	for i := range p {
		p[i] = byte(i / 7)
	}
	ok, err := d.WriteAt([][]byte{p[:block], nil, p[block:]}, 2*block)
	if err != nil || ok != (d != nil) {
		t.Fatalf("direct write: %v, %v", ok, err)
	}
	if ok {
		copy(want[2*block:], p)
	}
	if err := aio.SyncData(f); err != nil {
		t.Error(err)
	}
	expect(t, f, want)
	for what, c := range map[string]struct {
		pieces [][]byte
		off    int64
	}{
		"place":  {[][]byte{p}, 512},
		"length": {[][]byte{p[:block], p[block : block+512]}, 0},
		"memory": {[][]byte{p[:block], p[block+1 : 2*block+1]}, 0},
	} {
		if ok, err := d.WriteAt(c.pieces, c.off); ok || err != nil {
			t.Errorf("%s that is not aligned: %v, %v", what, ok, err)
		}
	}
	expect(t, f, want)
	if d := vfsx.OpenDirect(create(t, vfs.NewMem(), "f"), aio); d != nil {
		t.Error("direct writes to a file without a descriptor")
	}
	if d := vfsx.OpenDirect(wrapped{f}, aio); d != nil {
		t.Error("direct writes around a wrapper")
	}
}

// wrapped is a file whose calls somebody wants to see.
type wrapped struct{ vfs.File }

func TestAvailable(t *testing.T) {
	memory := vfs.NewMem()
	if n, err := vfsx.Available(memory, "/"); err != nil || n != math.MaxInt64 {
		t.Errorf("memory: %d, %v", n, err)
	}
	if n, err := vfsx.Available(vfs.Default, t.TempDir()); err != nil || n <= 0 || n == math.MaxInt64 {
		t.Errorf("files: %d, %v", n, err)
	}
	if _, err := vfsx.Available(vfs.Default, t.TempDir()+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	create(t, vfs.Default, dir+"/a")
	create(t, vfs.Default, dir+"/b")
	a, b := stat(t, dir+"/a"), stat(t, dir+"/b")
	if !vfsx.SameFile(a, stat(t, dir+"/a")) || vfsx.SameFile(a, b) {
		t.Error("files are told apart by inode")
	}
}

func TestSyncDirNeedsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := vfsx.SyncDir(vfs.Default, dir); err != nil {
		t.Error(err)
	}
	if err := vfsx.SyncDir(vfs.Default, dir+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestIsNoSpace(t *testing.T) {
	if !vfsx.IsNoSpace(fmt.Errorf("write: %w", syscall.ENOSPC)) || vfsx.IsNoSpace(syscall.EIO) {
		t.Error("a full file system is told from a broken one")
	}
}

func create(t *testing.T, fs vfs.FS, name string) vfs.File {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func stat(t *testing.T, name string) vfs.FileInfo {
	t.Helper()
	info, err := vfs.Default.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func expect(t *testing.T, f vfs.File, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+1)
	n, _ := f.ReadAt(got, 0)
	if !bytes.Equal(got[:n], want) {
		t.Fatalf("file has %d bytes, want %d, or other content", n, len(want))
	}
}

func expectBlocks(t *testing.T, name string, want int64) {
	t.Helper()
	got := stat(t, name).Sys().(*syscall.Stat_t).Blocks * 512
	if got != want {
		t.Fatalf("file takes %d bytes, want %d", got, want)
	}
}
