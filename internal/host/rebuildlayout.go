package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rebuild"
	"plinth/internal/stripe"
)

// rebuildWorkers restore segments at once, of all layouts that this host goes through: as many
// as checks may be in memory, so that one waits for its reads while another one's
// fragments are being written.
const rebuildWorkers = stripe.ChecksMax

// layoutRebuild goes through a layout's segments and restores what its targets lack.
type layoutRebuild struct {
	h       *Host
	layout  id.Layout
	targets rebuild.Serving
	term    *term // under which this host was given it
	sum     *restoredSum
	steps   atomic.Int64 // it gets on
	cancel  context.CancelFunc
	// ended is closed at the end, when failure says why it was not gone through, if it was not.
	ended   chan struct{}
	failure error
	has     map[id.Spindle]map[id.Segment]bool

	mu      sync.Mutex
	outcome rebuild.Outcome
	// restored were restored, and must not have been deleted meanwhile.
	restored []id.Segment
	err      error
}

// begin looks whether this host sees the pool as the warden does.
func (w *layoutRebuild) begin(ctx context.Context) error {
	serving, err := w.h.servingSpindles(ctx)
	if err != nil {
		return err
	}
	view := w.h.viewRebuild(serving)
	if int(w.layout) >= len(view.Layouts.Lists) {
		return fmt.Errorf("layout %d is not known here yet", w.layout)
	}
	for s, incarnation := range w.targets {
		if serving[s] != incarnation || !slices.Contains(view.Layouts.Lists[w.layout], s) {
			return fmt.Errorf("spindle %d of layout %d does not serve here as what is to be restored", s, w.layout)
		}
	}
	if rebuild.MustWait(view, w.layout, w.targets) {
		return fmt.Errorf("layout %d: data nodes that have what it takes do not answer", w.layout)
	}
	return nil
}

// proceed reports with an error that it is not this host's turn any more.
func (w *layoutRebuild) proceed(ctx context.Context) error {
	if ctx.Err() == nil && (w.h.owning.term.Load() != w.term || !w.term.valid()) {
		return fmt.Errorf("rebuild layout %d: the session has ended under which this host was given it", w.layout)
	}
	return ctx.Err()
}

// run goes through the layout. What is wrong with single segments is in the outcome.
func (w *layoutRebuild) run(ctx context.Context) error {
	if err := w.begin(ctx); err != nil {
		return err
	}
	var err error
	if w.has, err = w.list(ctx, slices.Sorted(maps.Keys(w.targets))); err != nil {
		return err
	}
	w.steps.Add(1)
	if err := w.adopt(ctx); err != nil {
		return err
	}
	step := w.h.paceSweep()
	for after, more := id.MakeSegment(w.layout, 0), true; more; {
		if err := errors.Join(w.proceed(ctx), step(ctx)); err != nil {
			return err
		}
		reply, err := w.describe(ctx, after)
		if err != nil {
			return err
		}
		w.steps.Add(1)
		more = reply.More && len(reply.Segments) > 0
		var todo []datanode.SegmentDescription
		for _, d := range reply.Segments {
			if after = d.Segment; after.Layout() != w.layout {
				more = false
				break
			}
			if d.State != datanode.StateDeleting && len(w.lack(d.Segment)) > 0 {
				todo = append(todo, d)
			}
		}
		if err := w.restoreAll(ctx, todo); err != nil {
			// It may be another host's turn, which does not look at what is deleted.
			return errors.Join(err, w.giveUpDeleted(w.h.life))
		}
		if err := w.giveUpDeleted(ctx); err != nil {
			return err
		}
	}
	if err := w.giveUpDeleted(ctx); err != nil { // what was about to go
		return err
	}
	if w.outcome.LostSegments > 0 {
		return w.begin(ctx) // or is it this host that does not reach what it takes?
	}
	return nil
}

// describe describes segments of the layout that follow one, and perhaps of others.
func (w *layoutRebuild) describe(ctx context.Context, after id.Segment) (*datanode.DescribeSegmentsReply, error) {
	if several, ok := w.h.node.(datanode.Several); ok {
		return several.DescribeLayout(ctx, after)
	}
	return w.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
}

// list returns what spindles have of the layout. One that no longer serves has nothing.
func (w *layoutRebuild) list(ctx context.Context, spindles []id.Spindle) (map[id.Spindle]map[id.Segment]bool, error) {
	all := make(map[id.Spindle]map[id.Segment]bool)
	for _, s := range spindles {
		has := make(map[id.Segment]bool)
		r := &datanode.ListFragmentsRequest{Spindle: s, Started: true, Segment: id.MakeSegment(w.layout, 0)}
		for more := true; more; {
			page, err := w.h.node.ListFragments(ctx, r)
			if errors.Is(err, datanode.ErrSpindle) {
				w.outcome.Again = true
				break
			}
			if err != nil {
				return nil, err
			}
			w.steps.Add(1)
			more = page.More && len(page.Fragments) > 0
			for _, f := range page.Fragments {
				if r.Segment, r.Index = f.Segment, f.Index; f.Segment.Layout() != w.layout {
					more = false
					break
				}
				has[f.Segment] = true
			}
		}
		all[s] = has
	}
	return all, nil
}

// lack returns the targets that have no fragment of a segment.
func (w *layoutRebuild) lack(s id.Segment) (out []id.Spindle) {
	for t := range w.targets {
		if !w.has[t][s] {
			out = append(out, t)
		}
	}
	return out
}

// restoreAll restores segments, some at once.
func (w *layoutRebuild) restoreAll(ctx context.Context, todo []datanode.SegmentDescription) error {
	next := make(chan datanode.SegmentDescription)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	for range min(rebuildWorkers, len(todo)) {
		running.Go(func() {
			step := w.h.paceSweep()
			for d := range next {
				if err := w.restoreNext(ctx, step, &d); err != nil {
					w.mu.Lock()
					w.err = errors.Join(w.err, err)
					w.mu.Unlock()
					cancel()
				}
			}
		})
	}
	for _, d := range todo {
		if ctx.Err() != nil {
			break
		}
		next <- d
	}
	close(next)
	running.Wait()
	return w.err
}

// restoreNext restores a segment when it is its turn.
func (w *layoutRebuild) restoreNext(ctx context.Context, step func(context.Context) error, d *datanode.SegmentDescription) error {
	if err := step(ctx); err != nil {
		return err
	}
	if err := w.pace(ctx, int64(d.FragmentBytes)); err != nil {
		return err
	}
	select {
	case w.h.rebuild.crew.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.h.rebuild.crew.slots }()
	if err := w.proceed(ctx); err != nil {
		return err
	}
	defer w.steps.Add(1)
	return w.restore(ctx, d)
}

// pace returns when a fragment of so many bytes may be restored. Each second of that is a step.
func (w *layoutRebuild) pace(ctx context.Context, bytes int64) error {
	for bytes > 0 {
		part := bytes
		if rate := w.h.rebuild.pacer.Rate(); rate > 0 {
			part = min(part, rate)
		}
		if err := w.h.paceRebuild(ctx, part); err != nil {
			return err
		}
		bytes -= part
		w.steps.Add(1)
	}
	return nil
}

// paceRebuild returns when a fragment of so many bytes may be read from each spindle of a
// stripe, or written to it.
func (h *Host) paceRebuild(ctx context.Context, bytes int64) error {
	h.rebuild.paceMu.Lock()
	defer h.rebuild.paceMu.Unlock()
	return h.rebuild.pacer.Wait(ctx, bytes)
}

// restore restores a segment's fragments on the targets that lack them, and mends what
// else is wrong with it.
func (w *layoutRebuild) restore(ctx context.Context, d *datanode.SegmentDescription) error {
	report, err := w.h.pool.Stripes.Check(ctx, d.Segment, true)
	if err != nil && (report != nil || isAborting(err)) {
		return err
	}
	if err != nil {
		return w.unreadable(ctx, d, err)
	}
	lack, left, away := w.lack(d.Segment), 0, false
	mended := int64(0)
	for _, x := range report.Damage {
		away = away || x.Kind == stripe.DamageUnreachable
		switch target := x.Index != stripe.IndexUnknown && slices.Contains(lack, x.Spindle); {
		case target && x.Repaired:
			mended++
		case target:
			left++
		}
	}
	w.h.noteDamage(report)
	w.count(d, mended)
	unknown := slices.ContainsFunc(report.Damage, func(x stripe.Damage) bool { return x.Index == stripe.IndexUnknown })
	switch {
	case report.LostBlocks > 0 || left > 0 && unknown:
		return w.lose(ctx, d, damageText(report.Damage), !away)
	case left > 0: // it could not be written
		w.mu.Lock()
		w.outcome.Again = true
		w.mu.Unlock()
	}
	return nil
}

// count takes note of what was restored.
func (w *layoutRebuild) count(d *datanode.SegmentDescription, fragments int64) {
	if fragments == 0 {
		return
	}
	w.mu.Lock()
	w.restored = append(w.restored, d.Segment)
	w.mu.Unlock()
	w.sum.fragments.Add(fragments)
	w.sum.bytes.Add(fragments * int64(d.FragmentBytes))
}

// unreadable is for a segment of which nothing could be read: it may be deleted.
func (w *layoutRebuild) unreadable(ctx context.Context, d *datanode.SegmentDescription, cause error) error {
	now, err := w.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: []id.Segment{d.Segment}})
	if err != nil {
		return err
	}
	if x := now.Segments[0]; !x.Known || x.State == datanode.StateDeleting {
		return nil
	}
	return w.lose(ctx, d, cause.Error(), !errors.Is(cause, datanode.ErrSpindle))
}

// lose takes note of a segment of which something cannot be computed.
func (w *layoutRebuild) lose(ctx context.Context, d *datanode.SegmentDescription, what string, final bool) error {
	lost := rebuild.Lost{Segment: d.Segment, What: what, Final: final}
	reply, err := w.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: []id.Segment{d.Segment}, Slots: true})
	if err != nil {
		return err
	}
	for _, l := range reply.Segments[0].Lists {
		lost.Disks = append(lost.Disks, l.Disk)
	}
	w.h.log.Error("cannot restore a segment", "segment", d.Segment, "disks", lost.Disks, "what", what)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcome.Lose(lost)
	return nil
}

// damageTextMax bounds the damage that a lost segment names.
const damageTextMax = 8

func damageText(all []stripe.Damage) string {
	var out []string
	for _, d := range all[:min(len(all), damageTextMax)] {
		out = append(out, d.String())
	}
	if len(all) > damageTextMax {
		out = append(out, fmt.Sprintf("and %d more", len(all)-damageTextMax))
	}
	return strings.Join(out, "; ")
}

// giveUpDeleted gives up what was restored of segments that were deleted meanwhile: it
// came behind the deletion. What a crash leaves of it the node finds at its next start, and so it
// does while the index is not complete: one that a node was made anew with knows nothing of
// segments that are needed.
func (w *layoutRebuild) giveUpDeleted(ctx context.Context) error {
	var going, gone []id.Segment
	for part := range slices.Chunk(w.restored, datanode.SegmentsMax) {
		reply, err := w.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: part})
		if err != nil {
			return err
		}
		for _, d := range reply.Segments {
			switch {
			case !d.Known:
				gone = append(gone, d.Segment)
			case d.State == datanode.StateDeleting:
				going = append(going, d.Segment)
			}
		}
	}
	w.restored = going
	if len(gone) == 0 {
		return nil
	}
	st, err := w.h.node.Status(ctx) // after the descriptions
	if err != nil || !st.Index.Complete {
		return err
	}
	for _, s := range gone {
		w.h.pool.Stripes.Discard(ctx, s)
	}
	return nil
}
