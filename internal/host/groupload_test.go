package host

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"plinth/nbd"
)

// groupClient is at one host for each disk.
type groupClient struct {
	g       *groupRun
	rng     *rand.Rand
	device  [2]nbd.Device
	release [2]func()
}

// do makes a call to a disk until it succeeds at some host, or the run is over.
func (c *groupClient) do(disk int, call func(context.Context, nbd.Device) error) bool {
	for c.g.over.Err() == nil {
		if c.device[disk] == nil {
			h := c.g.host(c.rng.IntN(linearHosts))
			if e, release, err := (Exports{h}).Open(c.g.over, [2]string{"a", "b"}[disk]); err == nil {
				c.device[disk], c.release[disk] = e.Device, release
			}
		}
		if d := c.device[disk]; d != nil {
			ctx, cancel := context.WithTimeout(c.g.over, time.Minute)
			err := call(ctx, d)
			if cancel(); err == nil {
				return true
			}
			c.leave(disk)
		}
		time.Sleep(time.Duration(1+c.rng.IntN(20)) * time.Millisecond)
	}
	return false
}

func (c *groupClient) leave(disk int) {
	if c.device[disk] != nil {
		c.release[disk]()
		c.device[disk] = nil
	}
}

func (c *groupClient) read(disk, sector int) (value uint64, ok bool) {
	p := make([]byte, 512)
	ok = c.do(disk, func(ctx context.Context, d nbd.Device) error { return d.ReadAt(ctx, p, int64(sector)*512) })
	return binary.LittleEndian.Uint64(p), ok
}

func (c *groupClient) write(disk, sector int, value uint64) bool {
	p := binary.LittleEndian.AppendUint64(make([]byte, 0, 512), value)[:512]
	c.g.writes.Add(1)
	return c.do(disk, func(ctx context.Context, d nbd.Device) error { return d.WriteAt(ctx, p, int64(sector)*512, false) })
}

// rest is a pause between two operations, a long one where nothing is to be seen.
func (c *groupClient) rest() {
	for range 100 {
		time.Sleep(time.Duration(c.rng.IntN(8000)) * time.Microsecond)
		if c.g.busy.Load() || c.g.over.Err() != nil {
			return
		}
	}
}

// chain writes numbers to its sector of disk a and then of b.
func (g *groupRun) chain(sector int, rng *rand.Rand) {
	c := &groupClient{g: g, rng: rng}
	defer c.leave(0)
	defer c.leave(1)
	for n := uint64(1); ; n++ {
		for disk := range 2 {
			g.issued[sector][disk].Store(n)
			if !c.write(disk, sector, n) {
				return
			}
			g.acked[sector][disk].Store(n)
		}
		c.rest()
	}
}

// follow writes to one disk what it reads of a chain in the other.
func (g *groupRun) follow(from, chain int, rng *rand.Rand) {
	c := &groupClient{g: g, rng: rng}
	defer c.leave(0)
	defer c.leave(1)
	for {
		n, ok := c.read(from, chain)
		if !ok || !c.write(1-from, groupChains+chain, n) {
			return
		}
		c.rest()
	}
}
