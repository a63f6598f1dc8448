package flashcache

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// loaders read regions' tables at once: enough for a drive to be busy, few
	// enough to leave the disks their cores.
	loaders = 4
	// tailBytes at the end of a region are read first: footer and table of a region
	// of 8 MiB with chunks of 2.4 KiB or more.
	tailBytes = 64 << 10
)

// regionState is a region as it is found.
type regionState struct {
	seq   uint64 // 0: nothing is in it
	queue queue
}

// load finds out what every region has, and puts that into the index.
func (c *Cache) load() error {
	regions := make([]regionState, c.super.regions())
	if !c.fresh {
		if err := c.loadTables(regions); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range regions {
		r := regions[i]
		if r.seq == 0 {
			c.free = append(c.free, i)
			continue
		}
		c.queues[r.queue] = append(c.queues[r.queue], i)
		c.seq = max(c.seq, r.seq)
	}
	for q := range c.queues {
		slices.SortFunc(c.queues[q], func(a, b int) int { return cmp.Compare(regions[a].seq, regions[b].seq) })
		c.counts.regions[q].Store(int64(len(c.queues[q])))
	}
	return nil
}

// loadTables reads the regions' ends. Where two have a chunk, the newer counts.
func (c *Cache) loadTables(regions []regionState) error {
	seqs := make([]atomic.Uint64, len(regions)) // of those whose chunks are in the index
	errs := make([]error, loaders)
	var next atomic.Int64
	var work sync.WaitGroup
	for n := range loaders {
		work.Go(func() {
			var s scratch
			for {
				i := int(next.Add(1)) - 1
				if i >= len(regions) || c.isClosing() {
					return
				}
				f, err := c.readTable(i, &s)
				if errors.Is(err, errDamaged) {
					continue // never finished, or of no use
				}
				if err != nil {
					errs[n] = err
					return
				}
				seqs[i].Store(f.seq)
				regions[i] = regionState{f.seq, f.queue}
				for _, r := range s.records {
					k := makeKey(&r.fp)
					c.index.restore(k, makeWord(r.at, r.units, 0, k.more), func(p place) bool {
						return seqs[c.super.region(p)].Load() > f.seq
					})
				}
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// readTable reads the records of a region to s. Error: errDamaged where it has no
// sound footer and table of this cache.
func (c *Cache) readTable(region int, s *scratch) (*footer, error) {
	g := c.super.geometry
	n := min(tailBytes, g.regionBytes)
	if err := c.readTail(region, n, s); err != nil {
		return nil, err
	}
	f, err := parseFooter(s.tail[n-footerBytes:], g)
	if err != nil {
		return nil, err
	}
	if f.incarnation != c.super.incarnation || int(f.region) != region {
		return nil, errDamaged
	}
	if want := footerBytes + f.records*entryBytes; want > n {
		n = want
		if err := c.readTail(region, n, s); err != nil {
			return nil, err
		}
	}
	table := s.tail[n-footerBytes-f.records*entryBytes : n-footerBytes]
	s.records, err = parseTable(s.records[:0], table, f, g)
	return f, err
}

// readTail reads the last n bytes of a region.
func (c *Cache) readTail(region, n int, s *scratch) error {
	s.tail = slices.Grow(s.tail[:0], n)[:n]
	_, err := c.dev.file.ReadAt(s.tail, c.super.offset(region+1)-int64(n))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (c *Cache) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}
