package sim

import (
	"errors"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// destager stores what was acknowledged, and makes checkpoints.
func (k *disk) destager(t *task) {
	for {
		t.sleep(t.h.w.Span(100*time.Millisecond, 2*time.Second))
		if k.h.w.rest {
			continue
		}
		if k.h.w.Rand.IntN(5) == 0 {
			_ = k.checkpoint(t)
		} else {
			_ = k.destage(t)
		}
	}
}

// destage stores the oldest layer: in the log on stable media, looked up or packed,
// published, in a result on stable media, in the map, and only then out of the log.
func (k *disk) destage(t *task) error {
	k.destaging.take(t)
	defer k.destaging.release(t)
	w, l := k.h.w, k.layers[0]
	if l.through <= k.m.through {
		return nil
	}
	if len(k.layers) == 1 {
		k.layers = append(k.layers, &layer{})
	}
	if err := k.log.sync(t); err != nil {
		return err
	}
	r := &rec{through: l.through, mark: l.mark}
	var fps []uint32
	for b := range blocks {
		if l.has[b] {
			r.updates = append(r.updates, update{b, l.at[b]})
			if fp := l.at[b].fp; fp != 0 && !slices.Contains(fps, fp) {
				fps = append(fps, fp)
			}
		}
	}
	if err := k.place(t, r, fps); err != nil {
		return err
	}
	if w.flaw == checkpointAhead {
		early := *r
		early.pos = k.m.result + 1
		k.m.apply(&early)
	}
	trim := func() { k.log.begin(&logOp{stream: datanode.Ops, trim: l.through}) }
	if w.flaw == trimmedEarly {
		trim()
	}
	if err := k.result(t, r); err != nil {
		return err
	}
	if w.flaw != checkpointAhead {
		k.m.apply(r)
	}
	k.layers = k.layers[1:]
	w.count.Rounds++
	trim()
	return nil
}

// result appends to the results, on stable media. After an error nobody knows.
func (k *disk) result(t *task, r *rec) error {
	err := k.log.do(t, &logOp{stream: datanode.Results, recs: []*rec{r}})
	if err == nil {
		err = k.log.sync(t)
	}
	if err != nil {
		k.fail(owner.Failed)
	}
	return err
}

// place finds or makes a place for chunks.
func (k *disk) place(t *task, r *rec, fps []uint32) error {
	w, d, e := k.h.w, k.d, k.epoch
	if len(fps) == 0 {
		return nil
	}
	hits, boot, err := k.lookup(t, fps)
	if err != nil {
		return err
	}
	w.segments++
	s := &segment{number: id.Segment(w.segments), state: datanode.StateLive}
	for i, fp := range fps {
		if hits[i].slot < 0 {
			hits[i] = hit{s.number, len(s.fps)}
			s.fps = append(s.fps, fp)
		}
		for j := range r.updates {
			if u := &r.updates[j].entry; u.fp == fp {
				u.segment, u.slot = hits[i].segment, hits[i].slot
			}
		}
	}
	var all []*segment
	if len(s.fps) > 0 {
		s.births = []birth{{d, e, 1<<len(s.fps) - 1}}
		all = append(all, s)
	}
	if w.flaw == unpublished && len(all) == 0 {
		return nil
	}
	_, err = ask(t, w.index.at, false, func() (struct{}, error) { return struct{}{}, w.index.publish(boot, all...) })
	return err
}

// under makes sure that the index was fenced with the disk's epoch.
func (k *disk) under(t *task) error {
	if k.fenced {
		return nil
	}
	x, d, e := k.h.w.index, k.d, k.epoch
	_, err := ask(t, x.at, false, func() (struct{}, error) { return struct{}{}, x.fence(d, e) })
	k.fenced = err == nil
	return err
}

func (k *disk) lookup(t *task, fps []uint32) ([]hit, int, error) {
	k.listing.take(t)
	defer k.listing.release(t)
	if err := k.under(t); err != nil {
		return nil, 0, err
	}
	type answer struct {
		hits []hit
		boot int
	}
	k.seq++
	x, d, e, seq := k.h.w.index, k.d, k.epoch, k.seq
	a, err := ask(t, x.at, false, func() (a answer, err error) {
		a.hits, a.boot, err = x.lookup(d, e, seq, fps)
		return a, err
	})
	if k.registered != nil {
		for _, h := range a.hits {
			if h.slot >= 0 {
				k.registered[h.segment] |= 1 << h.slot
			}
		}
	}
	return a.hits, a.boot, err
}

// checkpoint makes the map durable: object, record, and then the results go.
func (k *disk) checkpoint(t *task) error {
	k.saving.take(t)
	defer k.saving.release(t)
	if k.recording != nil {
		if err := k.record(t); err != nil {
			return err
		}
	}
	if k.m.result == k.ckpt.result {
		return nil
	}
	w := k.h.w
	w.segments++
	s := &segment{number: id.Segment(w.segments), ckpt: k.m.clone(), births: []birth{{k.d, k.epoch, 1}}, state: datanode.StateLive}
	if _, err := ask(t, w.index.at, false, func() (struct{}, error) { return struct{}{}, w.index.publish(-1, s) }); err != nil {
		return err
	}
	k.recording = &ckptRow{object: s.number, result: s.ckpt.result}
	if err := k.record(t); err != nil {
		return err
	}
	w.count.Checkpoints++
	k.log.begin(&logOp{stream: datanode.Results, trim: k.ckpt.result})
	return nil
}

// record commits what is being recorded, or finds out that it was.
func (k *disk) record(t *task) error {
	r, d, e := k.h.w.reg, k.d, k.epoch
	next := *k.recording
	next.at = k.ckpt.at
	at, err := ask(t, r.at, true, func() (uint64, error) { return r.checkpoint(d, e, next) })
	if err != nil {
		now, gerr := fetch(t, r.at, func() (ckptRow, error) { return r.ckpts[d], nil })
		switch {
		case gerr == nil && now.object == next.object:
			at = now.at
		case gerr == nil && errors.Is(err, errConflict): // another owner
			k.fail(owner.Failed)
			return err
		default:
			return err
		}
	}
	next.at = at
	k.ckpt, k.recording = next, nil
	return nil
}
