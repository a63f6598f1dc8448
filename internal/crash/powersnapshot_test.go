package crash

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/internal/host"
	"plinth/internal/vfsx/crashfs"
)

// powerSnapshotsMax bounds the snapshots that a chain keeps.
const powerSnapshotsMax = 3

// keptSnapshot is a snapshot of a chain's disk. It shows a prefix of the log, and
// so obeys the same rules as the disk after a loss of power; once it was read it
// shows just that.
type keptSnapshot struct {
	name   string
	shows  *history
	doubt  bool // its creation was not answered: it may not be there
	leaves bool // its removal was not answered: it may be gone
	read   bool // since it was made
}

// copy returns the history so far, of which so many effects must show.
func (h *history) copy(least []int) *history {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &history{clock: h.clock}
	for i, s := range h.regions {
		out.regions = append(out.regions, &strand{
			base: slices.Clone(s.base), now: slices.Clone(s.now), effects: slices.Clone(s.effects), stable: least[i],
		})
	}
	return out
}

// takeSnapshot makes a snapshot beside the writers, or removes one. What is said
// after the crash nobody has heard.
func (c *chain) takeSnapshot(ctx context.Context, fs *crashfs.FS, h *host.Host) error {
	if len(c.snapshots) == powerSnapshotsMax {
		s := c.snapshots[0]
		s.leaves = true
		err := h.RemoveSnapshot(ctx, "vm", s.name, false)
		switch crashed := fs.Crashed(); {
		case crashed:
		case err != nil:
			return fmt.Errorf("remove snapshot %s: %w", s.name, err)
		default:
			c.snapshots = slices.Delete(c.snapshots, 0, 1)
		}
		return nil
	}
	c.snapshotNames++
	s := &keptSnapshot{name: fmt.Sprint("s", c.snapshotNames), doubt: true}
	before, stable := c.history.acked(), c.history.flush()
	_, err := h.CreateSnapshots(ctx, host.SnapshotSpec{Disks: []string{"vm"}, Name: s.name})
	switch crashed := fs.Crashed(); {
	case crashed:
	case errors.Is(err, host.ErrBusy):
		return nil
	case err != nil:
		return fmt.Errorf("make snapshot %s: %w", s.name, err)
	default:
		stable() // all before the mark is stable with it
		s.doubt = false
		c.tally.snapshots.Add(1)
	}
	s.shows = c.history.copy(before)
	c.snapshots = append(c.snapshots, s)
	return nil
}

// checkSnapshots reads the new snapshots and some of the others; all that there
// should be are there.
func (c *chain) checkSnapshots(h *host.Host) error {
	infos, err := h.Snapshots("vm")
	if err != nil {
		return err
	}
	for _, info := range infos {
		if !slices.ContainsFunc(c.snapshots, func(s *keptSnapshot) bool { return s.name == info.Name }) {
			return fmt.Errorf("snapshot %s was removed, or never made", info.Name)
		}
		if info.State != "ok" {
			return fmt.Errorf("snapshot %s is %s", info.Name, info.State)
		}
	}
	for _, s := range slices.Clone(c.snapshots) {
		if !slices.ContainsFunc(infos, func(i host.SnapshotInfo) bool { return i.Name == s.name }) {
			if !s.doubt && !s.leaves {
				return fmt.Errorf("snapshot %s is gone", s.name)
			}
			c.snapshots = slices.DeleteFunc(c.snapshots, func(x *keptSnapshot) bool { return x == s })
			continue
		}
		s.doubt, s.leaves = false, false
		if s.read && c.rng.IntN(3) > 0 { // most lives need not look again
			continue
		}
		err := c.checkSnapshot(h, s)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w:\n%s", err, stacks())
		}
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", s.name, err)
		}
		s.read = true
		c.tally.snapshotsRead.Add(1)
	}
	return nil
}

func (c *chain) checkSnapshot(h *host.Host, s *keptSnapshot) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeMax)
	defer cancel()
	defer c.untilCrash(cancel)()
	e, release, err := host.Exports{Host: h}.Open(ctx, "vm@"+s.name)
	if err != nil {
		return err
	}
	defer release()
	p := make([]byte, powerDiskBytes)
	if err := e.Device.ReadAt(ctx, p, 0); err != nil {
		return err
	}
	found, err := sectorsOf(p)
	if err != nil {
		return err
	}
	return s.shows.settle(found, false)
}

// untilCrash calls cancel when power is lost: what waits then may wait until a disk
// has noticed, which takes its time. stop ends the watch.
func (c *chain) untilCrash(cancel func()) (stop func()) {
	stopped, fs := make(chan struct{}), c.fs
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !fs.Crashed() {
			select {
			case <-stopped:
				return
			case <-tick.C:
			}
		}
		cancel()
	}()
	return func() { close(stopped) }
}

// besides makes or removes a snapshot at some moment of a life, or not. The result
// tells when that has ended, and how.
func (c *chain) besides(ctx context.Context, h *host.Host) <-chan error {
	ended, fs := make(chan error, 1), c.fs
	moment := time.After(time.Duration(c.rng.Int64N(int64(60 * time.Millisecond))))
	go func() {
		select {
		case <-moment:
			ended <- c.takeSnapshot(ctx, fs, h)
		case <-ctx.Done():
			ended <- nil
		}
	}()
	return ended
}
