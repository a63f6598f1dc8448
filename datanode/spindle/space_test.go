package spindle

import (
	"context"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

func (r *rig) reserve(host string, bytes int64, force bool) error {
	return r.Reserve(context.Background(), &datanode.ReserveRequest{Host: host, Bytes: bytes, Force: force})
}

func TestReserve(t *testing.T) {
	r := newRig(t, vfs.NewMem(), "", 4, Options{SizeBytes: 16 << 20})
	expect := func(reserved int64) {
		t.Helper()
		if s := r.Space(); s.Reserved != reserved || s.Free < 0 || s.Spare < s.Free {
			t.Fatalf("%+v, want %d reserved", s, reserved)
		}
	}
	free := r.Space().Free
	r.ok(r.reserve("a", free, false))
	expect(free)
	r.expectError(r.reserve("a", free+1, false), datanode.ErrNoSpace)
	r.expectError(r.reserve("b", 1, false), datanode.ErrNoSpace)
	r.ok(r.reserve("b", 1<<62, true))
	r.ok(r.reserve("c", 1<<62, true))
	r.expectError(r.reserve("d", 1, false), datanode.ErrNoSpace)
	r.ok(r.reserve("b", 0, false))
	r.ok(r.reserve("c", 0, false))
	// To give back is never refused.
	r.ok(r.reserve("a", free-1, false))
	expect(free - 1)
	r.ok(r.reserve("a", 0, false))
	expect(0)
	for _, bad := range []datanode.ReserveRequest{{Host: "a", Bytes: -1}, {Bytes: 1}} {
		r.expectError(r.Reserve(context.Background(), &bad), datanode.ErrInvalid)
	}
}

// What was reserved can be written, whatever the sizes of fragments and however
// the spindles were filled before; and afterwards there is room for checkpoints.
func TestReservedBytesCanBeWritten(t *testing.T) {
	r := newRig(t, vfs.NewMem(), "", 3, Options{SizeBytes: 4 << 20, SlabBytes: 512 << 10})
	segment := id.Segment(0)
	stripe := func(blocks int) {
		t.Helper()
		segment++
		for sp := range id.Spindle(3) {
			r.mustWrite(sp, segment, uint8(sp), r.noise(blocks))
		}
	}
	// Holes of all sizes.
	for range 40 {
		stripe(1 + r.rng.IntN(10))
	}
	for s := id.Segment(1); s <= segment; s += 2 {
		r.ok(r.Delete(context.Background(), s))
	}
	for round := range 3 {
		left := r.Space().Free
		r.ok(r.reserve("a", left, false))
		for {
			blocks := 1 + r.rng.IntN(20<<round)
			need := int64(3 * AllocatedBytes(blocks*blockBytes))
			if need > left {
				break
			}
			stripe(blocks)
			left -= need
			r.ok(r.reserve("a", left, false))
		}
		if round < 2 {
			for s := id.Segment(round + 1); s <= segment; s += 3 {
				r.ok(r.Delete(context.Background(), s))
			}
		}
	}
	stripe(1 << 20 / blockBytes) // more than a slab holds
	r.audit()
	if len(r.all()[0].catalog.get(name{segment, 0}).parts) < 4 {
		t.Error("the last fragment lies in few pieces: the test fragments nothing")
	}
	r.reopen()
	r.audit()
}

// The file system gives a spindle its fragments and one slab at most; that is
// what du shows.
func TestDiskUsage(t *testing.T) {
	const slab = 1 << 20
	r := newRig(t, vfs.Default, t.TempDir(), 1, Options{SizeBytes: 16 << 20, SlabBytes: slab})
	check := func() {
		t.Helper()
		used := int64(0)
		names, err := r.fs.List(r.dirs[0])
		r.ok(err)
		for _, n := range names {
			info, err := r.fs.Stat(r.fs.PathJoin(r.dirs[0], n))
			r.ok(err)
			used += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		allocated := r.Status()[0].AllocatedBytes
		if used < allocated || used > allocated+slab+64<<10 {
			t.Fatalf("%d bytes used for %d allocated", used, allocated)
		}
	}
	for s := range id.Segment(100) {
		r.mustWrite(0, s+1, 0, r.noise(10+r.rng.IntN(40)))
		if s%3 == 2 {
			r.ok(r.Delete(context.Background(), s-1))
		}
		check()
	}
	for s := range id.Segment(100) {
		r.ok(r.Delete(context.Background(), s+1))
		check()
	}
	r.reopen()
	check()
	r.audit()
}

// More entries than a table's first block holds, before and after reopening.
func TestManySmallFragments(t *testing.T) {
	r := newRig(t, vfs.NewMem(), "", 1, Options{SizeBytes: 1 << 20, SlabBytes: 1 << 20})
	data := r.noise(1)
	n := id.Segment(0)
	for ; ; n++ {
		if err := r.write(0, n+1, 0, data, false); err != nil {
			r.expectError(err, datanode.ErrNoSpace)
			break
		}
	}
	if int64(n) != r.all()[0].capacityBlocks()/2 {
		t.Fatalf("%d fragments of 2 blocks in %d blocks", n, r.all()[0].capacityBlocks())
	}
	r.reopen()
	r.audit()
	for s := range n {
		r.expect(0, s+1, 0, data)
	}
}
