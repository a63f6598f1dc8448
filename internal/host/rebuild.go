package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/longlock"
	"plinth/internal/rebuild"
	"plinth/internal/reclaim"
)

const (
	keyRebuild = "rebuild"
	// rebuildLookTime is how often the warden looks whether a spindle is another drive,
	// rebuildReadTime how often others read what it says of that.
	rebuildLookTime = 3 * time.Second
	rebuildReadTime = 15 * time.Second
	// rebuildSaveTime is how much of what is told a crash makes old; what is restored
	// stays so.
	rebuildSaveTime  = 5 * time.Second
	rebuildRetryTime = 10 * time.Second
)

// RebuildStatus says how far what spindles have lost is restored.
type RebuildStatus struct {
	// RateBytes bounds, per second, what is read from or written to one spindle; 0: it
	// is not bounded.
	RateBytes int64 `json:"rate_bytes"`
	// Spindles are those that are being restored, Restored those that were in the pass.
	Spindles []id.Spindle `json:"spindles,omitempty"`
	Restored []id.Spindle `json:"restored,omitempty"`
	// Began and Ended are of the newest pass; nil: there was none, or it goes on.
	Began *time.Time `json:"began,omitempty"`
	Ended *time.Time `json:"ended,omitempty"`
	// Fragments and Bytes (of their data) were restored, FragmentsLeft and BytesLeft
	// are to be: estimates.
	Fragments     int64 `json:"fragments"`
	Bytes         int64 `json:"bytes"`
	FragmentsLeft int64 `json:"fragments_left"`
	BytesLeft     int64 `json:"bytes_left"`
	// WaitsFor are the spindles that do not serve, without which it does not go on.
	WaitsFor []id.Spindle `json:"waits_for,omitempty"`
	// LostSegments cannot be restored as things are; Lost names some.
	LostSegments int64          `json:"lost_segments"`
	Lost         []rebuild.Lost `json:"lost,omitempty"`
}

// rebuilding is the state of the rebuild. The loop alone uses what mu does not guard.
type rebuilding struct {
	loaded  bool
	counted bool // what is left
	saved   time.Time
	changed bool

	paceMu longlock.Mutex
	pacer  reclaim.Pacer

	mu    sync.Mutex
	row   rebuild.Row
	waits []id.Spindle
}

// rebuildLoop restores what spindles have lost, in the host that is the warden.
func (h *Host) rebuildLoop() {
	defer h.work.Done()
	h.rebuild.pacer.Rate = func() int64 { return max(h.opts.RebuildRate, 0) }
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-h.life.Done():
			if h.rebuild.changed {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_ = h.saveRebuild(ctx) // or else some of it is looked at again
			}
			return
		case <-timer.C:
		}
		wait, err := h.rebuildNext(h.life)
		if err != nil && h.life.Err() == nil {
			h.log.Error("rebuild failed, will retry", "err", err)
			wait = rebuildRetryTime
		}
		timer.Reset(wait)
	}
}

// rebuildNext does the next step of the rebuild and returns how long to wait after it.
func (h *Host) rebuildNext(ctx context.Context) (time.Duration, error) {
	x := &h.rebuild
	warden, err := h.beWarden(ctx)
	if err != nil {
		return 0, err
	}
	if !warden || !x.loaded {
		x.loaded, x.changed, x.counted = warden, false, false
		if err := h.loadRebuild(ctx); err != nil {
			x.loaded = false
			return 0, err
		}
		if !warden {
			return rebuildReadTime, nil
		}
	}
	serving, err := h.servingSpindles(ctx)
	if err != nil {
		return 0, err
	}
	if err := h.lookRebuild(ctx, serving); err != nil {
		return 0, err
	}
	layout, targets, ok := x.row.Next(h.layouts(), serving)
	if !ok {
		return rebuildLookTime, nil
	}
	if !x.counted && h.allAnswer() {
		if err := h.countRebuild(ctx, serving); err != nil {
			return 0, err
		}
		x.counted = true
	}
	w := &layoutRebuild{h: h, layout: layout, targets: targets, serving: serving}
	if err := w.run(ctx); err != nil {
		return 0, err
	}
	if serving, err = h.servingSpindles(ctx); err != nil {
		return 0, err
	}
	return 0, h.doneRebuild(ctx, w, serving)
}

// allAnswer reports whether all data nodes do, as of the last status: a walk through all
// segments needs every index.
func (h *Host) allAnswer() bool {
	several, ok := h.node.(datanode.Several)
	return !ok || !slices.ContainsFunc(h.layouts().Spindles(), func(s id.Spindle) bool { return !several.Answers(s) })
}

func (h *Host) servingSpindles(ctx context.Context) (rebuild.Serving, error) {
	st, err := h.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	return rebuild.ServingOf(st.Spindles), nil
}

// lookRebuild looks whether there is anything new to restore.
func (h *Host) lookRebuild(ctx context.Context, serving rebuild.Serving) error {
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
	x.counted = false
	if runs {
		text := "rebuild goes on"
		if !ran {
			text = "rebuild begins: what these spindles have lost is restored"
		}
		h.log.Info(text, "spindles", spindles)
	}
	return h.saveRebuild(ctx)
}

// doneRebuild takes note of a layout that was gone through.
func (h *Host) doneRebuild(ctx context.Context, w *layoutRebuild, serving rebuild.Serving) error {
	x := &h.rebuild
	x.mu.Lock()
	before := len(x.row.Pass.Restored)
	x.row.Done(time.Now(), h.layouts(), w.layout, w.targets, serving, w.outcome)
	x.waits = x.row.Waits(h.layouts(), serving)
	pass := x.row.Pass.Clone()
	x.mu.Unlock()
	x.changed = true
	for _, s := range pass.Restored[before:] {
		h.log.Info("a spindle has again all that it should have", "spindle", s)
	}
	if pass.Ended != nil {
		level := h.log.Info
		if pass.LostCount() > 0 {
			level = h.log.Error
		}
		level("rebuild has ended", "spindles", pass.Restored, "fragments", pass.Fragments, "bytes", pass.Bytes,
			"lost_segments", pass.LostCount(), "took", pass.Ended.Sub(pass.Began))
	}
	if pass.Ended == nil && before == len(pass.Restored) && time.Since(x.saved) < rebuildSaveTime {
		return nil
	}
	return h.saveRebuild(ctx)
}

// countRebuild estimates what is left: what is in the index for the spindles that are
// restored, and not on them by number.
func (h *Host) countRebuild(ctx context.Context, serving rebuild.Serving) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	x := &h.rebuild
	x.mu.Lock()
	spindles := spindlesOf(x.row.Pass)
	x.mu.Unlock()
	fragments, bytes := make(map[id.Spindle]int64), make(map[id.Spindle]int64)
	step := h.paceSweep()
	for after, more := id.Segment(0), true; more; {
		reply, err := h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
		if err != nil {
			return err
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
				return err
			}
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.row.Pass
	p.FragmentsLeft, p.BytesLeft = 0, 0
	for _, s := range st.Spindles {
		if want := fragments[s.Spindle]; want > 0 && serving[s.Spindle] != 0 {
			left := max(want-s.Fragments, 0)
			p.FragmentsLeft += left
			p.BytesLeft += bytes[s.Spindle] / want * left
		}
	}
	x.changed = true
	return nil
}

// rebuildBusy reports whether the rebuild has something to do. This host is the warden.
func (h *Host) rebuildBusy(ctx context.Context) (bool, error) {
	serving, err := h.servingSpindles(ctx)
	if err != nil {
		return false, err
	}
	x := &h.rebuild
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.row.Busy(h.layouts(), serving), nil
}

// rebuilding returns the spindles that are being rebuilt.
func (h *Host) rebuilding() []id.Spindle {
	h.rebuild.mu.Lock()
	defer h.rebuild.mu.Unlock()
	return spindlesOf(h.rebuild.row.Pass)
}

func spindlesOf(p *rebuild.Pass) (out []id.Spindle) {
	if p != nil {
		for s := range p.Spindles {
			out = append(out, s)
		}
		slices.Sort(out)
	}
	return out
}

func (h *Host) loadRebuild(ctx context.Context) error {
	value, _, err := h.catalog.get(ctx, keyRebuild)
	if err != nil {
		return err
	}
	var row rebuild.Row
	if value != nil {
		if err := json.Unmarshal(value, &row); err != nil || row.Version != rebuild.RowVersion {
			// Without it nobody knows which spindles are whole: all are gone through.
			h.log.Warn("cannot read how far the rebuild was, all spindles are looked at", "version", row.Version, "err", err)
			row = rebuild.Row{Version: rebuild.RowVersion, Whole: make(map[id.Spindle]uint64)}
		}
	}
	x := &h.rebuild
	x.mu.Lock()
	defer x.mu.Unlock()
	x.row = row
	return nil
}

func (h *Host) saveRebuild(ctx context.Context) error {
	x := &h.rebuild
	x.mu.Lock()
	value, err := json.Marshal(&x.row)
	x.mu.Unlock()
	if err != nil {
		return err
	}
	err = h.catalog.commit(ctx, &datanode.RegistryTxn{Puts: []datanode.Put{{Key: keyRebuild, Value: value}}})
	if err != nil {
		x.loaded = false // what the registry has goes on
		return fmt.Errorf("save how far the rebuild is: %w", err)
	}
	x.saved, x.changed = time.Now(), false
	return nil
}

func (h *Host) rebuildStatus() RebuildStatus {
	x := &h.rebuild
	x.mu.Lock()
	defer x.mu.Unlock()
	out := RebuildStatus{RateBytes: max(h.opts.RebuildRate, 0)}
	p := x.row.Pass.Clone()
	if p == nil {
		return out
	}
	out.Spindles, out.Restored, out.Began, out.Ended, out.WaitsFor = spindlesOf(p), p.Restored, &p.Began, p.Ended, slices.Clone(x.waits)
	slices.Sort(out.Restored)
	out.Fragments, out.Bytes, out.FragmentsLeft, out.BytesLeft = p.Fragments, p.Bytes, p.FragmentsLeft, p.BytesLeft
	out.LostSegments, out.Lost = p.LostCount(), p.Lost
	return out
}

// warnings say which spindles are being restored, and what cannot be.
func (s *RebuildStatus) warnings() (out []string) {
	if len(s.Spindles) > 0 {
		text := fmt.Sprintf("spindles %v are being rebuilt: %d fragments are restored, about %d are left", s.Spindles, s.Fragments, s.FragmentsLeft)
		if len(s.WaitsFor) > 0 {
			text += fmt.Sprintf("; it waits for spindles %v", s.WaitsFor)
		}
		out = append(out, text)
	}
	if s.LostSegments > 0 {
		lost := s.Lost[0]
		out = append(out, fmt.Sprintf("%d segments could not be restored, among them %s, of disks %v (%s): plinth verify names disks and blocks",
			s.LostSegments, lost.Segment, lost.Disks, lost.What))
	}
	return out
}

// isAborting reports whether an error is not one segment's.
func isAborting(err error) bool {
	return !errors.Is(err, datanode.ErrCorrupt) && !errors.Is(err, datanode.ErrSpindle) && !errors.Is(err, datanode.ErrNotFound)
}
