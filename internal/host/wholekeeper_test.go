package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"plinth/internal/id"
	"plinth/internal/linear"
	"plinth/internal/rack/racktest"
	"plinth/nbd"
)

const (
	// wholeKept is how many snapshots there are at most.
	wholeKept = 6
	// wholeGrown is how many spindles come at most in a chapter, and growsOneIn of the pools
	// gets some: more lists of spindles cost all who look at them.
	wholeGrown = 3
	growsOneIn = 3
)

// wholeKeeper makes snapshots and clones, reads and removes them, and has hosts do what
// their operators ask for.
type wholeKeeper struct {
	*whole
	over  context.Context
	rng   *rand.Rand
	all   []*wholeSnapshot
	made  int // names
	grown int // spindles that came
	off   int // the spindle that is drained, from 1; 0: none
}

type wholeSnapshot struct {
	disk, name string
	content    []byte
}

func (s *wholeSnapshot) export() string { return s.disk + "@" + s.name }

// owner returns a host that has a disk, nil if none says so.
func (w *whole) owner(disk string) *Host {
	for _, h := range w.hosts {
		if h := h.host(); h != nil {
			if d, err := h.Disk(disk); err == nil && d.State != "elsewhere" {
				return h
			}
		}
	}
	return nil
}

func (k *wholeKeeper) run() {
	for k.over.Err() == nil && !k.Failed() {
		time.Sleep(time.Duration(k.rng.IntN(400)) * time.Millisecond)
		d := k.disks[k.rng.IntN(len(k.disks))]
		h := k.hosts[k.rng.IntN(wholeHosts)].host()
		if k.rng.IntN(4) > 0 {
			h = k.owner(d.name)
		}
		if h == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(k.over, 20*time.Second)
		k.step(ctx, h, d)
		cancel()
	}
}

// did counts something, and reports its success.
func (k *wholeKeeper) did(what string, err error) bool {
	if err != nil {
		what += " that failed"
	}
	k.count(what)
	return err == nil
}

func (k *wholeKeeper) step(ctx context.Context, h *Host, d *wholeDisk) {
	switch n := k.rng.IntN(15); {
	case n < 4 && len(k.all) < wholeKept:
		k.snapshot(ctx, h, d)
	case n < 7 && len(k.all) > 0:
		s := k.all[k.rng.IntN(len(k.all))]
		k.same("snapshots read", s.export(), s)
	case n < 8 && len(k.all) > 0:
		if s := k.all[0]; k.did("snapshots removed", h.RemoveSnapshot(ctx, s.disk, s.name, true)) {
			k.all = k.all[1:]
		}
	case n < 9 && len(k.all) > 0:
		k.clone(ctx, h, k.all[k.rng.IntN(len(k.all))])
	case n < 10:
		k.did("moves", h.MoveDisk(ctx, d.name, k.hosts[k.rng.IntN(wholeHosts)].name))
	case n < 11:
		_, err := h.Reclaim(ctx, ReclaimOptions{Full: k.rng.IntN(2) == 0})
		k.did("reclaims", err)
	case n < 12:
		k.did("sweeps", h.Sweep(ctx))
	case n < 13:
		k.resize(ctx, h, d)
	case n < 14 && k.seed%growsOneIn == 0:
		k.grow(ctx, h)
	default:
		k.drain(ctx, h)
	}
}

// snapshot makes one. It is a read of the whole disk between the call and the end of
// the first time that it is read.
func (k *wholeKeeper) snapshot(ctx context.Context, h *Host, d *wholeDisk) {
	k.made++
	s := &wholeSnapshot{disk: d.name, name: fmt.Sprint("s", k.made, "-", k.rng.IntN(1e6))}
	err := d.Read(0, wholeSectors, func(p []byte) error {
		if _, err := h.CreateSnapshots(ctx, SnapshotSpec{Disks: []string{s.disk}, Name: s.name}); err != nil {
			return err
		}
		for {
			content, err := k.read(s.export())
			if err == nil {
				s.content = content
				copy(p, content)
				return nil
			}
			if k.over.Err() != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	if torn := (*linear.TornError)(nil); errors.As(err, &torn) {
		k.Errorf("%s: %v", s.export(), err)
	}
	if k.did("snapshots", err) {
		k.all = append(k.all, s)
	}
}

func (k *wholeKeeper) resize(ctx context.Context, h *Host, d *wholeDisk) {
	info, err := h.Disk(d.name)
	if err == nil {
		_, err = h.ResizeDisk(ctx, d.name, info.Bytes+int64(1+k.rng.IntN(4))<<20)
	}
	k.did("disks grown", err)
}

// drain has what a spindle has moved away, or calls that off.
func (k *wholeKeeper) drain(ctx context.Context, h *Host) {
	if k.off > 0 {
		if k.did("drains called off", h.DrainSpindle(ctx, id.Spindle(k.off-1), false)) {
			k.off = 0
		}
		return
	}
	n := 1 + k.rng.IntN(wholeNodes*wholeSpindles)
	if k.did("drains", h.DrainSpindle(ctx, id.Spindle(n-1), true)) {
		k.off = n
	}
}

// grow has a node get a spindle, or what is there spread over those that came, or that called
// off.
func (k *wholeKeeper) grow(ctx context.Context, h *Host) {
	switch n := k.rng.IntN(8); {
	case n < 3 && k.grown < wholeGrown:
		if k.did("spindles added", h.AddSpindle(ctx, racktest.Name(k.rng.IntN(wholeNodes)))) {
			k.grown++
		}
	case n < 7:
		k.did("rebalances", h.Rebalance(ctx, true))
	default:
		k.did("rebalances called off", h.Rebalance(ctx, false))
	}
}

// clone makes one, reads and removes it.
func (k *wholeKeeper) clone(ctx context.Context, h *Host, s *wholeSnapshot) {
	k.made++
	name := fmt.Sprint("c", k.made)
	if _, err := h.Clone(ctx, s.disk, s.name, name); !k.did("clones", err) {
		return
	}
	k.same("clones read", name, s)
	k.did("clones removed", h.RemoveDisk(ctx, name))
}

// read reads an export wholly at any host that has it.
func (k *wholeKeeper) read(export string) ([]byte, error) {
	err := errors.New("no host was asked")
	for _, h := range k.hosts {
		p := make([]byte, wholeSectors*linear.SectorBytes)
		err = k.use(h.host(), export, func(d nbd.Device) error { return d.ReadAt(k.over, p, 0) })
		if err == nil {
			return p, nil
		}
	}
	return nil, err
}

// same wants an export to have what a snapshot had at first.
func (k *wholeKeeper) same(what, export string, s *wholeSnapshot) {
	if content, err := k.read(export); k.did(what, err) && !bytes.Equal(content, s.content) {
		k.Errorf("%s is not as %s was", export, s.export())
	}
}
