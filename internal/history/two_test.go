package history

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/internal/keyring"
)

// hosts opens the host of a life, or the two. Leases of an earlier life of two have
// ended: they last longer than a history.
func (p *plan) hosts(ctx context.Context, l *pool) (err error) {
	if !p.two {
		l.host, err = p.host(ctx, l, "host")
		return err
	}
	all, err := l.node.RegistryList(ctx, &datanode.RegistryListRequest{Prefix: "host/"})
	if err != nil {
		return err
	}
	for _, e := range all.Entries {
		if err := l.node.RegistryRevoke(ctx, &datanode.RegistryRevokeRequest{Lease: e.Lease}); err != nil {
			return err
		}
	}
	l.names = make(map[*host.Host]string)
	if l.host, err = p.member(ctx, l, "a"); err != nil {
		return err
	}
	if l.other, err = p.member(ctx, l, "b"); err != nil {
		return errors.Join(err, l.host.Close())
	}
	return nil
}

// member opens one of two hosts.
func (p *plan) member(ctx context.Context, l *pool, name string) (*host.Host, error) {
	root, err := keyring.LoadRootFile(p.key)
	if err != nil {
		return nil, err
	}
	o := p.options
	// A host waits for room in the log that the other's disks hold, which nobody asks
	// that one for.
	o.DestageInterval = min(o.DestageInterval, time.Second)
	o.Name, o.LeaseTTL, o.FS, o.Dir = name, datanode.LeaseTTLMax, vfs.NewMem(), "host"
	o.MayReply, o.Logger = l.node.Held, slog.New(p.log).With("host", name)
	h, err := host.Open(ctx, l.faults, root, o)
	if err == nil {
		l.names[h] = name
	}
	return h, err
}

// at returns the host that serves a disk, any if none does.
func (l *pool) at(disk string) *host.Host {
	if l.other != nil {
		if d, err := l.other.Disk(disk); err == nil && d.State != "elsewhere" {
			return l.other
		}
	}
	return l.host
}

// swap has the other host do what is no disk's.
func (l *pool) swap() {
	if l.other != nil {
		l.host, l.other = l.other, l.host
	}
}

// move has a disk served by the other host.
func (w *world) move() op {
	disk := w.someDisk()
	from, to := w.life.at(disk), w.life.host
	if from == to {
		to = w.life.other
	}
	return op{
		name: fmt.Sprintf("move %s to %s", disk, w.life.names[to]), disk: disk, end: nearChunks,
		do: func(ctx context.Context) error {
			if err := from.MoveDisk(ctx, disk, w.life.names[to]); err != nil {
				return err
			}
			return w.arrive(ctx, disk, to)
		},
		done: func() { w.tally.Moves++ },
	}
}

// arrive waits until a host says that it serves a disk, which it is asked for again
// as soon as it knows it.
func (w *world) arrive(ctx context.Context, disk string, to *host.Host) error {
	for {
		d, err := to.Disk(disk)
		if err == nil && d.State == "ok" {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("disk %s is %s at host %s: %s", disk, d.State, w.life.names[to], d.Reason)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// leave has a host go, in good order or without knowing it: the other one takes its
// disks and works, and nothing that the first one does counts until it is back.
func (w *world) leave(ctx context.Context) error {
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	defer cancel()
	l := w.life
	gone, stays := l.host, l.other
	var disks []string
	for _, d := range gone.Disks() {
		if d.State == "ok" {
			disks = append(disks, d.Name)
		}
	}
	zombie := w.rng.IntN(2) == 0
	w.note("host %s goes with %v, not knowing it: %v", l.names[gone], disks, zombie)
	w.tally.Takeovers++
	if zombie {
		row, err := l.node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: "host/" + l.names[gone]})
		if err != nil {
			return err
		}
		if err := l.node.RegistryRevoke(ctx, &datanode.RegistryRevokeRequest{Lease: row.Lease}); err != nil {
			return err
		}
	} else if err := gone.Close(); err != nil {
		return err
	}
	for _, disk := range disks {
		if err := w.takes(ctx, disk, stays); err != nil {
			return err
		}
	}
	if zombie && len(disks) > 0 {
		e, release, err := host.Exports{Host: gone}.Open(ctx, disks[0])
		if err == nil {
			err = e.Device.WriteAt(ctx, make([]byte, chunkBytes), 0, true)
			release()
		}
		if err == nil {
			return fmt.Errorf("host %s acknowledges a write of disk %s, which was taken over", l.names[gone], disks[0])
		}
		w.note("  it got: %v", err)
	}
	l.host, l.other = stays, nil
	err := w.someBeside(ctx)
	if zombie {
		if e := gone.Close(); e != nil {
			w.note("  it closed with: %v", e)
		}
	}
	if err != nil {
		return err
	}
	if l.other, err = w.plan.member(ctx, l, l.names[gone]); err != nil {
		return fmt.Errorf("open host %s again: %w", l.names[gone], err)
	}
	return w.compare()
}

// takes has a host take a disk that nobody has.
func (w *world) takes(ctx context.Context, disk string, to *host.Host) error {
	for {
		err := to.MoveDisk(ctx, disk, w.life.names[to])
		if err == nil {
			return w.arrive(ctx, disk, to)
		}
		if !errors.Is(err, host.ErrUnknownDisk) || ctx.Err() != nil { // it has not heard of it yet
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// gather moves all disks to the host that reclaims, and has both do what is left to
// do.
func (w *world) gather(ctx context.Context) error {
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	defer cancel()
	l := w.life
	for _, h := range []*host.Host{l.host, l.other} { // one of them is the warden then
		if err := errors.Join(h.Quiesce(ctx), h.Sweep(ctx)); err != nil {
			return err
		}
	}
	st, err := l.host.Status(ctx)
	if err != nil {
		return err
	}
	for _, h := range st.Hosts {
		if h.Warden && h.Name != l.names[l.host] {
			l.swap()
		}
	}
	for disk := range w.disks {
		if from := l.at(disk); from != l.host {
			if err := from.MoveDisk(ctx, disk, l.names[l.host]); err != nil {
				return err
			}
			if err := w.arrive(ctx, disk, l.host); err != nil {
				return err
			}
		}
	}
	// Removed disks whose clones were elsewhere go when their host has heard of it.
	for {
		for _, h := range []*host.Host{l.host, l.other, l.host} {
			if err := h.Sweep(ctx); err != nil {
				return err
			}
		}
		r, err := l.node.RegistryList(ctx, &datanode.RegistryListRequest{Prefix: "disk/"})
		if err != nil || len(r.Entries) == len(w.disks) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d disks are in the registry, %d there are: %w", len(r.Entries), len(w.disks), context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// TestSimTwoHosts: histories of a pool that two hosts share, with moves, hosts that
// go, and all else.
func TestSimTwoHosts(t *testing.T) {
	c := startClock(t)
	sum := &tally{}
	for n := range *twoHosts {
		seed := *firstSeed + uint64(n)
		if *firstSeed == 0 {
			seed = 1 + rand.Uint64N(1<<40)
		}
		sum.add(historyOfTwo(t, c, seed))
	}
	t.Log(sum.String())
}

// TestSimTwoHostsFound goes through those again that have failed, as TestSimFound does.
func TestSimTwoHostsFound(t *testing.T) {
	// The log was full of what disks had that no host had for less than a TTL, ten
	// minutes here: writes to others waited for 30 s and failed.
	historyOfTwo(t, startClock(t), 843115339426)
}

func historyOfTwo(t *testing.T, c *clock, seed uint64) *tally {
	t.Helper()
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 2)), seed: seed, tally: &tally{}, clock: c, two: true}
	if err := w.run(); err != nil {
		t.Fatalf("\n%sseed %d: %v", w.tail(), seed, err)
	}
	return w.tally
}
