package spindle

import (
	"context"
	"math"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/vfsx"
)

const (
	// keepPercent of each spindle is for checkpoints and for reclaim: no host
	// can reserve it, any write may use it.
	keepPercent = 2
	// keepPerHost is the least that is kept on each spindle for each host: two
	// fragments of 1 MiB.
	keepPerHost = 2 * (1<<20 + blockBytes)
)

// Reserve implements datanode.FragmentNode. A name of a host may have 256
// bytes.
func (s *Set) Reserve(ctx context.Context, r *datanode.ReserveRequest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.Bytes < 0 || r.Host == "" || len(r.Host) > 256 {
		return datanode.Errorf(datanode.ErrInvalid, "reserve %d bytes for host %q", r.Bytes, r.Host)
	}
	s.spaceMu.Lock()
	defer s.spaceMu.Unlock()
	previous, known := s.reservations[r.Host]
	if r.Bytes == 0 {
		delete(s.reservations, r.Host)
		return nil
	}
	if !r.Force && r.Bytes > previous {
		hosts := len(s.reservations)
		if !known {
			hosts++
		}
		// A sum that forced figures took beyond all bounds is above what is free.
		if free := s.writable(hosts) - (s.reserved() - previous); r.Bytes > free {
			return datanode.Errorf(datanode.ErrNoSpace, "reserve %d bytes for host %s, %d are free", r.Bytes, r.Host, max(free, 0))
		}
	}
	s.reservations[r.Host] = r.Bytes
	return nil
}

// Space tells what is promised and what is left.
type Space struct {
	Reserved int64 // the sum of the hosts' reservations
	Free     int64 // what a host could still reserve
	Spare    int64 // what can be written beyond the reservations, kept bytes included
}

// Space returns how the spindles' bytes are promised.
func (s *Set) Space() Space {
	s.spaceMu.Lock()
	defer s.spaceMu.Unlock()
	reserved := s.reserved()
	return Space{
		Reserved: reserved,
		Free:     max(s.writable(max(len(s.reservations), 1))-reserved, 0),
		Spare:    max(s.writable(0)-reserved, 0),
	}
}

// reserved stops at half of what an int64 holds, far above any set.
func (s *Set) reserved() int64 {
	sum := int64(0)
	for _, n := range s.reservations {
		sum = min(sum+min(n, math.MaxInt64/2), math.MaxInt64/2)
	}
	return sum
}

// writable returns how many bytes of fragments can be promised to that many
// hosts; with 0 hosts, how many can be written if nothing is kept. Each stripe puts equal fragments on at least width different spindles,
// so of R bytes at most R/width go to any one: if the fullest spindle has
// those, all have, whichever layouts the hosts use. Every free block of a
// spindle can be used (see scatter), so nothing is lost to fragmentation.
func (s *Set) writable(hosts int) int64 {
	least, serving := int64(math.MaxInt64), 0
	for _, sp := range s.all() {
		free, ok := sp.space(hosts)
		if ok {
			serving++
			least = min(least, free)
		}
	}
	if serving == 0 || least <= 0 {
		return 0
	}
	return least * min(s.width.Load(), int64(serving))
}

func (sp *spindle) space(hosts int) (free int64, serving bool) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.unavailable() != nil {
		return 0, false
	}
	keep := int64(0)
	if hosts > 0 {
		keep = max(sp.capacityBlocks()*blockBytes*keepPercent/100, int64(hosts)*keepPerHost)
	}
	return min(sp.freeBlocks*blockBytes, sp.available.Load()) - keep, true
}

// measure asks the file systems what they have left: who shares one has an
// equal share of it. Blocks that are preallocated are not counted, which errs to
// the safe side by a slab.
func measure(spindles []*spindle) {
	on := map[vfs.DeviceID]int64{}
	for _, sp := range spindles {
		if sp.serving() == nil {
			on[sp.info.DeviceID()]++
		}
	}
	for _, sp := range spindles {
		if sp.serving() != nil {
			continue
		}
		n, err := vfsx.Available(sp.fs, sp.dir)
		if err != nil {
			sp.fault(err)
			continue
		}
		sp.available.Store(n / on[sp.info.DeviceID()])
	}
}
