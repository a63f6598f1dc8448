package index

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

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
	if err := x.register(r.Disk, update{r.Epoch, r.Seq}, r.Fingerprints, hits); err != nil {
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
	x.recent.find(prints, hits) // and then tables: the other way round, what becomes one would be missed
	left := make([]int, 0, len(prints))
	filtered := x.filter.ready.Load()
	for i := range prints {
		if !filtered || !x.filter.excludes(&prints[i]) {
			left = append(left, i)
		}
	}
	if len(left) == 0 {
		return nil
	}
	rows, err := x.prints()
	if err != nil {
		return err
	}
	defer rows.close()
	for n, r := range inOrder(len(left), func(i int) *id.Fingerprint { return &prints[left[i]] }) {
		if n%lookupShare == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		i := left[r.i]
		err := rows.inTables(&prints[i], func(r id.Ref) bool {
			if !hits[i].Found || comparePlaces(r, hits[i].Ref) < 0 {
				hits[i] = datanode.Hit{Found: true, Ref: r}
			}
			return false
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// findLive makes a hit of the first place of a fingerprint that is in a live
// segment, or a miss. It is called under holds, and rows was opened there, as what
// it says is true only there.
func (x *Index) findLive(rows *prints, print *id.Fingerprint, hit *datanode.Hit) error {
	*hit = datanode.Hit{}
	var failed error
	err := rows.each(print, func(r id.Ref) bool {
		var live bool
		if live, failed = x.live(r.Segment); live {
			*hit = datanode.Hit{Found: true, Ref: r}
		}
		return !live && failed == nil
	})
	return errors.Join(err, failed)
}

// register sets the bits of all hits on live segments, in one step; of the
// others it takes another place of the chunk, or makes misses. The rows that
// gave the hits may be older than the step: as long as a segment is live, what
// was once said of its slots is true.
func (x *Index) register(d id.Disk, at update, prints []id.Fingerprint, hits []datanode.Hit) error {
	if !slices.ContainsFunc(hits, func(h datanode.Hit) bool { return h.Found }) {
		return nil
	}
	b := x.store.DB.NewBatch()
	x.holds.Lock()
	defer x.holds.Unlock()
	if err := x.registerIn(b, d, at, prints, hits); err != nil {
		b.Close()
		return err
	}
	return x.store.Commit(b)
}

func (x *Index) registerIn(b *pebble.Batch, d id.Disk, at update, prints []id.Fingerprint, hits []datanode.Hit) error {
	order := bySegment(hits)
	turned, err := x.turnDead(order, prints, hits)
	if err != nil {
		return err
	}
	if turned {
		order = bySegment(hits)
	}
	return eachSegment(order, hits, func(s id.Segment, group []int) error {
		row, err := x.list(s, d)
		if err != nil {
			return err
		}
		if row == nil {
			row = &listRow{}
		}
		if at.less(row.set) {
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
		return nil
	})
}

// turnDead turns hits on segments that are not live to live ones, or to misses,
// and reports whether there were any. It goes by order and leaves that as it was.
func (x *Index) turnDead(order []int, wanted []id.Fingerprint, hits []datanode.Hit) (turned bool, err error) {
	var rows *prints
	defer func() {
		if rows != nil {
			rows.close()
		}
	}()
	err = eachSegment(order, hits, func(s id.Segment, group []int) error {
		live, err := x.live(s)
		if err != nil || live {
			return err
		}
		turned = true
		if rows == nil {
			if rows, err = x.prints(); err != nil {
				return err
			}
		}
		for _, i := range group {
			if err := x.findLive(rows, &wanted[i], &hits[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return turned, err
}

// bySegment returns the indexes of what is found, in the order of segments.
func bySegment(hits []datanode.Hit) []int {
	var order []int
	for i := range hits {
		if hits[i].Found {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(hits[a].Ref.Segment, hits[b].Ref.Segment) })
	return order
}

// eachSegment calls f with each segment, in that order, and the indexes of its
// hits. f may change those hits.
func eachSegment(order []int, hits []datanode.Hit, f func(s id.Segment, group []int) error) error {
	for len(order) > 0 {
		s := hits[order[0]].Ref.Segment
		n := 1
		for n < len(order) && hits[order[n]].Ref.Segment == s {
			n++
		}
		if err := f(s, order[:n]); err != nil {
			return err
		}
		order = order[n:]
	}
	return nil
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
