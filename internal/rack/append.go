package rack

import (
	"context"
	"errors"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// part is an append that is not everywhere.
type part struct {
	records []datanode.Record // without their data
	has     map[id.Node]bool
}

func (p *part) is(records []datanode.Record) bool {
	return slices.EqualFunc(p.records, records, func(a, b datanode.Record) bool {
		return a.Pos == b.Pos && a.MAC == b.MAC && a.Type == b.Type
	})
}

// Append implements datanode.LogNode. Beside its errors: ErrOutcome for another append
// after one for which some member had no room.
func (r *Rack) Append(ctx context.Context, q *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if q.Stream >= datanode.Streams || len(q.Records) == 0 {
		return nil, datanode.Errorf(datanode.ErrInvalid, "append of %d records to stream %d", len(q.Records), q.Stream)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := r.owned(q.Disk, q.Epoch)
	if err != nil {
		return nil, err
	}
	l.appending[q.Stream].Lock()
	defer l.appending[q.Stream].Unlock()
	before := l.part[q.Stream]
	if before != nil && !before.is(q.Records) {
		l.end(datanode.Errorf(datanode.ErrOutcome, "disk %d: some nodes had no room for an append, and another one follows it", q.Disk))
		return nil, l.over
	}
	now := &part{has: make(map[id.Node]bool)}
	for _, rec := range q.Records {
		now.records = append(now.records, datanode.Record{Pos: rec.Pos, MAC: rec.MAC, Type: rec.Type})
	}
	var mu sync.Mutex
	var usage datanode.LogUsage
	full := false
	err = l.operate(func(ctx context.Context, m *member) error {
		var err error
		if before == nil || !before.has[m.Number] {
			var reply *datanode.AppendReply
			if reply, err = m.Node.Append(ctx, q); err == nil {
				mu.Lock()
				usage = fuller(usage, reply.Log)
				mu.Unlock()
			}
		}
		mu.Lock()
		defer mu.Unlock()
		full = full || errors.Is(err, datanode.ErrLogFull)
		if err == nil {
			now.has[m.Number] = true
		}
		return err
	})
	l.part[q.Stream] = nil
	if full && errors.Is(err, datanode.ErrLogFull) && len(now.has) > 0 {
		l.part[q.Stream] = now
	}
	if err != nil {
		return nil, err
	}
	return &datanode.AppendReply{Log: usage}, nil
}

// fuller returns the usage of which the greater part is used.
func fuller(a, b datanode.LogUsage) datanode.LogUsage {
	if a.CapacityBytes == 0 || float64(b.UsedBytes)*float64(a.CapacityBytes) > float64(a.UsedBytes)*float64(b.CapacityBytes) {
		return b
	}
	return a
}
