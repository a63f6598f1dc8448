package sim

import (
	"maps"
	"slices"
	"time"

	"plinth/internal/id"
	"plinth/internal/owner"
)

// passer passes over the disk's map from time to time.
func (k *disk) passer(t *task) {
	for {
		t.sleep(t.h.w.Span(500*time.Millisecond, 3*time.Second))
		if !k.h.w.rest {
			_ = k.pass(t)
		}
	}
}

// pass is a scan: it tells the index what the disk needs, and gives up the rest.
type pass struct {
	k     *disk
	held  []id.Segment
	moves map[id.Segment][]move
	live  map[id.Segment]uint32
	m     *mapState
	marks map[id.Snapshot]bool // unsettled, after the map was looked at
}

func (k *disk) pass(t *task) error {
	k.passing.take(t)
	defer k.passing.release(t)
	if err := k.savePatches(t); err != nil {
		return err
	}
	p := &pass{k: k, moves: make(map[id.Segment][]move), live: make(map[id.Segment]uint32), marks: make(map[id.Snapshot]bool)}
	if err := p.begin(t); err != nil {
		return err
	}
	defer func() { k.registered = nil }()
	r, d := k.h.w.reg, k.d
	type answer struct {
		there map[id.Snapshot]bool
		bases []id.Disk
	}
	known := slices.Sorted(maps.Keys(k.holds)) // what is told is older than a clone that is made meanwhile
	a, err := ask(t, r.at, true, func() (answer, error) { return answer{r.exists(d), r.bases(d)}, nil })
	if err != nil {
		return err
	}
	if k.h.w.flaw == pinForgotten {
		known = slices.Sorted(maps.Keys(k.holds))
	}
	for _, clone := range known {
		if clone != 0 && !slices.Contains(a.bases, clone) {
			delete(k.holds, clone)
		}
	}
	drop := func(s snapState) bool { return !a.there[s.snap] && !p.marks[s.snap] }
	scanned := slices.Clone(p.m.snaps)
	p.m.snaps = slices.DeleteFunc(p.m.snaps, drop)
	patches := p.scan()
	if err := p.patch(t, patches); err != nil {
		return err
	}
	if err := k.savePatches(t); err != nil {
		return err
	}
	if err := p.state(t); err != nil {
		return err
	}
	k.m.snaps = slices.DeleteFunc(k.m.snaps, func(s snapState) bool {
		return drop(s) && slices.ContainsFunc(scanned, func(o snapState) bool { return o.snap == s.snap })
	})
	k.h.w.count.Passes++
	if k.base == 0 {
		return nil
	}
	e := k.epoch
	if _, err := ask(t, r.at, true, func() (struct{}, error) { return struct{}{}, r.independent(d, e) }); err == nil {
		k.base = 0
	}
	return nil
}

// savePatches makes a checkpoint if the newest has not got all patches.
func (k *disk) savePatches(t *task) error {
	if k.patched <= k.ckpt.result || k.h.w.flaw == passTooSoon {
		return nil
	}
	return k.checkpoint(t)
}

// begin looks at the lists, the moves and the map, in this order, while no round and no
// checkpoint is under way.
func (p *pass) begin(t *task) (err error) {
	k := p.k
	k.destaging.take(t)
	defer k.destaging.release(t)
	k.saving.take(t)
	defer k.saving.release(t)
	if err := k.under(t); err != nil {
		return err
	}
	x, d, e := k.h.w.index, k.d, k.epoch
	if p.held, err = ask(t, x.at, true, func() ([]id.Segment, error) { return x.segmentsOf(d, e) }); err != nil {
		return err
	}
	all, err := ask(t, x.at, true, func() ([]forwarding, error) { return x.forwards(), nil })
	if err != nil {
		return err
	}
	for _, f := range all {
		p.moves[f.from] = f.moves
	}
	if k.ckpt.at != 0 {
		p.live[k.ckpt.object] = 1
	}
	if k.recording != nil {
		p.live[k.recording.object] = 1
	}
	p.m = k.m.clone()
	for s := range k.unsettled {
		p.marks[s] = true
	}
	k.registered = make(map[id.Segment]uint32)
	return nil
}

// follow returns where a chunk is.
func (p *pass) follow(e entry) entry {
	for range len(p.moves) {
		i := slices.IndexFunc(p.moves[e.segment], func(m move) bool { return m.slot == e.slot })
		if i < 0 {
			break
		}
		m := p.moves[e.segment][i]
		e.segment, e.slot = m.segment, m.to
	}
	return e
}

// scan notes what somebody sees, and returns what has moved.
func (p *pass) scan() (patches []patch) {
	versions := []*[blocks]entry{&p.m.head}
	for i := range p.m.snaps {
		versions = append(versions, &p.m.snaps[i].at)
	}
	for _, v := range versions {
		for b, e := range v {
			if e.fp == 0 {
				continue
			}
			to := p.follow(e)
			p.live[to.segment] |= 1 << to.slot
			if to != e {
				patches = append(patches, patch{b, e, to})
			}
		}
	}
	return patches
}

// patch makes the map name the new places, as far as it names the old ones still.
func (p *pass) patch(t *task, patches []patch) error {
	k := p.k
	k.destaging.take(t)
	defer k.destaging.release(t)
	trial := k.m.clone()
	patches = slices.DeleteFunc(patches, func(q patch) bool { return !trial.patch(q) })
	if len(patches) == 0 {
		return nil
	}
	r := &rec{patches: patches}
	if err := k.result(t, r); err != nil {
		return err
	}
	k.m.apply(r)
	k.patched = r.pos
	k.h.w.count.Patches += len(patches)
	return nil
}

// state tells the index what the disk needs.
func (p *pass) state(t *task) error {
	k := p.k
	segments := slices.Clone(p.held)
	for s := range p.live {
		segments = append(segments, s)
	}
	slices.Sort(segments)
	return k.setLists(t, slices.Compact(segments), p.live)
}

func (k *disk) setLists(t *task, segments []id.Segment, live map[id.Segment]uint32) error {
	k.listing.take(t)
	defer k.listing.release(t)
	if len(k.holds) > 0 && k.h.w.flaw != pinIgnored {
		return errConflict
	}
	if err := k.under(t); err != nil {
		return err
	}
	var lists []listed
	for _, s := range segments {
		bits := live[s]
		if k.h.w.flaw != passForgets {
			bits |= k.registered[s]
		}
		lists = append(lists, listed{s, bits})
	}
	k.seq++
	x, d, e, seq := k.h.w.index, k.d, k.epoch, k.seq
	_, err := ask(t, x.at, false, func() (struct{}, error) { return struct{}{}, x.setLists(d, e, seq, lists) })
	return err
}

// snapshot makes a mark, on stable media, and then a row.
func (k *disk) snapshot(t *task, s id.Snapshot) error {
	r, d, e := k.h.w.reg, k.d, k.epoch
	k.unsettled[s] = true
	row := func() error {
		_, err := ask(t, r.at, true, func() (struct{}, error) { return struct{}{}, r.snapshot(d, e, s) })
		return err
	}
	if k.h.w.flaw == rowBeforeMark {
		if err := row(); err != nil {
			return err
		}
	}
	if err := k.log.do(t, &logOp{recs: []*rec{{mark: s}}}); err != nil {
		return err
	}
	if err := k.log.sync(t); err != nil {
		return err
	}
	err := row()
	if err == nil {
		delete(k.unsettled, s) // or it stays so for as long as the disk is open
		k.h.w.count.Snapshots++
	}
	return err
}

// clone makes a disk that begins as a snapshot of this one: its lists are held, then
// its checkpoint is read, then the clone is recorded.
func (k *disk) clone(t *task, s id.Snapshot) error {
	k.holds[0] = true
	defer delete(k.holds, 0)
	if err := k.destage(t); err != nil {
		return err
	}
	if err := k.checkpoint(t); err != nil {
		return err
	}
	k.saving.take(t)
	defer k.saving.release(t)
	if k.ckpt.at == 0 || k.recording != nil || k.ckpt.cloneOf != 0 {
		return errConflict
	}
	r, d, e, parent := k.h.w.reg, k.d, k.epoch, k.ckpt
	object := k.h.w.index.find(parent.object)
	if object == nil || object.ckpt.snap(s) == nil {
		return errConflict // it is not in there yet
	}
	n, err := ask(t, r.at, true, func() (id.Disk, error) { return r.clone(d, e, s, parent) })
	switch err {
	case nil:
		k.holds[n] = true
		k.h.w.hosts[k.h.w.Rand.IntN(hostCount)].want(n)
	case errLate: // nobody knows: another opening finds out
		k.fail(owner.Failed)
	}
	return err
}

func (h *host) want(d id.Disk) { h.later(0, func() { h.step(owner.Want{Disk: d}) }) }
