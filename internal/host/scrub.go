package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// ScrubPass is one walk over all segments.
type ScrubPass struct {
	Began time.Time `json:"began"`
	// Ended is nil while it goes on.
	Ended *time.Time `json:"ended,omitempty"`
	// Segments and Bytes (of fragments, parity included) are what it has tested.
	Segments int64 `json:"segments"`
	Bytes    int64 `json:"bytes"`
	// Damaged counts fragments with damage, by spindle, whether the scrub found them
	// or a read that came meanwhile; Repaired counts those that were rewritten.
	Damaged  map[id.Spindle]int64 `json:"damaged,omitempty"`
	Repaired int64                `json:"repaired"`
}

// ScrubStatus says how far the scrub is.
type ScrubStatus struct {
	// IntervalSeconds is the time for a pass; 0: nothing is scrubbed.
	IntervalSeconds float64 `json:"interval_seconds"`
	// Progress of Pass is from 0 to 1.
	Progress float64 `json:"progress"`
	// Pass is the newest one, Last the one before it; nil: there was none.
	Pass *ScrubPass `json:"pass,omitempty"`
	Last *ScrubPass `json:"last,omitempty"`
}

const (
	keyScrub        = "scrub"
	scrubRowVersion = 1
	scrubSaveTime   = time.Minute // how much of a pass a crash repeats
	scrubRetryTime  = time.Minute
	scrubStartTime  = time.Minute // a host that starts has better to do
)

// scrubRow is the state of the scrub in the registry: it goes on after a restart.
type scrubRow struct {
	Version int        `json:"version"`
	After   id.Segment `json:"after"` // which Pass has tested, with all below it
	Pass    *ScrubPass `json:"pass,omitempty"`
	Last    *ScrubPass `json:"last,omitempty"`
}

// scrub is the state of the scrub. The loop alone uses what mu does not guard.
type scrub struct {
	loaded  bool
	page    []datanode.SegmentDescription
	saved   time.Time
	changed bool

	mu  sync.Mutex
	row scrubRow
}

// scrubLoop tests the checksums of all segments, one at a time, so that each pass
// takes the interval. What has damage is repaired.
func (h *Host) scrubLoop() {
	defer h.work.Done()
	if h.opts.ScrubInterval < 0 {
		return
	}
	timer := time.NewTimer(min(scrubStartTime, h.opts.ScrubInterval/64))
	defer timer.Stop()
	for {
		select {
		case <-h.life.Done():
			if h.scrub.changed {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_ = h.saveScrub(ctx) // or else some of it is done again
			}
			return
		case <-timer.C:
		}
		wait, err := h.scrubNext(h.life)
		if err != nil && h.life.Err() == nil {
			h.logRetried("scrub failed, will retry", err)
			wait = scrubRetryTime
		}
		timer.Reset(wait)
	}
}

// scrubNext does the next step of the scrub, and returns how long to wait after it.
func (h *Host) scrubNext(ctx context.Context) (time.Duration, error) {
	x := &h.scrub
	if warden, err := h.beWarden(ctx); err != nil || !warden {
		x.loaded, x.changed, x.page = false, false, nil // another host goes on with it
		return scrubRetryTime, err
	}
	if !x.loaded {
		if err := h.loadScrub(ctx); err != nil {
			return 0, err
		}
		x.loaded = true
	}
	if pass := x.row.Pass; pass == nil || pass.Ended != nil {
		if pass != nil {
			if wait := time.Until(pass.Began.Add(h.opts.ScrubInterval)); wait > 0 {
				return wait, nil
			}
		}
		x.mu.Lock()
		x.row = scrubRow{Pass: &ScrubPass{Began: time.Now()}, Last: pass}
		x.mu.Unlock()
		return 0, h.saveScrub(ctx)
	}
	if len(x.page) == 0 {
		reply, err := h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: x.row.After})
		if err != nil {
			return 0, err
		}
		if len(reply.Segments) == 0 {
			return 0, h.endScrubPass(ctx)
		}
		x.page = reply.Segments
	}
	seg := x.page[0]
	if err := h.scrubSegment(ctx, seg.Segment); err != nil {
		return 0, err
	}
	x.page = x.page[1:]
	bytes := int64(seg.FragmentBytes) * int64(seg.K+seg.M)
	x.mu.Lock()
	x.row.After = seg.Segment
	x.row.Pass.Segments++
	x.row.Pass.Bytes += bytes
	done, end := x.row.Pass.Bytes, x.row.Pass.Began.Add(h.opts.ScrubInterval)
	x.mu.Unlock()
	x.changed = true
	if time.Since(x.saved) > scrubSaveTime {
		if err := h.saveScrub(ctx); err != nil {
			return 0, err
		}
	}
	st, err := h.node.Status(ctx)
	if err != nil {
		return 0, err
	}
	return scrubWait(bytes, allocated(st)-done+bytes, time.Until(end), h.opts.ScrubInterval), nil
}

// scrubWait is how long testing n bytes may take if left are to be tested until the
// pass ends; one that is late hurries, but not as if it had less than an eighth of the
// interval.
func scrubWait(n, left int64, untilEnd, interval time.Duration) time.Duration {
	share := min(float64(n)/float64(max(left, 1)), 1)
	return time.Duration(share * float64(max(untilEnd, interval/8)))
}

// scrubSegment tests a segment and repairs it if it must be.
func (h *Host) scrubSegment(ctx context.Context, s id.Segment) error {
	if err := h.paceSweep()(ctx); err != nil {
		return err
	}
	sound, err := h.pool.Stripes.Scrub(ctx, s)
	switch {
	case sound, errors.Is(err, datanode.ErrNotFound): // deleted since
		return nil
	case err != nil && !errors.Is(err, datanode.ErrCorrupt) && !errors.Is(err, datanode.ErrSpindle):
		return err
	}
	err = h.repair(ctx, s)
	if errors.Is(err, datanode.ErrCorrupt) || errors.Is(err, datanode.ErrSpindle) {
		h.log.Error("found damage", "segment", s, "err", err)
		return nil
	}
	return err
}

// endScrubPass ends a pass.
func (h *Host) endScrubPass(ctx context.Context) error {
	x := &h.scrub
	x.mu.Lock()
	now := time.Now()
	x.row.Pass.Ended = &now
	pass := *x.row.Pass
	x.mu.Unlock()
	h.log.Info("scrub: all segments are tested", "segments", pass.Segments, "bytes", pass.Bytes,
		"damaged", pass.DamagedFragments(), "repaired", pass.Repaired, "took", now.Sub(pass.Began))
	return h.saveScrub(ctx)
}

// DamagedFragments returns the sum of Damaged.
func (p *ScrubPass) DamagedFragments() (n int64) {
	for _, c := range p.Damaged {
		n += c
	}
	return n
}

// noteDamage counts what a repair has found, and logs each of it. That a spindle which
// is being rebuilt lacks a fragment is no damage.
func (h *Host) noteDamage(r *stripe.Report) {
	lacking := h.rebuilding()
	found := make(map[id.Spindle]bool) // and rewritten
	for _, d := range r.Damage {
		if d.Kind == stripe.DamageMissing && slices.Contains(lacking, d.Spindle) {
			continue
		}
		h.log.Warn("found damage", "segment", r.Segment, "what", d.String(), "repaired", d.Repaired)
		if d.Kind != stripe.DamageUnreachable && d.Index != stripe.IndexUnknown {
			found[d.Spindle] = d.Repaired
		}
	}
	h.scrub.mu.Lock()
	defer h.scrub.mu.Unlock()
	pass := h.scrub.row.Pass
	if pass == nil {
		return
	}
	if pass.Damaged == nil {
		pass.Damaged = make(map[id.Spindle]int64)
	}
	for spindle, repaired := range found {
		pass.Damaged[spindle]++
		if repaired {
			pass.Repaired++
		}
	}
}

func (h *Host) loadScrub(ctx context.Context) error {
	value, _, err := h.catalog.get(ctx, keyScrub)
	if err != nil {
		return err
	}
	row := scrubRow{Version: scrubRowVersion}
	if value != nil {
		if err := json.Unmarshal(value, &row); err != nil || row.Version != scrubRowVersion {
			h.log.Warn("cannot read how far the scrub was, it begins again", "version", row.Version, "err", err)
			row = scrubRow{}
		}
	}
	h.scrub.mu.Lock()
	defer h.scrub.mu.Unlock()
	h.scrub.row = row
	return nil
}

func (h *Host) saveScrub(ctx context.Context) error {
	x := &h.scrub
	x.mu.Lock()
	x.row.Version = scrubRowVersion
	value, err := json.Marshal(&x.row)
	x.mu.Unlock()
	if err != nil {
		return err
	}
	err = h.catalog.commit(ctx, &datanode.RegistryTxn{Puts: []datanode.Put{{Key: keyScrub, Value: value}}})
	if err != nil {
		return fmt.Errorf("save how far the scrub is: %w", err)
	}
	x.saved, x.changed = time.Now(), false
	return nil
}

func (h *Host) scrubStatus(node *datanode.Status) ScrubStatus {
	h.scrub.mu.Lock()
	defer h.scrub.mu.Unlock()
	out := ScrubStatus{
		IntervalSeconds: max(h.opts.ScrubInterval, 0).Seconds(),
		Pass:            h.scrub.row.Pass.clone(), Last: h.scrub.row.Last.clone(),
	}
	switch p := out.Pass; {
	case p != nil && p.Ended != nil:
		out.Progress = 1
	case p != nil:
		out.Progress = min(float64(p.Bytes)/float64(max(allocated(node), 1)), 1)
	}
	return out
}

func (p *ScrubPass) clone() *ScrubPass {
	if p == nil {
		return nil
	}
	out := *p
	out.Damaged = maps.Clone(p.Damaged)
	return &out
}

// warnings names the spindles that had damage since the pass before began.
func (s *ScrubStatus) warnings() (out []string) {
	counts := make(map[id.Spindle]int64)
	var since time.Time
	for _, p := range []*ScrubPass{s.Pass, s.Last} {
		if p != nil {
			since = p.Began
			for spindle, n := range p.Damaged {
				counts[spindle] += n
			}
		}
	}
	for _, spindle := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf("spindle %d has had %d damaged fragments since %s: replace it if there are more",
			spindle, counts[spindle], since.Format(time.DateOnly)))
	}
	return out
}
