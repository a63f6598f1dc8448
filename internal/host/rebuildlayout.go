package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rebuild"
	"plinth/internal/stripe"
)

// rebuildWorkers restore segments at once: as many as checks may be in memory, so that
// one waits for its reads while another one's fragments are being written.
const rebuildWorkers = stripe.ChecksMax

// layoutRebuild goes through a layout's segments and restores what its targets lack.
type layoutRebuild struct {
	h       *Host
	layout  id.Layout
	targets []id.Spindle
	serving rebuild.Serving // when it began
	has     map[id.Spindle]map[id.Segment]bool

	mu      sync.Mutex
	outcome rebuild.Outcome
	// restored were restored, and must not have been deleted meanwhile.
	restored []id.Segment
	err      error
}

// run goes through the layout. What is wrong with single segments is in the outcome.
func (w *layoutRebuild) run(ctx context.Context) error {
	if w.mustWait() {
		w.outcome.Again = true
		return nil
	}
	var err error
	if w.has, err = w.list(ctx, w.targets); err != nil {
		return err
	}
	if err := w.adopt(ctx); err != nil {
		return err
	}
	step := w.h.paceSweep()
	for after, more := id.MakeSegment(w.layout, 0), true; more; {
		if warden, err := w.h.beWarden(ctx); err != nil || !warden {
			return errors.Join(err, fmt.Errorf("rebuild layout %d: this host is no longer the warden", w.layout))
		}
		if err := step(ctx); err != nil {
			return err
		}
		reply, err := w.describe(ctx, after)
		if err != nil {
			return err
		}
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
			return err
		}
		if err := w.giveUpDeleted(ctx); err != nil {
			return err
		}
	}
	return w.giveUpDeleted(ctx) // what was about to go
}

// mustWait reports whether nodes that do not answer have what it takes: the segments' index,
// or fragments without which too few are left.
func (w *layoutRebuild) mustWait() bool {
	several, ok := w.h.node.(datanode.Several)
	if !ok {
		return false
	}
	list := w.h.layouts().Lists[w.layout]
	if !several.Answers(list[0]) {
		return true
	}
	silent, lost := 0, 0
	for _, s := range list {
		switch {
		case !several.Answers(s):
			silent++
		case w.serving[s] == 0 || slices.Contains(w.targets, s):
			lost++
		}
	}
	m := w.h.layouts().Geometry.M
	return silent+lost > m && lost <= m
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
	for _, t := range w.targets {
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
				err := step(ctx)
				if err == nil {
					err = w.h.paceRebuild(ctx, int64(d.FragmentBytes))
				}
				if err == nil {
					err = w.restore(ctx, &d)
				}
				if err != nil {
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
	x := &w.h.rebuild
	x.mu.Lock()
	defer x.mu.Unlock()
	bytes := fragments * int64(d.FragmentBytes)
	p := x.row.Pass
	p.Fragments += fragments
	p.Bytes += bytes
	p.FragmentsLeft, p.BytesLeft = max(p.FragmentsLeft-fragments, 0), max(p.BytesLeft-bytes, 0)
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
	w.outcome.Lost = append(w.outcome.Lost, lost)
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
// came behind the deletion. What a crash leaves of it the node finds at its next start.
func (w *layoutRebuild) giveUpDeleted(ctx context.Context) error {
	var going []id.Segment
	for part := range slices.Chunk(w.restored, datanode.SegmentsMax) {
		reply, err := w.h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: part})
		if err != nil {
			return err
		}
		for _, d := range reply.Segments {
			switch {
			case !d.Known:
				w.h.pool.Stripes.Discard(ctx, d.Segment)
			case d.State == datanode.StateDeleting:
				going = append(going, d.Segment)
			}
		}
	}
	w.restored = going
	return nil
}
