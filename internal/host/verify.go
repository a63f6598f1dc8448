package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	// needsPerScan bounds the segments whose needs are in memory at a time: 256
	// of 2,000 chunks of some 100 bytes are 50 MB.
	needsPerScan = 256
	// findingsMax bounds a report; the rest is counted.
	findingsMax = 10000
)

// Finding is one thing that is wrong.
type Finding struct {
	// Kind is one word for programs: block, header, missing, fields, parity,
	// unreachable, unreadable, map, list, index, chunk, checkpoint, leak.
	Kind     string `json:"kind"`
	Where    string `json:"where"`
	What     string `json:"what"`
	Repaired bool   `json:"repaired,omitempty"`
}

// VerifyReport is the result of a verify.
type VerifyReport struct {
	Disks    int       `json:"disks"`
	Segments int       `json:"segments"`
	Chunks   int64     `json:"chunks"` // read and opened; shared ones once
	Findings []Finding `json:"findings"`
	// More counts findings beyond the report's bound.
	More int `json:"more,omitempty"`
	// Elsewhere counts disks that other hosts serve: what those need was not walked.
	Elsewhere int `json:"elsewhere,omitempty"`
	// Rebuilding says that the index was lost and not every disk has stated yet
	// what it needs: its lists and slots were not judged.
	Rebuilding bool `json:"rebuilding,omitempty"`
}

// OK reports whether nothing is wrong that was not repaired.
func (r *VerifyReport) OK() bool {
	for _, f := range r.Findings {
		if !f.Repaired {
			return false
		}
	}
	return r.More == 0
}

func (r *VerifyReport) add(f Finding) {
	if len(r.Findings) >= findingsMax {
		r.More++
		return
	}
	r.Findings = append(r.Findings, f)
}

// VerifyOptions tunes Verify.
type VerifyOptions struct {
	// Repair rewrites damaged fragments whose content is beyond doubt.
	Repair bool
	// Strict also names, as leaks, what the index keeps without need. After a full
	// reclaim of disks that nobody writes to there is none.
	Strict bool
	// Progress, if set, is called with segments done and to do.
	Progress func(done, total int)
}

// Verify walks every map, every segment and every list, reads every fragment
// under its checksums and opens every chunk. Disks are served meanwhile; nothing
// is reclaimed. The report names what is wrong and where; an error says that the
// walk itself could not go on.
func (h *Host) Verify(ctx context.Context, opts VerifyOptions) (*VerifyReport, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.life, cancel)()
	if err := h.lockSweep(ctx); err != nil {
		return nil, err
	}
	defer h.unlockSweep()
	h.cleaner.verifying.Store(true)
	defer h.cleaner.verifying.Store(false)
	newer, err := h.pool.Number(ctx)
	if err != nil {
		return nil, err
	}
	v := &verify{h: h, opts: opts, pace: h.sweeps.Pace(nil), newer: newer, kept: make(map[id.Disk]map[id.Segment]bool)}
	defer v.close()
	h.refreshHealth(ctx)
	for _, e := range h.exports() {
		if errors.Is(e.err, ErrElsewhere) {
			v.report.Elsewhere++
			continue
		}
		if e.disk == nil {
			v.report.add(Finding{Kind: "map", Where: "disk " + e.rec.Name, What: e.err.Error()})
			continue
		}
		view, err := e.disk.View(ctx, h.existingOf(e))
		if err != nil {
			v.report.add(Finding{Kind: "map", Where: "disk " + e.rec.Name, What: err.Error()})
			continue
		}
		v.views = append(v.views, view)
		if err := v.keep(view); err != nil {
			return nil, err
		}
	}
	v.report.Disks = len(v.views)
	if err := v.collect(ctx); err != nil {
		return nil, err
	}
	done := 0
	for window := range slices.Chunk(v.segments, needsPerScan) {
		if err := v.window(ctx, window, &done); err != nil {
			return nil, err
		}
	}
	// Reading objects repairs them, so it comes when all damage is named.
	for _, view := range v.views {
		if err := v.checkpoints(ctx, view); err != nil {
			return nil, err
		}
	}
	return &v.report, nil
}

type verify struct {
	h     *Host
	opts  VerifyOptions
	pace  func(context.Context) error // before a segment
	views []*disk.View
	// newer is above the number of every segment that was begun before the
	// verify. Opening the views waits for the rounds and checkpoints that had
	// begun; others are writing segments that the index need not know yet.
	newer    uint64
	segments []id.Segment // all that anything speaks of
	stored   map[id.Segment]bool
	// objects are the segments of checkpoint objects, and what is wrong with
	// their stripes: found before a map is read, which repairs what it meets.
	objects map[id.Segment]checked
	kept    map[id.Disk]map[id.Segment]bool // what maps may still read
	report  VerifyReport
}

// checked is what Stripes.Check returned.
type checked struct {
	report *stripe.Report
	err    error
}

func (v *verify) close() {
	for _, view := range v.views {
		view.Close()
	}
}

// collect finds all segments: of the index, of the spindles, of maps.
func (v *verify) collect(ctx context.Context) error {
	all := make(map[id.Segment]struct{})
	v.objects = make(map[id.Segment]checked)
	for after, more := id.Segment(0), true; more; {
		reply, err := v.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
		if err != nil {
			return err
		}
		for _, d := range reply.Segments {
			all[d.Segment] = struct{}{}
			after = d.Segment
			if d.Kind == datanode.KindObject {
				v.objects[d.Segment] = checked{}
			}
		}
		more = reply.More && len(reply.Segments) > 0
	}
	st, err := v.h.node.Status(ctx)
	if err != nil {
		return err
	}
	v.report.Rebuilding = !st.Index.Complete // it becomes complete under lockSweep
	v.stored = make(map[id.Segment]bool)
	for _, s := range st.Spindles {
		if s.State != datanode.SpindleOK {
			v.report.add(Finding{Kind: "unreachable", Where: fmt.Sprintf("spindle %d", s.Spindle), What: fmt.Sprintf("%s: %s", s.State, s.Reason)})
			continue
		}
		if err := v.collectSpindle(ctx, s.Spindle, all); err != nil {
			return err
		}
	}
	if err := v.checkObjects(ctx); err != nil {
		return err
	}
	for _, view := range v.views {
		if err := view.Each(ctx, 0, ^id.Segment(0), func(n *disk.Need) error {
			all[n.Entry.Ref.Segment] = struct{}{}
			return nil
		}); err != nil {
			return err
		}
	}
	for s := range all {
		v.segments = append(v.segments, s)
	}
	slices.Sort(v.segments)
	return nil
}

// checkObjects checks the stripes of checkpoint objects.
func (v *verify) checkObjects(ctx context.Context) error {
	for s := range v.objects {
		if !v.stored[s] {
			delete(v.objects, s) // nothing to read
			continue
		}
		if err := v.pace(ctx); err != nil {
			return err
		}
		report, err := v.h.pool.Stripes.Check(ctx, s, v.opts.Repair)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.objects[s] = checked{report, err}
	}
	return nil
}

// check returns what is wrong with a segment's stripe.
func (v *verify) check(ctx context.Context, s id.Segment) (*stripe.Report, error) {
	if c, ok := v.objects[s]; ok {
		return c.report, c.err
	}
	return v.h.pool.Stripes.Check(ctx, s, v.opts.Repair)
}

func (v *verify) collectSpindle(ctx context.Context, spindle id.Spindle, all map[id.Segment]struct{}) error {
	req := datanode.ListFragmentsRequest{Spindle: spindle}
	for {
		reply, err := v.h.node.ListFragments(ctx, &req)
		if errors.Is(err, datanode.ErrSpindle) {
			return nil // failed since; its fragments are found missing
		}
		if err != nil {
			return err
		}
		for _, f := range reply.Fragments {
			all[f.Segment] = struct{}{}
			v.stored[f.Segment] = true
			req.Started, req.Segment, req.Index = true, f.Segment, f.Index
		}
		if !reply.More || len(reply.Fragments) == 0 {
			return nil
		}
	}
}

// window verifies some segments, in order.
func (v *verify) window(ctx context.Context, segments []id.Segment, done *int) error {
	needs := make(map[id.Segment][]disk.Need)
	// Any number of a disk's chunks may be one chunk of a segment: the first
	// speaks for all.
	type need struct {
		disk   id.Disk
		entry  blockmap.Entry
		object bool
	}
	seen := make(map[need]struct{})
	for _, view := range v.views {
		if err := view.Each(ctx, segments[0], segments[len(segments)-1], func(n *disk.Need) error {
			key := need{n.Disk, n.Entry, n.Object}
			if _, ok := seen[key]; !ok {
				seen[key] = struct{}{}
				needs[n.Entry.Ref.Segment] = append(needs[n.Entry.Ref.Segment], *n)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	reply, err := v.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: segments, Slots: true})
	if err != nil {
		return err
	}
	for i := range reply.Segments {
		if err := v.pace(ctx); err != nil {
			return err
		}
		if err := v.segment(ctx, &reply.Segments[i], needs[reply.Segments[i].Segment]); err != nil {
			return err
		}
		*done++
		if v.opts.Progress != nil {
			v.opts.Progress(*done, len(v.segments))
		}
	}
	return nil
}

// segment verifies one segment: its stripe, what the index says of it, and each
// chunk that is needed of it.
func (v *verify) segment(ctx context.Context, d *datanode.SegmentDescription, needs []disk.Need) error {
	where := "segment " + d.Segment.String()
	if v.opts.Strict && !v.report.Rebuilding {
		v.leaks(d, needs)
	}
	if len(needs) == 0 && (!d.Known || !v.stored[d.Segment]) {
		if !d.Known && v.stored[d.Segment] && d.Segment.Number() < v.newer && v.h.opts.Sole { // or else another host may be writing it
			v.report.add(Finding{Kind: "leak", Where: where, What: "has fragments that the index does not know; plinth recover takes them in"})
		}
		if d.Known && d.State == datanode.StateLive && !v.stored[d.Segment] {
			v.report.add(Finding{Kind: "missing", Where: where, What: "the index knows it, and no spindle has a fragment"})
		}
		return nil
	}
	if len(needs) == 0 && d.State == datanode.StateDeleting {
		return nil // a reclaim that was interrupted: the next one ends it
	}
	v.report.Segments++
	// Its writer may have died before it was whole: the owner's next pass frees it.
	abandoned := len(needs) == 0 && len(d.Slots) == 0
	report, err := v.check(ctx, d.Segment)
	if len(needs) == 0 && (err != nil || report != nil && len(report.Damage) > 0) {
		if gone, err := v.vanished(ctx, d.Segment); err != nil || gone {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && report == nil:
		v.report.add(Finding{Kind: "missing", Where: where, What: err.Error()})
	}
	if report != nil {
		for _, dmg := range report.Damage {
			if dmg.Kind == stripe.DamageUnreachable {
				continue // the spindle was named once
			}
			if dmg.Kind == stripe.DamageMissing && abandoned {
				continue
			}
			v.report.add(Finding{Kind: dmg.Kind.String(), Where: where, What: dmg.String(), Repaired: dmg.Repaired})
		}
	}
	v.index(where, d)
	return v.verifyNeeds(ctx, d, report, needs)
}

// vanished reports whether a segment that no disk of this host needs, and in which
// something is not sound, has been deleted meanwhile: of several hosts one reclaims,
// and does not wait for the verify of another.
func (v *verify) vanished(ctx context.Context, s id.Segment) (bool, error) {
	if v.h.opts.Sole {
		return false, nil
	}
	reply, err := v.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: []id.Segment{s}})
	if err != nil {
		return false, err
	}
	return !reply.Segments[0].Known || reply.Segments[0].State == datanode.StateDeleting, nil
}

// index verifies what the index says of a segment against itself.
func (v *verify) index(where string, d *datanode.SegmentDescription) {
	for _, s := range d.Dangling {
		v.report.add(Finding{Kind: "index", Where: fmt.Sprintf("%s, slot %d", where, s), What: "the index has no row for its fingerprint"})
	}
}
