package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/nbd"
)

// TestLostSnapshot loses the log with a snapshot's mark: the snapshot is named as
// lost, gives no data, and can be removed. One that is in a checkpoint stays, and
// so does a clone of it.
func TestLostSnapshot(t *testing.T) {
	s := openSite(t, siteOptions(t))
	ctx := t.Context()
	one := noise(1, 256<<10)
	s.write("vm", one)
	s.snap("vm", "kept")
	s.ok(s.Host.Quiesce(ctx))
	s.clone("vm", "kept", "new")
	s.put("vm", 0, noise(2, 256<<10))
	s.snap("vm", "gone")
	s.put("new", 0, noise(3, 4096))
	s.ok(s.Close())
	s.ok(os.RemoveAll(filepath.Join(s.opts.Dir, "datanode", "log")))
	accept := s.opts
	accept.Node.AcceptLostLog = true
	var err error
	s.Site, err = standalone.Recover(context.WithoutCancel(ctx), accept)
	s.ok(err)
	check := func(want int) {
		t.Helper()
		infos, err := s.Host.Snapshots("vm")
		s.ok(err)
		if len(infos) != want || infos[0].State != "ok" || want == 2 && infos[1].State != "lost" {
			t.Errorf("snapshots: %+v", infos)
		}
		for _, name := range []string{"vm", "vm@kept", "new"} {
			s.has(name, one)
		}
	}
	check(2)
	lost := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s of a lost snapshot: %v", what, err)
		}
	}
	lost("export", s.device("vm@gone", func(nbd.Device) error { return nil }))
	lost("pair", s.device("vm@gone,since=kept", func(nbd.Device) error { return nil }))
	_, err = s.Host.Clone(ctx, "vm", "gone", "other")
	lost("clone", err)
	_, err = s.Host.Rollback(ctx, "vm", "gone")
	lost("rollback", err)
	_, err = s.Host.Diff(ctx, "vm", "kept", "gone", 0, 0)
	lost("diff", err)
	s.restart()
	check(2)
	s.sweep()
	s.ok(s.Host.RemoveSnapshot(ctx, "vm", "gone", false))
	check(1)
	s.snap("vm", "gone")
	s.has("vm@gone", one)
	s.verified()
}

// TestConcurrentChanges has many changes of snapshots and clones at once, under
// passes: each ends as it says, and all that is left can be read.
func TestConcurrentChanges(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one := noise(1, 128<<10)
	for _, d := range []string{"a", "b"} {
		s.write(d, one)
	}
	s.snap("a", "fixed")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	expected := []error{host.ErrUnknownDisk, host.ErrUnknownSnapshot, host.ErrExists, host.ErrInUse, host.ErrBusy, disk.ErrClosed, nbd.ErrUnknownExport}
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for range 25 {
				if err := s.change(rng, one); err != nil && !anyIs(err, expected) {
					t.Error(err)
				}
			}
		})
	}
	g.Go(func() {
		for range 5 {
			if err := s.Host.Sweep(t.Context()); err != nil && !errors.Is(err, disk.ErrClosed) {
				t.Error(err)
			}
		}
	})
	g.Wait()
	check := func() {
		t.Helper()
		for _, d := range s.Host.Disks() {
			s.has(d.Name, one)
			for _, name := range s.names(d.Name) {
				s.has(d.Name+"@"+name, one)
			}
		}
	}
	check()
	s.sweep()
	s.restart()
	check()
	s.sweep()
	s.sweep()
	check()
	s.verified()
}

func anyIs(err error, of []error) bool {
	for _, e := range of {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// change makes one change of any kind. Every disk and snapshot has that content.
func (s *site) change(rng *rand.Rand, content []byte) error {
	ctx := s.Context()
	disk := []string{"a", "b", "c", "d"}[rng.IntN(4)]
	snapshot := fmt.Sprint("s", rng.IntN(3))
	switch rng.IntN(9) {
	case 0, 1:
		disks := []string{disk}
		if disk != "a" {
			disks = append(disks, "a")
		}
		_, err := s.Host.CreateSnapshots(ctx, host.SnapshotSpec{Disks: disks, Name: snapshot})
		return err
	case 2:
		return s.Host.RemoveSnapshot(ctx, disk, snapshot, rng.IntN(2) == 0)
	case 3:
		return s.Host.RenameSnapshot(ctx, disk, snapshot, fmt.Sprint("s", rng.IntN(3)))
	case 4:
		_, err := s.Host.Clone(ctx, "a", "fixed", disk)
		return err
	case 5:
		_, err := s.Host.Clone(ctx, disk, snapshot, []string{"c", "d"}[rng.IntN(2)])
		return err
	case 6:
		if disk == "a" {
			return nil
		}
		return s.Host.RemoveDiskWithSnapshots(ctx, disk)
	case 7:
		_, err := s.Host.Rollback(ctx, disk, snapshot)
		return err
	}
	return s.device(disk+"@"+snapshot, func(d nbd.Device) error {
		got := make([]byte, len(content))
		if err := d.ReadAt(ctx, got, 0); err != nil {
			return err
		}
		if !bytes.Equal(got, content) {
			return errors.New("a snapshot has another content")
		}
		return nil
	})
}
