package host

import (
	"context"
	"errors"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rebuild"
)

// leading is what the warden knows of the rebuild that it leads.
type leading struct {
	term  *term
	guard uint64 // revision of keyWarden: nobody has followed as long as it is that
	share *rebuild.Share
	// own is this host's part, of which there is no row; nil while no pass goes on.
	own  *rebuild.Work
	rows *rowWatch // those of others; nil while no pass goes on, or for a sole host
	has  map[string]*hostRow
	// put is the row as it was put last, saved when; changed: it may have changed since;
	// broken: what is in memory is not to be gone on with.
	put     []byte
	saved   time.Time
	changed bool
	broken  bool
	// counted: what is left was counted since something changed, or begun to be; counting
	// until counts, with room for one, has what came of it. After an error it waits for recount.
	counted, counting bool
	counts            chan error
	recount           time.Time
}

// hostRow is a row of another host, as it is.
type hostRow struct {
	work     *rebuild.Work // nil: it cannot be read
	revision uint64
	lease    datanode.LeaseID
}

// leadRebuild does a step of the warden, and returns how long to wait until the next one.
func (h *Host) leadRebuild(ctx context.Context, t *term) (time.Duration, error) {
	x := &h.rebuild
	if x.lead == nil || x.lead.term != t || x.lead.broken {
		if ok, err := h.beginLead(ctx, t); err != nil || !ok {
			return rebuildLookTime, err
		}
	}
	l := x.lead
	// What was done is read before the spindles are looked at: they served until then.
	if l.own != nil {
		x.crew.follow(l.own, t)
	}
	rows, known := l.read()
	serving, err := h.servingSpindles(ctx)
	if err != nil {
		return 0, err
	}
	if err := h.lookRebuild(ctx, l, serving); err != nil {
		return 0, err
	}
	if !h.beginPass(l) {
		return rebuildLookTime, nil
	}
	if since := time.Since(l.own.Began); !h.opts.Sole && (!known || since < rebuildOfferTime) {
		return max(rebuildOfferTime-since, rebuildOfferTime/2), nil
	}
	if err := h.stepRebuild(ctx, l, rows, serving); err != nil {
		return 0, err
	}
	h.countOnce(l, serving)
	if l.own != nil && len(l.own.Tasks) > 0 || l.others() {
		return rebuildStepTime, nil
	}
	return rebuildLookTime, nil
}

// others reports whether other hosts have tasks.
func (l *leading) others() bool {
	for _, row := range l.has {
		if row.work != nil && len(row.work.Tasks) > 0 {
			return true
		}
	}
	return false
}

// beginLead has this host lead, from what the registry has. It reports false if another host is
// the warden after all.
func (h *Host) beginLead(ctx context.Context, t *term) (bool, error) {
	x := &h.rebuild
	h.stopSharing()
	entry, err := h.catalog.getEntry(ctx, keyWarden)
	if err != nil || entry == nil || entry.Lease != t.lease {
		return false, err
	}
	if !h.opts.Sole {
		err = h.dropRow(ctx)
	}
	if err := errors.Join(err, h.loadRebuild(ctx)); err != nil {
		return false, err
	}
	x.lead = &leading{term: t, guard: entry.Revision, share: rebuild.NewShare(), counts: make(chan error, 1)}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.loaded = true
	return true, nil
}

// beginPass has what belongs to the pass that goes on, and reports whether one does.
func (h *Host) beginPass(l *leading) bool {
	x := &h.rebuild
	x.mu.Lock()
	running, pass := x.row.Running(), time.Time{}
	if running {
		pass = x.row.Pass.Began
	}
	x.mu.Unlock()
	if l.own != nil && (!running || !l.own.Pass.Equal(pass)) {
		x.crew.reset()
		l.rows.stop()
		l.own, l.rows = nil, nil
	}
	if running && l.own == nil {
		l.own = &rebuild.Work{Pass: pass, Began: time.Now()}
		l.share, l.has, l.counted = rebuild.NewShare(), make(map[string]*hostRow), false
		if !h.opts.Sole {
			l.rows = h.watchRows(restorePrefix, "")
		}
	}
	return running
}

// read returns the rows of other hosts as they are now, and whether they are known.
func (l *leading) read() (map[string]datanode.RegistryEntry, bool) {
	if l.rows == nil {
		return nil, false
	}
	return l.rows.all()
}

// stepRebuild takes note of what hosts have done and gives out what is left.
func (h *Host) stepRebuild(ctx context.Context, l *leading, rows map[string]datanode.RegistryEntry, serving rebuild.Serving) error {
	x := &h.rebuild
	view := h.viewRebuild(serving)
	now := time.Now()
	x.mu.Lock()
	h.seeHosts(now, l, rows)
	l.share.See(now, &x.row, h.opts.Name, l.own)
	restored, sharing := len(x.row.Pass.Restored), x.row.Pass.Sharing()
	changed, events := l.share.Step(now, &x.row, view)
	x.waits = x.row.Waits(view.Layouts, serving)
	pass := x.row.Pass.Clone()
	x.sharing.Store(int64(pass.Sharing()))
	x.mu.Unlock()
	l.changed = true
	h.sayRebuild(pass, restored, events)
	urgent := pass.Ended != nil || len(pass.Restored) > restored || pass.Sharing() > sharing
	if urgent || time.Since(l.saved) >= rebuildSaveTime {
		// Hosts keep to their share of the rate before another one gets any.
		if err := h.saveRebuild(ctx, l); err != nil {
			return err
		}
	}
	l.own = l.share.Work(h.opts.Name)
	x.crew.follow(l.own, l.term)
	for _, name := range changed {
		if name != h.opts.Name {
			h.putHost(ctx, l, name)
		}
	}
	return nil
}

// seeHosts takes the rows of other hosts, under mu.
func (h *Host) seeHosts(now time.Time, l *leading, rows map[string]datanode.RegistryEntry) {
	for name, e := range rows {
		has := l.has[name]
		if name == h.opts.Name || has != nil && has.revision >= e.Revision {
			continue
		}
		has = &hostRow{revision: e.Revision, lease: e.Lease}
		var err error
		if has.work, err = rebuild.ParseWork(e.Value); err != nil {
			h.log.Warn("a host takes no part in the rebuild", "host", name, "err", err)
			l.share.Gone(name)
		} else {
			l.share.See(now, &h.rebuild.row, name, has.work)
		}
		l.has[name] = has
	}
	for name := range l.has {
		if _, there := rows[name]; !there {
			delete(l.has, name)
			l.share.Gone(name)
		}
	}
}

// putHost puts another host's row as it shall be. If that fails what is new in it was not given.
func (h *Host) putHost(ctx context.Context, l *leading, name string) {
	x, has, work := &h.rebuild, l.has[name], l.share.Work(name)
	if has == nil || work == nil {
		return
	}
	value, err := work.Marshal()
	if err == nil {
		key := restoreKey(name)
		var revision uint64
		revision, err = h.catalog.decide(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: keyWarden, Revision: l.guard}, {Key: key, Revision: has.revision}},
			Puts:     []datanode.Put{{Key: key, Value: value, Lease: has.lease}},
		}, key, value)
		if err == nil {
			has.work, has.revision = work, revision
			return
		}
	}
	if !errors.Is(err, datanode.ErrConflict) && !errors.Is(err, datanode.ErrLeaseLost) {
		h.log.Warn("a host was not told what to restore, will retry", "host", name, "err", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	l.share.See(time.Now(), &x.row, name, has.work)
}

// lookRebuild looks whether there is anything new to restore.
func (h *Host) lookRebuild(ctx context.Context, l *leading, serving rebuild.Serving) error {
	x := &h.rebuild
	x.mu.Lock()
	ran := x.row.Running()
	changed := x.row.Look(time.Now(), h.layouts(), serving)
	x.waits = x.row.Waits(h.layouts(), serving)
	runs, spindles := x.row.Running(), spindlesOf(x.row.Pass)
	x.mu.Unlock()
	if !changed {
		return nil
	}
	l.counted = false
	if runs {
		text := "rebuild goes on"
		if !ran {
			text = "rebuild begins: what these spindles have lost is restored"
		}
		h.log.Info(text, "spindles", spindles)
	}
	return h.saveRebuild(ctx, l)
}

// sayRebuild logs what a step has brought.
func (h *Host) sayRebuild(pass *rebuild.Pass, restored int, events []rebuild.Event) {
	for _, e := range events {
		h.log.Warn("a layout that is being restored was taken back from a host", "host", e.Host, "layout", e.Layout, "why", e.What)
	}
	for _, s := range pass.Restored[restored:] {
		h.log.Info("a spindle has again all that it should have", "spindle", s)
	}
	if pass.Ended == nil {
		return
	}
	level := h.log.Info
	if pass.LostCount() > 0 {
		level = h.log.Error
	}
	level("rebuild has ended", "spindles", pass.Restored, "fragments", pass.Fragments, "bytes", pass.Bytes,
		"lost_segments", pass.LostCount(), "hosts", len(pass.Hosts), "took", pass.Ended.Sub(pass.Began))
}

// countOnce has what is left counted, one time at once, beside the loop.
func (h *Host) countOnce(l *leading, serving rebuild.Serving) {
	select {
	case err := <-l.counts:
		if l.counting = false; err != nil && h.life.Err() == nil {
			l.counted, l.recount = false, time.Now().Add(rebuildRetryTime)
			h.log.Warn("what is left of the rebuild is not known, will retry", "err", err)
		}
	default:
	}
	if l.counted || l.counting || time.Now().Before(l.recount) || !h.allAnswer() {
		return
	}
	l.counted, l.counting = true, true
	done := l.counts
	h.work.Go(func() { done <- h.countRebuild(h.life, serving) })
}

// countRebuild estimates what is left: what is in the index for the spindles that are
// restored, and not on them by number.
func (h *Host) countRebuild(ctx context.Context, serving rebuild.Serving) error {
	x := &h.rebuild
	x.mu.Lock()
	before := x.row.Pass.Clone()
	x.mu.Unlock()
	st, err := h.node.Status(ctx)
	if err != nil || before == nil {
		return err
	}
	fragments, bytes, err := h.countFragments(ctx, spindlesOf(before))
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.row.Pass
	if !x.loaded || !x.row.Running() || !p.Began.Equal(before.Began) {
		return nil
	}
	p.FragmentsLeft, p.BytesLeft = 0, 0
	for _, s := range st.Spindles {
		if want := fragments[s.Spindle]; want > 0 && serving[s.Spindle] != 0 {
			left := max(want-s.Fragments, 0)
			p.FragmentsLeft += left
			p.BytesLeft += bytes[s.Spindle] / want * left
		}
	}
	p.FragmentsLeft = max(p.FragmentsLeft-(p.Fragments-before.Fragments), 0)
	p.BytesLeft = max(p.BytesLeft-(p.Bytes-before.Bytes), 0)
	return nil
}

// countFragments counts what spindles should have, and its bytes.
func (h *Host) countFragments(ctx context.Context, spindles []id.Spindle) (fragments, bytes map[id.Spindle]int64, err error) {
	fragments, bytes = make(map[id.Spindle]int64), make(map[id.Spindle]int64)
	step := h.paceSweep()
	for after, more := id.Segment(0), true; more; {
		reply, err := h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
		if err != nil {
			return nil, nil, err
		}
		for _, d := range reply.Segments {
			after = d.Segment
			if int(after.Layout()) >= len(h.layouts().Lists) || d.State == datanode.StateDeleting {
				continue
			}
			for _, s := range h.layouts().Lists[after.Layout()] {
				if slices.Contains(spindles, s) {
					fragments[s]++
					bytes[s] += int64(d.FragmentBytes)
				}
			}
		}
		if more = reply.More && len(reply.Segments) > 0; more {
			if err := step(ctx); err != nil {
				return nil, nil, err
			}
		}
	}
	return fragments, bytes, nil
}
