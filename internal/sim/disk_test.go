package sim

import (
	"errors"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// entry is what a map says of a block: which value, and where its chunk lies. Zeros lie
// nowhere.
type entry struct {
	tag, fp uint32
	segment id.Segment
	slot    int
}

// mapState is a map, as of a place in the log.
type mapState struct {
	head            [blocks]entry
	snaps           []snapState // in the order of their marks
	through, result id.Pos
}

type snapState struct {
	snap id.Snapshot
	at   [blocks]entry
}

func (m *mapState) clone() *mapState {
	c := *m
	c.snaps = slices.Clone(m.snaps)
	return &c
}

// snap returns a snapshot's blocks, nil if they are not in the map.
func (m *mapState) snap(s id.Snapshot) *[blocks]entry {
	for i := range m.snaps {
		if m.snaps[i].snap == s {
			return &m.snaps[i].at
		}
	}
	return nil
}

// apply changes a map as a result says.
func (m *mapState) apply(r *rec) {
	m.result = r.pos
	if r.patches != nil {
		for _, p := range r.patches {
			m.patch(p)
		}
		return
	}
	m.through = r.through
	for _, u := range r.updates {
		m.head[u.block] = u.entry
	}
	if r.mark != 0 {
		m.snaps = append(m.snaps, snapState{r.mark, m.head})
	}
}

// patch compares and sets, in whatever version names the old place.
func (m *mapState) patch(p patch) (found bool) {
	set := func(e *entry) {
		if e.segment == p.from.segment && e.slot == p.from.slot && e.fp == p.from.fp {
			e.segment, e.slot, found = p.to.segment, p.to.slot, true
		}
	}
	set(&m.head[p.block])
	for i := range m.snaps {
		set(&m.snaps[i].at[p.block])
	}
	return found
}

// layer is what was acknowledged and is not destaged, up to a mark.
type layer struct {
	has     [blocks]bool
	at      [blocks]entry
	through id.Pos
	mark    id.Snapshot
}

// disk is one that a host has opened.
type disk struct {
	h      *host
	d      id.Disk
	epoch  id.Epoch
	log    *logSet
	then   func(*disk, owner.Outcome) // of the opening
	closed bool
	// serves: the owner's machine has said so; draining: it gives the disk away.
	serves, draining bool

	m      *mapState
	layers []*layer // the last is written to
	ckpt   ckptRow
	// recording is a checkpoint that the registry may name.
	recording *ckptRow
	patched   id.Pos // the last result that patches
	// destaging is held where the map changes, saving where a checkpoint is made,
	// listing from a look-up or the making of lists to the answer.
	destaging, saving, listing lock
	passing                    lock
	fenced                     bool // the index
	seq                        uint64
	registered                 map[id.Segment]uint32 // since a pass began; nil: none is under way
	unsettled                  map[id.Snapshot]bool  // have a mark, and a row maybe
	holds                      map[id.Disk]bool      // clones whose chunks these lists hold; 0: one in the making
	base                       id.Disk
}

// open takes a disk's log over and replays it.
func (h *host) open(d id.Disk, e id.Epoch, then func(*disk, owner.Outcome)) {
	k := &disk{h: h, d: d, epoch: e, then: then, unsettled: make(map[id.Snapshot]bool), holds: make(map[id.Disk]bool)}
	h.disks[d] = k
	h.spawn(k, func(t *task) {
		if err := k.opening(t); err != nil {
			o := owner.Failed
			if errors.Is(err, errFenced) || errors.Is(err, errConflict) {
				o = owner.Overtaken
			}
			k.fail(o)
			return
		}
		h.w.count.Takeovers++
		h.spawn(k, k.destager)
		h.spawn(k, k.passer)
		then(k, owner.Done)
	})
}

func (k *disk) opening(t *task) error {
	h, w := k.h, k.h.w
	if h.opened[k.d] >= k.epoch { // an epoch is of one log set
		from, key := k.epoch, ownerKey{h.name, h.machine.Lease(), k.epoch}
		to, err := ask(t, w.reg.at, true, func() (id.Epoch, error) { return w.reg.renew(k.d, key) })
		if err != nil {
			return err
		}
		k.epoch = to
		h.step(owner.Renewed{Disk: k.d, From: from, To: to})
	}
	h.opened[k.d] = k.epoch
	var failed error
	k.takeOver(func(err error) {
		failed = err
		h.later(0, t.run)
	})
	t.wait()
	if failed != nil {
		return failed
	}
	return k.replay(t)
}

// replay reads the checkpoint and what the log has after it.
func (k *disk) replay(t *task) error {
	w, l, d, e := k.h.w, k.log, k.d, k.epoch
	var logs [datanode.Streams]stream
	for s := range logs {
		n := w.nodes[l.from[s]]
		boot := l.joined[n.number].boot
		var err error
		logs[s], err = fetch(t, &n.place, func() (stream, error) { return n.read(d, boot, e, datanode.Stream(s)) })
		if err != nil {
			return err
		}
		l.next[s] = logs[s].end()
		if n := len(logs[s].recs); n > 0 {
			l.last[s] = logs[s].recs[n-1]
		}
	}
	type answer struct {
		ckpt  ckptRow
		row   diskRow
		bases []id.Disk
	}
	a, err := fetch(t, w.reg.at, func() (a answer, err error) {
		a = answer{ckpt: w.reg.ckpts[d], row: w.reg.disks[d], bases: w.reg.bases(d)}
		return a, w.reg.guard(d, e)
	})
	if err == nil && (!a.row.there || a.row.removed) {
		err = errFenced
	}
	if err != nil {
		return err
	}
	k.m = &mapState{}
	if a.ckpt.at != 0 {
		object := a.ckpt.object
		state, err := fetch(t, w.index.at, func() (*mapState, error) {
			if s := w.index.find(object); s != nil {
				return s.ckpt, nil
			}
			return nil, errMissing
		})
		if errors.Is(err, errMissing) && w.reg.ckpts[d].object == object {
			w.fail("the checkpoint of disk %d, segment %d, is deleted", d, object)
		}
		if err != nil {
			return err
		}
		k.m = state.clone()
		if a.ckpt.cloneOf != 0 {
			k.m = &mapState{head: *state.snap(a.ckpt.cloneOf)}
		}
	}
	k.ckpt, k.base = a.ckpt, a.row.base
	for _, clone := range a.bases {
		k.holds[clone] = true
	}
	if e < w.truth[d].newest { // this host stood still meanwhile
		return errFenced
	}
	w.truth[d].found(w, k, &logs)
	return k.rebuild(&logs)
}

// rebuild brings the map and the layers to the end of the log.
func (k *disk) rebuild(logs *[datanode.Streams]stream) error {
	w := k.h.w
	results, ops := &logs[datanode.Results], &logs[datanode.Ops]
	if k.m.result >= results.end() || k.m.result+1 < results.first {
		w.fail("disk %d: the checkpoint has results up to %d, the log %d to %d", k.d, k.m.result, results.first, results.end()-1)
		return errMissing
	}
	for _, r := range results.recs[k.m.result+1-results.first:] {
		k.m.apply(r)
		if r.patches != nil {
			k.patched = r.pos
		}
	}
	if k.m.through >= ops.end() || k.m.through+1 < ops.first {
		w.fail("disk %d: the results cover operations up to %d, the log has %d to %d", k.d, k.m.through, ops.first, ops.end()-1)
		return errMissing
	}
	k.layers = []*layer{{}}
	for _, r := range ops.recs[k.m.through+1-ops.first:] {
		k.buffer(r)
	}
	truth := &w.truth[k.d]
	for b := range blocks {
		if got := k.read(b).tag; got != truth.now[b] {
			w.fail("epoch %d of disk %d replays %d in block %d, and %d was written", k.epoch, k.d, got, b, truth.now[b])
		}
	}
	w.whole(k.d, k.m)
	return nil
}

// buffer takes in a record that is in the log.
func (k *disk) buffer(r *rec) {
	if k.closed {
		return
	}
	l := k.layers[len(k.layers)-1]
	l.through = r.pos
	if r.mark != 0 {
		if k.h.w.flaw == markOutOfOrder && len(k.layers) == 1 && l.has == [blocks]bool{} {
			return
		}
		l.mark = r.mark
		k.layers = append(k.layers, &layer{})
		return
	}
	for b := r.first; b < r.first+r.n; b++ {
		l.has[b], l.at[b] = true, entry{tag: r.tag, fp: r.fp}
	}
}

// read returns the newest version of a block.
func (k *disk) read(b int) entry {
	for i := len(k.layers) - 1; i >= 0; i-- {
		if k.layers[i].has[b] {
			return k.layers[i].at[b]
		}
	}
	return k.m.head[b]
}
