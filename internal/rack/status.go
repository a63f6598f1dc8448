package rack

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/fnv"
	"slices"

	"plinth/datanode"
)

func (m *member) last() *datanode.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// Status implements datanode.Node: the log is the fullest member's, free is what the
// fullest allows, and the index is all members' together, as they were when they
// answered last. The spindles of one that does not answer are absent. What is free counts
// where new segments go.
func (r *Rack) Status(ctx context.Context) (*datanode.Status, error) {
	members := r.members()
	own := make([]*datanode.Status, len(members))
	errs := each(members, func(i int, m *member) error {
		st, err := r.statusOf(ctx, m)
		own[i] = st
		return err
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st := &datanode.Status{Index: datanode.IndexStatus{Complete: true}}
	incarnation, some, room := fnv.New64a(), false, false
	for i, m := range members {
		if own[i] == nil {
			st.Spindles = append(st.Spindles, m.absent(errs[i])...)
			if own[i] = m.last(); own[i] == nil {
				continue
			}
		} else {
			st.Spindles = append(st.Spindles, m.present(own[i])...)
			if m.is() == NodeIn {
				if st.Log = fuller(st.Log, own[i].Log); !room || own[i].FreeBytes < st.FreeBytes {
					st.FreeBytes, st.SpareBytes = own[i].FreeBytes, own[i].SpareBytes
				}
				room = true
				st.ReservedBytes = max(st.ReservedBytes, own[i].ReservedBytes)
			}
			if !some {
				st.PoolID, st.LayoutVersion = own[i].PoolID, own[i].LayoutVersion
			}
			st.LayoutVersion = min(st.LayoutVersion, own[i].LayoutVersion)
			some = true
		}
		if m.is() == NodeJoining {
			continue
		}
		add(&st.Index, own[i].Index)
		incarnation.Write(binary.LittleEndian.AppendUint64(nil, own[i].Index.Incarnation))
	}
	if !some {
		return nil, first(errs)
	}
	// Every kind of change of a member's makes another number.
	st.Index.Incarnation = incarnation.Sum64()>>1 + 1
	if len(members) == 1 {
		st.Index.Incarnation = own[0].Index.Incarnation
	}
	st.Streams = streams(own)
	return st, nil
}

// statusOf asks a member, nil with an error.
func (r *Rack) statusOf(ctx context.Context, m *member) (st *datanode.Status, err error) {
	err = m.call(ctx, r.opts.CallTime, func(ctx context.Context) (err error) {
		st, err = m.Node.Status(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.status = st
	m.mu.Unlock()
	return st, nil
}

// present returns a member's spindles under the pool's numbers, without those that have
// none yet.
func (m *member) present(st *datanode.Status) []datanode.SpindleStatus {
	numbers := m.own()
	var all []datanode.SpindleStatus
	for _, sp := range st.Spindles {
		n, ok := numbers.Global(sp.Spindle)
		if ok {
			sp.Spindle = n
			all = append(all, sp)
		}
	}
	return all
}

func (m *member) absent(err error) []datanode.SpindleStatus {
	var all []datanode.SpindleStatus
	if st := m.last(); st != nil {
		all = m.present(st)
	} else {
		for _, s := range m.own().All() {
			all = append(all, datanode.SpindleStatus{Spindle: s})
		}
	}
	for i := range all {
		all[i].State, all[i].Reason = datanode.SpindleAbsent, m.unreachable(err).Text
	}
	return all
}

func add(sum *datanode.IndexStatus, x datanode.IndexStatus) {
	sum.Complete = sum.Complete && x.Complete
	sum.Segments += x.Segments
	sum.Fingerprints += x.Fingerprints
	sum.PlainBytes += x.PlainBytes
	sum.SealedBytes += x.SealedBytes
	sum.ObjectBytes += x.ObjectBytes
}

// streams returns each stream once: as the member has it that has most of it under the
// newest epoch. It pins a log if it does anywhere.
func streams(of []*datanode.Status) []datanode.LogStreamStatus {
	var all []datanode.LogStreamStatus
	for _, st := range of {
		if st != nil {
			all = append(all, st.Streams...)
		}
	}
	slices.SortStableFunc(all, func(a, b datanode.LogStreamStatus) int {
		return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Stream, b.Stream), cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(b.Bytes, a.Bytes))
	})
	same := func(a, b datanode.LogStreamStatus) bool { return a.Disk == b.Disk && a.Stream == b.Stream }
	for i := len(all) - 1; i > 0; i-- {
		if same(all[i-1], all[i]) {
			all[i-1].Pins = all[i-1].Pins || all[i].Pins
		}
	}
	return slices.CompactFunc(all, same)
}
