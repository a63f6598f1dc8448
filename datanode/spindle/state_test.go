package spindle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// expectState fails the test unless a spindle is in that state, with a reason
// that names what is wanted, and serves or not accordingly.
func (r *rig) expectState(sp id.Spindle, want datanode.SpindleState, reason string) {
	r.Helper()
	got := r.Status()[sp]
	if got.State != want || !strings.Contains(got.Reason, reason) {
		r.Fatalf("spindle %d is %s: %q, want %s: %q", sp, got.State, got.Reason, want, reason)
	}
	if want != datanode.SpindleOK {
		r.expectError(r.write(sp, 999, 0, r.noise(1), false), datanode.ErrSpindle)
		r.expectError(r.verify(sp, 1, 0).Err, datanode.ErrSpindle)
		_, err := r.ListFragments(context.Background(), &datanode.ListFragmentsRequest{Spindle: sp})
		r.expectError(err, datanode.ErrSpindle)
		r.expectError(r.PutMeta(sp, "a", nil), datanode.ErrSpindle)
	}
}

func TestAbsentAndForeignSpindles(t *testing.T) {
	places(t, func(t *testing.T, fs vfs.FS, base string) {
		r := newRig(t, fs, base, 4, Options{SizeBytes: 1 << 20})
		data := r.noise(2)
		r.mustWrite(0, 1, 0, data)
		r.ok(r.Close())
		r.ok(fs.RemoveAll(r.dirs[1]))
		r.dirs[2], r.dirs[3] = r.dirs[3], r.dirs[2]
		r.open()
		r.expect(0, 1, 0, data)
		r.expectState(1, datanode.SpindleAbsent, "no superblock")
		r.expectState(2, datanode.SpindleAbsent, "is spindle 3")
		if _, err := fs.Stat(r.dirs[1]); !errors.Is(err, os.ErrNotExist) {
			t.Fatal("an absent spindle was made again")
		}
		r.ok(r.Delete(context.Background(), 1))
		r.ok(r.Close())
		r.opts.PoolID[0]++
		r.open()
		r.expectState(0, datanode.SpindleAbsent, "another pool")
	})
}

func TestDamagedAndNewerSuperblocks(t *testing.T) {
	r := memoryRig(t, 1)
	r.ok(r.Close())
	s := sampleSuper().encode()
	s[20]++
	path := r.fs.PathJoin(r.dirs[0], superName)
	r.ok(writeFile(r.fs, path, s))
	r.open()
	r.expectState(0, datanode.SpindleFailed, "checksum")
	r.ok(r.Close())
	r.ok(writeFile(r.fs, path, s[:20]))
	r.open()
	r.expectState(0, datanode.SpindleFailed, "superblock")
	r.ok(r.Close())
	s = sampleSuper().encode()
	le.PutUint16(s[8:], version+1)
	le.PutUint32(s[60:], checksum(s[:60]))
	r.ok(writeFile(r.fs, path, s))
	if _, err := Open(r.fs, r.dirs, r.opts); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
}

func TestNewerAndForeignSlabs(t *testing.T) {
	r := memoryRig(t, 1)
	r.mustWrite(0, 1, 0, r.noise(2))
	path := r.all()[0].slabs[0].path
	r.ok(r.Close())
	head := slabHeader{pool: somePool, slab: 5, tableBlocks: 1}
	f, err := r.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	r.ok(err)
	defer f.Close()
	f.WriteAt(head.encode(), 0)
	r.open()
	r.expectState(0, datanode.SpindleFailed, "it is slab 5")
	r.ok(r.Close())
	b := head.encode()
	le.PutUint16(b[8:], version+1)
	le.PutUint32(b[60:], checksum(b[:60]))
	f.WriteAt(b, 0)
	if _, err := Open(r.fs, r.dirs, r.opts); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
}

func TestRemovedDirectoryIsSeen(t *testing.T) {
	r := newRig(t, vfs.Default, t.TempDir(), 3, Options{SizeBytes: 1 << 20})
	for sp := range id.Spindle(3) {
		r.mustWrite(sp, 1, uint8(sp), r.noise(3))
	}
	r.ok(r.Check(context.Background()))
	r.expectState(0, datanode.SpindleOK, "")
	r.ok(os.RemoveAll(r.dirs[0]))
	r.ok(r.Check(context.Background()))
	r.expectState(0, datanode.SpindleAbsent, "is gone")
	// Without a check, no write is acknowledged that nobody will find.
	r.ok(os.RemoveAll(r.dirs[1]))
	r.expectError(r.write(1, 2, 0, r.noise(1), false), datanode.ErrSpindle)
	r.expectState(1, datanode.SpindleAbsent, "is gone")
	slabs, err := filepath.Glob(r.dirs[2] + "/slab-*")
	r.ok(err)
	r.ok(os.Remove(slabs[0]))
	r.ok(r.Check(context.Background()))
	r.expectState(2, datanode.SpindleFailed, "slab-000000 is gone")
}

// faults injects errors into a file system by rule.
type faults struct {
	rule atomic.Pointer[func(op errorfs.Op) error]
}

func (f *faults) MaybeError(op errorfs.Op) error {
	if rule := f.rule.Load(); rule != nil {
		return (*rule)(op)
	}
	return nil
}

func (f *faults) String() string { return "faults" }

func (f *faults) set(rule func(op errorfs.Op) error) { f.rule.Store(&rule) }

func TestFailedWritesAndSyncsFailTheSpindle(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData} {
		var inject faults
		r := newRig(t, errorfs.Wrap(vfs.NewMem(), &inject), "", 2, Options{SizeBytes: 1 << 20})
		data := r.noise(3)
		r.mustWrite(0, 1, 0, data)
		inject.set(func(op errorfs.Op) error {
			if op.Kind == kind && strings.Contains(op.Path, "spindle-00") {
				return syscall.EIO
			}
			return nil
		})
		r.expectError(r.write(0, 2, 0, r.noise(1), false), datanode.ErrSpindle)
		inject.rule.Store(nil)
		r.expectState(0, datanode.SpindleFailed, "input/output error")
		r.mustWrite(1, 3, 0, data)
		if s := r.Space(); s.Free < 0 || s.Spare < s.Free {
			t.Fatalf("%+v", s)
		}
		r.reopen()
		r.expect(0, 1, 0, data)
		r.expectError(r.verify(0, 2, 0).Err, datanode.ErrNotFound)
		r.audit()
	}
}

func TestFailedReadIsOneFragments(t *testing.T) {
	var inject faults
	r := newRig(t, errorfs.Wrap(vfs.NewMem(), &inject), "", 1, Options{SizeBytes: 1 << 20})
	data := r.noise(3)
	r.mustWrite(0, 1, 0, data)
	inject.set(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt {
			return syscall.EIO
		}
		return nil
	})
	r.expectError(r.verify(0, 1, 0).Err, datanode.ErrCorrupt)
	inject.rule.Store(nil)
	r.expect(0, 1, 0, data)
}

// A full file system fails the write and not the spindle, and what there is is
// used to the last block.
func TestFullFileSystem(t *testing.T) {
	var inject faults
	r := newRig(t, errorfs.Wrap(vfs.NewMem(), &inject), "", 1, Options{SizeBytes: 1 << 20, SlabBytes: 128 << 10})
	r.mustWrite(0, 1, 0, r.noise(2))
	inject.set(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate {
			return syscall.ENOSPC
		}
		return nil
	})
	left := int(slabGeometry(128<<10).data().n) - 3
	r.expectError(r.write(0, 2, 0, r.noise(left), false), datanode.ErrNoSpace)
	r.mustWrite(0, 2, 0, r.noise(left-1))
	r.expectError(r.write(0, 3, 0, r.noise(1), false), datanode.ErrNoSpace)
	inject.set(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt && op.Offset > 0 {
			return syscall.ENOSPC
		}
		return nil
	})
	r.expectError(r.write(0, 3, 0, r.noise(1), false), datanode.ErrNoSpace)
	inject.rule.Store(nil)
	r.mustWrite(0, 3, 0, r.noise(1))
	r.expectState(0, datanode.SpindleOK, "")
	r.audit()
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	opts := Options{PoolID: somePool, SizeBytes: 1 << 20}
	if err := Create(vfs.Default, []string{dir, dir}, opts); err == nil {
		t.Error("one directory for two spindles")
	}
	if err := Create(vfs.Default, nil, opts); err == nil {
		t.Error("no spindle")
	}
	if err := Create(vfs.Default, []string{dir}, opts); err != nil {
		t.Fatal(err)
	}
	if err := Create(vfs.Default, []string{dir}, opts); err == nil {
		t.Error("a spindle that is there")
	}
	opts.SizeBytes = SizeBytesMax
	if err := Create(vfs.Default, []string{dir + "/a", dir + "/b"}, opts); err == nil || !strings.Contains(err.Error(), "smaller") {
		t.Errorf("larger than the file system: %v", err)
	}
	for _, bad := range []Options{
		{SizeBytes: 1}, {SizeBytes: -1}, {SizeBytes: 1 << 20, SlabBytes: 2 << 20}, {SlabBytes: 1 << 20},
		{SlabBytes: 64<<20 + 1}, {Width: -1}, {Width: 33}, {SizeBytes: 1 << 60},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v", bad)
		}
	}
	for _, size := range []int64{0, 64 << 10, 1 << 20, 16 << 20, 100 << 20, 64 << 30, 1 << 42, SizeBytesMax} {
		o := Options{SizeBytes: size}
		if err := o.Validate(); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A fragment whose segment is deleted while it is written is not there, whenever the
// deletion comes, and after a restart neither.
func TestDeletedWhileWritten(t *testing.T) {
	for n, done := 0, false; !done; n++ {
		var inject faults
		r := newRig(t, errorfs.Wrap(vfs.NewMem(), &inject), "", 1, Options{SizeBytes: 1 << 20})
		r.mustWrite(0, 1, 0, r.noise(1)) // which makes the slab
		seen := 0
		inject.set(func(op errorfs.Op) error {
			if op.Kind != errorfs.OpFileWriteAt && op.Kind != errorfs.OpFileSyncData && op.Kind != errorfs.OpFileSync {
				return nil
			}
			if seen++; seen == n+1 {
				inject.rule.Store(nil)
				r.ok(r.Delete(t.Context(), 2))
			}
			return nil
		})
		err := r.write(0, 2, 0, r.noise(3), false)
		inject.rule.Store(nil)
		if done = seen <= n; done {
			if n < 4 || err != nil {
				t.Fatalf("a write has %d operations: %v", n, err)
			}
			break
		}
		if err == nil {
			t.Fatalf("the write stands, though its segment was deleted at operation %d", n)
		}
		r.expectError(err, datanode.ErrGone)
		for range 2 {
			r.expectError(r.verify(0, 2, 0).Err, datanode.ErrNotFound)
			r.audit()
			r.reopen()
		}
	}
}
