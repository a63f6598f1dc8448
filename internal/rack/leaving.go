package rack

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// leavingTime is how long a count of what is left on draining nodes is good for those who
// only look.
const leavingTime = 5 * time.Second

// Leaving is what is left of the pool on a node that is being drained.
type Leaving = datanode.NodeLeaving

// leaving counts what is left on each node that is being drained. It walks all segments,
// unless it has done so within a time.
func (r *Rack) leaving(ctx context.Context, within time.Duration) (map[id.Node]Leaving, error) {
	r.drainMu.Lock()
	defer r.drainMu.Unlock()
	if r.drained != nil && time.Since(r.drainAt) < within {
		return r.drained, nil
	}
	c := r.now.Load()
	counts := make(map[id.Node]*Leaving)
	for _, m := range c.members {
		if m.is() == NodeDraining {
			counts[m.Number] = &Leaving{}
		}
	}
	for after := id.Segment(0); ; {
		reply, err := r.Usage(ctx, &datanode.UsageRequest{After: after})
		if err != nil {
			return r.drained, err
		}
		for i := range reply.Segments {
			u := &reply.Segments[i]
			after = u.Segment
			c.count(u, counts)
		}
		if !reply.More || len(reply.Segments) == 0 {
			break
		}
	}
	err := r.eachRow(ctx, logSetPrefix, func(key string, value []byte) error {
		row, err := ParseRow(value)
		if err != nil {
			return err
		}
		if _, err := strconv.ParseUint(strings.TrimPrefix(key, logSetPrefix), 16, 64); err != nil {
			return fmt.Errorf("log set %q of no disk", key)
		}
		for n, l := range counts {
			if row.Has(n) {
				l.Logs++
			}
		}
		return nil
	})
	if err != nil {
		return r.drained, err
	}
	r.drained, r.drainAt = make(map[id.Node]Leaving), time.Now()
	for n, l := range counts {
		r.drained[n] = *l
	}
	return r.drained, nil
}

// count adds a segment to what is left on the nodes where it lies.
func (c *current) count(u *datanode.SegmentUse, counts map[id.Node]*Leaving) {
	if !c.layouts.Has(u.Segment.Layout()) {
		return
	}
	list := c.layouts.Lists[u.Segment.Layout()]
	on := make(map[*Leaving]int)
	for _, s := range list {
		if m := c.of(s); m != nil && counts[m.Number] != nil {
			on[counts[m.Number]]++
		}
	}
	for l, n := range on {
		l.Segments++
		l.Bytes += u.StoredBytes * int64(n) / int64(len(list))
		for _, d := range u.Disks {
			if len(l.Disks) < missingMax && !slices.Contains(l.Disks, d.Disk) {
				l.Disks = append(l.Disks, d.Disk)
			}
		}
	}
}
