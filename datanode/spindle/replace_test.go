package spindle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// fresh makes a spindle as a node does that replaces one.
func (r *rig) fresh(n id.Spindle) func() (Options, error) {
	return func() (Options, error) {
		opts := r.opts
		opts.Identities = map[id.Spindle]uint64{n: NewIdentity()}
		return opts, CreateOne(r.fs, r.dirs[n], n, opts)
	}
}

// swap mounts another, empty drive in a spindle's place.
func (r *rig) swap(n id.Spindle) {
	r.Helper()
	r.ok(os.RemoveAll(r.dirs[n] + ".old"))
	r.ok(os.Rename(r.dirs[n], r.dirs[n]+".old"))
	r.ok(os.Mkdir(r.dirs[n], 0o700))
}

// TestReplace has another drive take the place of one at which a call hangs.
func TestReplace(t *testing.T) {
	var inject faults
	r := newRig(t, errorfs.Wrap(vfs.Default, &inject), t.TempDir(), 2, Options{SizeBytes: 1 << 20})
	data := r.noise(3)
	r.mustWrite(0, 1, 0, data)
	r.mustWrite(1, 1, 1, data)
	never := func() (Options, error) {
		t.Error("another drive is made")
		return r.opts, nil
	}
	if err := r.Replace(t.Context(), 0, never); !errors.Is(err, ErrServes) {
		t.Errorf("replace a drive that serves: %v", err)
	}
	hangs, goes := make(chan bool), make(chan bool)
	inject.set(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && strings.Contains(op.Path, "spindle-00/slab") {
			hangs <- true
			<-goes
		}
		return nil
	})
	var reads sync.WaitGroup
	reads.Go(func() { r.read(datanode.FragmentRange{Segment: 1, Length: 1}, false) })
	<-hangs
	inject.rule.Store(nil)
	r.swap(0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Replace(ctx, 0, never); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("replace a drive at which a call hangs: %v", err)
	}
	r.expectState(0, datanode.SpindleAbsent, "is gone")
	close(goes)
	reads.Wait()
	r.ok(r.Replace(t.Context(), 0, r.fresh(0)))
	r.expectState(0, datanode.SpindleOK, "")
	r.expectError(r.verify(0, 1, 0).Err, datanode.ErrNotFound)
	r.mustWrite(0, 2, 0, data)
	r.expect(0, 2, 0, data)
	r.expect(1, 1, 1, data)
	if s := r.Space(); s.Spare == 0 {
		t.Errorf("nothing is free: %+v", s)
	}
	links, err := filepath.Glob("/proc/self/fd/*")
	r.ok(err)
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, r.dirs[0]+".old") {
			t.Errorf("%s is still open", to)
		}
	}
	failed := errors.New("no room")
	r.swap(0)
	if err := r.Replace(t.Context(), 0, func() (Options, error) { return r.opts, failed }); !errors.Is(err, failed) {
		t.Errorf("a drive that cannot be made: %v", err)
	}
	r.expectState(0, datanode.SpindleAbsent, "is gone")
	r.ok(r.Replace(t.Context(), 0, r.fresh(0)))
	r.mustWrite(0, 3, 0, data)
	r.audit()
	r.reopen()
	r.expect(0, 3, 0, data)
	r.audit()
	r.ok(r.Close())
	r.expectError(r.Replace(t.Context(), 0, never), datanode.ErrClosed)
}

// TestReplaceUnderLoad replaces a drive again and again while all calls are made: they end
// well or with ErrSpindle, and nothing of theirs comes to lie on the next drive.
func TestReplaceUnderLoad(t *testing.T) {
	r := newRig(t, vfs.Default, t.TempDir(), 2, Options{SizeBytes: 8 << 20, SlabBytes: 256 << 10})
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	data := [2][]byte{r.noise(2), r.noise(2)}
	expected := func(err error) {
		if err != nil && !errors.Is(err, datanode.ErrSpindle) && !errors.Is(err, datanode.ErrNotFound) && !errors.Is(err, datanode.ErrNoSpace) {
			t.Error(err)
		}
	}
	for job := range id.Segment(4) {
		load.Go(func() {
			for n := job<<32 + 1; ctx.Err() == nil; n++ {
				q := &datanode.WriteFragmentsRequest{Header: segmentHeader(n)}
				for sp := range id.Spindle(2) {
					q.Fragments = append(q.Fragments, datanode.Fragment{Spindle: sp, Index: uint8(sp), Data: data[sp]})
				}
				reply, err := r.WriteFragments(t.Context(), q)
				if expected(err); err != nil {
					return
				}
				for _, err := range reply.Errors {
					if err != nil {
						expected(err)
					}
				}
				got, err := r.ReadFragments(t.Context(), &datanode.ReadFragmentsRequest{
					Ranges: []datanode.FragmentRange{{Segment: n, Length: 512}, {Spindle: 1, Segment: n, Index: 1, Length: 512}},
				})
				if expected(err); err == nil && got.Results[0].Err != nil {
					expected(got.Results[0].Err)
				}
				if err := r.PutMeta(0, "a", data[0]); err != nil {
					expected(err)
				}
				if n%8 == 7 {
					expected(r.Delete(t.Context(), n-1))
				}
				expected(r.Check(t.Context()))
				r.Status()
				r.Space()
			}
		})
	}
	for range 10 {
		time.Sleep(10 * time.Millisecond)
		r.swap(0)
		r.ok(r.Replace(t.Context(), 0, func() (Options, error) {
			names, err := os.ReadDir(r.dirs[0]) // of what was late
			r.ok(err)
			for _, n := range names {
				r.ok(os.RemoveAll(filepath.Join(r.dirs[0], n.Name())))
			}
			return r.fresh(0)()
		}))
	}
	stop()
	load.Wait()
	r.expectState(0, datanode.SpindleOK, "")
	r.expectState(1, datanode.SpindleOK, "")
	r.audit()
	r.reopen()
	r.audit()
}
