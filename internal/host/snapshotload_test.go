package host_test

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/nbd"
)

// TestSimSnapshotsUnderLoad has writers, snapshots, clones, removals, rollbacks,
// rounds, passes and full reclaims at once: whenever a snapshot is read it is what
// it was, a clone that nobody has written to too, and nothing leaks.
func TestSimSnapshotsUnderLoad(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := siteOptions(t)
	opts.Host.DestageInterval = 20 * time.Millisecond
	s := openSite(t, opts)
	l := &load{site: s, seen: make(map[id.Snapshot]uint64), clones: make(map[string]uint64), hash: maphash.MakeSeed()}
	s.write("a", noise(1, loadBytes))
	s.write("b", noise(2, loadBytes))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	var g sync.WaitGroup
	for n, f := range []func(*rand.Rand) error{l.writeSome, l.writeSome, l.snapshots, l.cloneSome, l.readSome, l.reclaimSome} {
		g.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			for ctx.Err() == nil {
				if err := f(rng); err != nil && !anyIs(err, []error{
					host.ErrUnknownDisk, host.ErrUnknownSnapshot, host.ErrExists, host.ErrInUse, host.ErrBusy, nbd.ErrUnknownExport, disk.ErrClosed,
				}) {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	check := func() {
		t.Helper()
		for _, d := range s.Host.Disks() {
			for _, i := range l.list(d.Name) {
				s.ok(l.readSnapshot(d.Name, i))
			}
		}
		for name := range l.clones {
			s.ok(l.readClone(name))
		}
	}
	check()
	s.restart()
	check()
	s.ok(s.Host.Quiesce(t.Context()))
	for range 3 {
		_, err := s.Host.Reclaim(t.Context(), host.ReclaimOptions{Full: true})
		s.ok(err)
	}
	check()
	r, err := s.Host.Verify(t.Context(), host.VerifyOptions{Strict: true})
	s.ok(err)
	for _, f := range r.Findings[:min(5, len(r.Findings))] {
		t.Errorf("verify: %+v", f)
	}
}

const (
	loadBytes     = 256 << 10
	loadSnapshots = 12 // of a disk
	loadClones    = 4
)

type load struct {
	*site
	hash maphash.Seed

	mu     sync.Mutex
	seen   map[id.Snapshot]uint64
	clones map[string]uint64
	next   int
}

func (l *load) list(disk string) []host.SnapshotInfo {
	infos, err := l.Host.Snapshots(disk)
	if err != nil {
		return nil
	}
	return infos
}

func (l *load) sum(export string) (uint64, error) {
	p := make([]byte, loadBytes)
	err := l.device(export, func(d nbd.Device) error { return d.ReadAt(context.WithoutCancel(l.Context()), p, 0) })
	return maphash.Bytes(l.hash, p), err
}

func (l *load) readSnapshot(disk string, i host.SnapshotInfo) error {
	sum, err := l.sum(disk + "@" + i.Name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, ok := l.seen[i.ID]; ok && was != sum {
		return fmt.Errorf("snapshot %s@%s (%d) has changed", disk, i.Name, i.ID)
	}
	l.seen[i.ID] = sum
	return nil
}

func (l *load) readClone(name string) error {
	sum, err := l.sum(name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, ok := l.clones[name]; ok && was != sum {
		return fmt.Errorf("clone %s has changed", name)
	}
	return nil
}

func (l *load) writeSome(rng *rand.Rand) error {
	return l.device([]string{"a", "b"}[rng.IntN(2)], func(d nbd.Device) error {
		for range 1 + rng.IntN(10) {
			n := 1 + rng.IntN(32<<10)
			off := int64(rng.IntN(loadBytes - n + 1))
			var err error
			switch rng.IntN(8) {
			case 0:
				err = d.Trim(l.Context(), off, int64(n), false)
			case 1:
				err = d.Flush(l.Context())
			default:
				err = d.WriteAt(l.Context(), noise(byte(rng.Uint32()), n), off, false)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *load) snapshots(rng *rand.Rand) error {
	time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	name := []string{"a", "b"}[rng.IntN(2)]
	all := l.list(name)
	if len(all) >= loadSnapshots || len(all) > 0 && rng.IntN(3) == 0 {
		return l.Host.RemoveSnapshot(l.Context(), name, all[rng.IntN(len(all))].Name, rng.IntN(2) == 0)
	}
	if len(all) > 0 && rng.IntN(4) == 0 {
		i := all[rng.IntN(len(all))]
		_, err := l.Host.Rollback(l.Context(), name, i.Name)
		return err
	}
	l.mu.Lock()
	l.next++
	spec := host.SnapshotSpec{Disks: []string{"a", "b"}, Name: fmt.Sprint("s", l.next)}
	l.mu.Unlock()
	if rng.IntN(2) == 0 {
		spec.Disks = []string{name}
	}
	_, err := l.Host.CreateSnapshots(l.Context(), spec)
	return err
}

func (l *load) cloneSome(rng *rand.Rand) error {
	time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
	l.mu.Lock()
	names := slices.Collect(maps.Keys(l.clones))
	l.next++
	name := fmt.Sprint("c", l.next)
	l.mu.Unlock()
	if len(names) >= loadClones {
		victim := names[rng.IntN(len(names))]
		l.mu.Lock()
		delete(l.clones, victim)
		l.mu.Unlock()
		err := l.Host.RemoveDiskWithSnapshots(l.Context(), victim)
		if errors.Is(err, host.ErrInUse) {
			return nil // it is read: it stays, and nobody looks at it any more
		}
		return err
	}
	parent := []string{"a", "b"}[rng.IntN(2)]
	all := l.list(parent)
	if len(all) == 0 {
		return nil
	}
	i := all[rng.IntN(len(all))]
	if _, err := l.Host.Clone(l.Context(), parent, i.Name, name); err != nil {
		return err
	}
	sum, err := l.sum(name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, ok := l.seen[i.ID]; ok && was != sum {
		return fmt.Errorf("clone %s of snapshot %s@%s is another", name, parent, i.Name)
	}
	l.clones[name] = sum
	return nil
}

func (l *load) readSome(rng *rand.Rand) error {
	name := []string{"a", "b"}[rng.IntN(2)]
	if all := l.list(name); len(all) > 0 {
		if err := l.readSnapshot(name, all[rng.IntN(len(all))]); err != nil {
			return err
		}
	}
	l.mu.Lock()
	names := slices.Collect(maps.Keys(l.clones))
	l.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	return l.readClone(names[rng.IntN(len(names))])
}

func (l *load) reclaimSome(rng *rand.Rand) error {
	time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
	switch rng.IntN(4) {
	case 0:
		return l.Host.Sweep(l.Context())
	case 1:
		return l.Host.Quiesce(l.Context())
	}
	ctx, cancel := context.WithTimeout(l.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := l.Host.Reclaim(ctx, host.ReclaimOptions{Full: true})
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}
