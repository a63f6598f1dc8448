package index

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// lookupWorkers read the fingerprints of one large Lookup, so that a cold
	// index waits for its device that many at a time.
	lookupWorkers = 4
	// lookupShare is the least number of fingerprints that pays for a worker.
	lookupShare = 512
)

// Lookup finds fingerprints and registers each hit's slot for the disk in the
// same step; Publish makes that stable. It blocks for reads only. Errors:
// ErrInvalid, ErrFenced, ErrStaleUpdate (the disk has set a list under a newer
// number; nothing is registered).
func (x *Index) Lookup(ctx context.Context, r *datanode.LookupRequest) (*datanode.LookupReply, error) {
	if err := checkOwner(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	if len(r.Fingerprints) > datanode.FingerprintsMax {
		return nil, invalid("%d fingerprints", len(r.Fingerprints))
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	if err := x.deps.CheckEpoch(r.Disk, r.Epoch); err != nil {
		return nil, err
	}
	hits := make([]datanode.Hit, len(r.Fingerprints))
	if err := x.findAll(ctx, r.Fingerprints, hits); err != nil {
		return nil, err
	}
	if err := x.register(r.Disk, update{r.Epoch, r.Seq}, hits); err != nil {
		return nil, err
	}
	return &datanode.LookupReply{Hits: hits}, nil
}

// findAll fills hits from the fingerprint rows, in shares.
func (x *Index) findAll(ctx context.Context, prints []id.Fingerprint, hits []datanode.Hit) error {
	workers := min(lookupWorkers, len(prints)/lookupShare)
	if workers < 2 {
		return x.find(ctx, prints, hits)
	}
	var errs [lookupWorkers]error
	var running sync.WaitGroup
	for i := range workers {
		from, to := len(prints)*i/workers, len(prints)*(i+1)/workers
		running.Go(func() { errs[i] = x.find(ctx, prints[from:to], hits[from:to]) })
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *Index) find(ctx context.Context, prints []id.Fingerprint, hits []datanode.Hit) error {
	var key [1 + len(id.Fingerprint{})]byte
	key[0] = keyPrint
	for i := range prints {
		if i%lookupShare == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		copy(key[1:], prints[i][:])
		found, err := x.store.View(key[:], func(v []byte) (err error) {
			hits[i].Ref, err = decodePrint(v)
			return err
		})
		if err != nil {
			return err
		}
		hits[i].Found = found
	}
	return nil
}

// register sets the bits of all hits on live segments, in one step, and makes
// misses of the others. The rows that gave the hits may be older than the step:
// as long as a segment is live, what was once said of its slots is true.
func (x *Index) register(d id.Disk, at update, hits []datanode.Hit) error {
	var order []int
	for i := range hits {
		if hits[i].Found {
			order = append(order, i)
		}
	}
	if len(order) == 0 {
		return nil
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Compare(hits[a].Ref.Segment, hits[b].Ref.Segment)
	})
	b := x.store.DB.NewBatch()
	x.holds.Lock()
	defer x.holds.Unlock()
	for len(order) > 0 {
		s := hits[order[0]].Ref.Segment
		n := 1
		for n < len(order) && hits[order[n]].Ref.Segment == s {
			n++
		}
		group := order[:n]
		order = order[n:]
		live, err := x.live(s)
		if err != nil {
			b.Close()
			return err
		}
		if !live {
			for _, i := range group {
				hits[i] = datanode.Hit{}
			}
			continue
		}
		row, err := x.list(s, d)
		if err != nil {
			b.Close()
			return err
		}
		if row == nil {
			row = &listRow{}
		}
		if at.less(row.set) {
			b.Close()
			return datanode.Errorf(datanode.ErrStaleUpdate, "segment %s, disk %d: set under (%d, %d)", s, d, row.set.epoch, row.set.seq)
		}
		if len(row.bits) == 0 {
			set(b, diskKey(d, s), nil)
		}
		if row.last.less(at) {
			row.last = at
		}
		for _, i := range group {
			row.bits = setBit(row.bits, hits[i].Ref.Slot)
		}
		set(b, listKey(s, d), row.encode())
	}
	return x.store.Commit(b)
}

// live reports whether a segment is known and live.
func (x *Index) live(s id.Segment) (live bool, err error) {
	_, err = x.store.View(segmentKey(keySegment, s), func(v []byte) error {
		if len(v) < segmentRowBytes || v[0] != rowVersion {
			return corrupt("segment row")
		}
		live = datanode.State(v[1]) == datanode.StateLive
		return nil
	})
	return live, err
}
