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
	"plinth/internal/logset"
)

// missingMax bounds the disks that a node's description names.
const missingMax = 32

// Returned implements datanode.Several.
func (r *Rack) Returned() time.Time {
	last := r.began.UnixNano()
	for _, m := range r.members() {
		last = max(last, m.heard.Load())
	}
	if last == r.began.UnixNano() {
		return time.Time{}
	}
	return time.Unix(0, last)
}

// Keeper implements datanode.Several.
func (r *Rack) Keeper(l id.Layout) id.Node {
	m, err := r.keeper(id.MakeSegment(l, 1))
	if err != nil { // as all that it is asked says
		return r.members()[0].Number
	}
	return m.Number
}

// Answers implements datanode.Several.
func (r *Rack) Answers(s id.Spindle) bool {
	m := r.of(s)
	return m != nil && m.silent.Load() == 0
}

// Nodes implements datanode.Several.
func (r *Rack) Nodes(ctx context.Context) ([]datanode.NodeInfo, error) {
	rows := make(map[id.Node]NodeRow)
	err := r.eachRow(ctx, nodePrefix, func(_ string, value []byte) error {
		row, err := ParseNode(value)
		rows[row.Number] = row
		return err
	})
	if err != nil {
		return nil, err
	}
	members := r.members()
	all := make([]datanode.NodeInfo, len(members))
	draining := false
	for i, m := range members {
		all[i] = m.info(rows[m.Number])
		all[i].Registry = r.opts.Registry == nil && i == 0
		draining = draining || m.is() == NodeDraining
	}
	if draining {
		leaving, err := r.leaving(ctx, leavingTime)
		if err != nil { // a node is away: what was known stays
			r.log.Debug("what is left on draining nodes is not known", "err", err)
		}
		for i, m := range members {
			if l, known := leaving[m.Number]; known {
				all[i].Leaving = &l
			}
		}
	}
	err = r.eachRow(ctx, logSetPrefix, func(key string, value []byte) error {
		row, err := ParseRow(value)
		if err != nil {
			return err
		}
		number, err := strconv.ParseUint(strings.TrimPrefix(key, logSetPrefix), 16, 64)
		if err != nil {
			return fmt.Errorf("log set %q of no disk", key)
		}
		for _, i := range r.missing(members, id.Disk(number), row) {
			all[i].LogsMissingCount++
			if len(all[i].LogsMissing) < missingMax {
				all[i].LogsMissing = append(all[i].LogsMissing, id.Disk(number))
			}
		}
		return nil
	})
	return all, err
}

// missing returns the members, by place, that should have a disk's log and do not have
// it, where it has too few replicas.
func (r *Rack) missing(members []*member, d id.Disk, row logset.Row) (out []int) {
	opts := r.logOptions(d)
	if len(row) >= opts.Replicas {
		return nil
	}
	for _, n := range opts.Nodes[:opts.Replicas] {
		if i := slices.IndexFunc(members, func(m *member) bool { return m.Number == n }); i >= 0 && !row.Has(n) {
			out = append(out, i)
		}
	}
	return out
}

// info describes a member as it answered last.
func (m *member) info(row NodeRow) datanode.NodeInfo {
	numbers := m.own()
	i := datanode.NodeInfo{
		Number: m.Number, Name: row.Name, Addresses: row.Addresses, State: string(row.State), FirstSpindle: numbers[0].First, LaterSpindles: numbers[1:],
		Spindles: numbers.Count(),
	}
	since := m.silent.Load()
	if i.Answers = since == 0; i.Answers {
		since = m.heard.Load()
	} else {
		i.Reason = m.unreachable(nil).Text
	}
	i.Since = time.Unix(0, since)
	if st := m.last(); st != nil {
		i.Log = st.Log
		for _, sp := range st.Spindles {
			if sp.State == datanode.SpindleOK {
				i.SpindlesOK++
			}
			i.CapacityBytes += sp.CapacityBytes
			i.AllocatedBytes += sp.AllocatedBytes
		}
	}
	return i
}

// eachRow reads all entries of the registry with a prefix.
func (r *Rack) eachRow(ctx context.Context, prefix string, do func(key string, value []byte) error) error {
	return eachEntry(ctx, r.RegistryNode, prefix, func(e *datanode.RegistryEntry) error { return do(e.Key, e.Value) })
}

// eachEntry reads all entries of a registry with a prefix.
func eachEntry(ctx context.Context, registry datanode.RegistryNode, prefix string, do func(*datanode.RegistryEntry) error) error {
	q := &datanode.RegistryListRequest{Prefix: prefix}
	for {
		reply, err := registry.RegistryList(ctx, q)
		if err != nil {
			return err
		}
		for i := range reply.Entries {
			if err := do(&reply.Entries[i]); err != nil {
				return err
			}
			q.After = reply.Entries[i].Key
		}
		if !reply.More {
			return nil
		}
	}
}
