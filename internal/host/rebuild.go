package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/longlock"
	"plinth/internal/rebuild"
	"plinth/internal/reclaim"
)

const (
	keyRebuild = "rebuild"
	// restorePrefix begins the keys of rows of hosts that take part (rebuild.Work).
	restorePrefix = "restore/"
	// rebuildLookTime is how often the warden looks whether a spindle is another drive, and
	// hosts that take part whether there is a warden; rebuildReadTime how often others do.
	rebuildLookTime = 3 * time.Second
	rebuildReadTime = 15 * time.Second
	// rebuildOfferTime is what hosts have to take part before the first layouts are given out: or
	// else the warden had those of a small pool itself.
	rebuildOfferTime = time.Second
	// rebuildStepTime is how often hosts look how far they are while they restore.
	rebuildStepTime = time.Second
	// rebuildSaveTime is how much of what is told a crash makes old; what is restored
	// stays so.
	rebuildSaveTime  = 5 * time.Second
	rebuildRetryTime = 10 * time.Second
)

// RebuildStatus says how far what spindles have lost is restored.
type RebuildStatus struct {
	// RateBytes bounds, per second, what is read from or written to one spindle by all hosts
	// together; 0: it is not bounded.
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
	// Hosts are those that have, or had, a part in it.
	Hosts []RebuildHost `json:"hosts,omitempty"`
}

// RebuildHost is a host's part in a rebuild.
type RebuildHost struct {
	Name string `json:"name"`
	// Layouts are those that it has under way.
	Layouts int `json:"layouts"`
	// Fragments and Bytes (of their data) are what it has restored.
	Fragments int64 `json:"fragments"`
	Bytes     int64 `json:"bytes"`
}

// HostsAtIt counts the hosts that have layouts under way.
func (s *RebuildStatus) HostsAtIt() (n int) {
	for _, part := range s.Hosts {
		if part.Layouts > 0 {
			n++
		}
	}
	return n
}

// rebuilding is the state of the rebuild. The loop alone uses what mu does not guard.
type rebuilding struct {
	wake  chan struct{} // something has changed
	asked time.Time     // when it was looked last whether this host may be the warden
	lead  *leading      // what it does as the warden
	part  *partaking    // what it does for another one
	crew  crew

	paceMu longlock.Mutex
	pacer  reclaim.Pacer
	// sharing is how many hosts share the rate.
	sharing atomic.Int64

	mu sync.Mutex
	// row is the warden's own, elsewhere as it was told last; loaded: since this host leads.
	row    rebuild.Row
	loaded bool
	told   []byte // of keyRebuild, by the watch
	waits  []id.Spindle
}

// rebuildLoop restores what spindles have lost: in the host that is the warden, which gives
// layouts to all that take part, and in those.
func (h *Host) rebuildLoop() {
	defer h.work.Done()
	x := &h.rebuild
	defer x.crew.end()
	defer h.stopSharing()
	x.pacer.Rate = func() int64 { return rebuildShare(h.opts.RebuildRate, x.sharing.Load()) }
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-h.life.Done():
			if l := x.lead; l != nil && l.changed {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_ = h.saveRebuild(ctx, l) // or else some of it is looked at again
			}
			return
		case <-x.wake:
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

// rebuildShare is what one of several hosts may read from or write to each spindle, of a rate for
// all of them together; 0: it is not bounded.
func rebuildShare(rate, hosts int64) int64 {
	if rate <= 0 {
		return 0
	}
	return max(rate/max(hosts, 1), 1)
}

// rebuildNext does the next step of the rebuild and returns how long to wait after it, unless
// something changes.
func (h *Host) rebuildNext(ctx context.Context) (time.Duration, error) {
	x := &h.rebuild
	t := h.owning.term.Load()
	if t == nil || !t.valid() {
		h.stopSharing()
		return rebuildLookTime, nil
	}
	if !h.isWarden(t) {
		every := rebuildReadTime
		if x.part != nil {
			every = rebuildLookTime // the warden may be dead
		}
		if time.Since(x.asked) < every {
			return h.partake(ctx, t)
		}
		x.asked = time.Now()
		if warden, err := h.beWarden(ctx); err != nil || !warden {
			wait, perr := h.partake(ctx, t)
			return wait, errors.Join(err, perr)
		}
	}
	return h.leadRebuild(ctx, t)
}

// stopSharing ends what this host does for a rebuild, as the warden or for one.
func (h *Host) stopSharing() {
	x := &h.rebuild
	if l := x.lead; l != nil {
		l.rows.stop()
	}
	if p := x.part; p != nil {
		p.rows.stop()
	}
	x.lead, x.part = nil, nil
	x.crew.reset()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.loaded, x.waits = false, nil
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

// viewRebuild is the pool as this host sees it when these spindles serve.
func (h *Host) viewRebuild(serving rebuild.Serving) *rebuild.View {
	view := &rebuild.View{Layouts: h.layouts(), Serving: serving}
	if several, ok := h.node.(datanode.Several); ok {
		view.Answers = several.Answers
	}
	return view
}

// rebuildBusy reports whether the rebuild has something to do. This host is the warden.
func (h *Host) rebuildBusy(ctx context.Context) (bool, error) {
	serving, err := h.servingSpindles(ctx)
	if err != nil {
		return false, err
	}
	x := &h.rebuild
	value, _, err := h.catalog.get(ctx, keyRebuild)
	if err != nil {
		return false, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.loaded { // this host has only become the warden: what the last one said counts
		row := h.parseRebuild(value)
		return row.Busy(h.layouts(), serving), nil
	}
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
	for _, name := range slices.Sorted(maps.Keys(p.Hosts)) {
		part := p.Hosts[name]
		out.Hosts = append(out.Hosts, RebuildHost{name, part.Layouts, part.Fragments, part.Bytes})
	}
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
