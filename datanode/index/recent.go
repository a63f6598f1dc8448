package index

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// bytesPerRecent is how many bytes of block cache stand for one fingerprint whose
// row is in memory only: 262,144 of them, some 16 MiB, beside the default cache.
const bytesPerRecent = 512

// recent has the rows of fingerprints that are in no table yet. What made them
// is in the slot tables of the segments that have a row of kind keyRecent, so that
// they come back at Open. Many rows become a table at a time: one by one they would
// go through log, memtable and compactions, at four times the cost.
type recent struct {
	mu     sync.RWMutex
	first  map[id.Fingerprint]id.Ref
	others map[id.Fingerprint][]id.Ref // of fingerprints that have one there, too
	rows   int
}

// printed is a fingerprint with a place of its chunk.
type printed struct {
	print id.Fingerprint
	ref   id.Ref
}

func printedSlot(s id.Segment, e *datanode.SlotEntry) printed {
	return printed{e.Fingerprint, id.Ref{Segment: s, Slot: e.Slot, Location: e.Location}}
}

func comparePlaces(a, b id.Ref) int {
	return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Slot, b.Slot))
}

func newRecent() *recent {
	return &recent{first: map[id.Fingerprint]id.Ref{}, others: map[id.Fingerprint][]id.Ref{}}
}

func (r *recent) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.rows
}

// change takes rows away and adds others; what is there already stays.
func (r *recent) change(remove, add []printed) {
	if len(remove)+len(add) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range remove {
		r.remove(&remove[i])
	}
	for i := range add {
		r.add(&add[i])
	}
}

func (r *recent) add(p *printed) {
	first, known := r.first[p.print]
	switch {
	case !known:
		r.first[p.print] = p.ref
	case first == p.ref || slices.Contains(r.others[p.print], p.ref):
		return
	default:
		r.others[p.print] = append(r.others[p.print], p.ref)
	}
	r.rows++
}

func (r *recent) remove(p *printed) {
	first, known := r.first[p.print]
	if !known {
		return
	}
	others := r.others[p.print]
	switch i := slices.Index(others, p.ref); {
	case i >= 0:
		others = slices.Delete(others, i, i+1)
	case first != p.ref:
		return
	case len(others) > 0:
		r.first[p.print], others = others[0], others[1:]
	default:
		delete(r.first, p.print)
	}
	if len(others) > 0 {
		r.others[p.print] = others
	} else {
		delete(r.others, p.print)
	}
	r.rows--
}

// clear forgets all rows.
func (r *recent) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.first)
	clear(r.others)
	r.rows = 0
}

// places returns the places of a fingerprint, by segment and slot.
func (r *recent) places(print *id.Fingerprint) []id.Ref {
	r.mu.RLock()
	defer r.mu.RUnlock()
	first, known := r.first[*print]
	if !known {
		return nil
	}
	out := append([]id.Ref{first}, r.others[*print]...)
	slices.SortFunc(out, comparePlaces)
	return out
}

// find makes hits of the fingerprints that are known, each of the first place by
// segment and slot.
func (r *recent) find(prints []id.Fingerprint, hits []datanode.Hit) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.rows == 0 {
		return
	}
	for i := range prints {
		at, known := r.first[prints[i]]
		if !known {
			continue
		}
		for _, other := range r.others[prints[i]] {
			if comparePlaces(other, at) < 0 {
				at = other
			}
		}
		hits[i] = datanode.Hit{Found: true, Ref: at}
	}
}

// sorted returns all rows in the order of their keys.
func (r *recent) sorted() []printed {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]printed, 0, r.rows)
	for f, ref := range r.first {
		out = append(out, printed{f, ref})
	}
	for f, refs := range r.others {
		for _, ref := range refs {
			out = append(out, printed{f, ref})
		}
	}
	slices.SortFunc(out, func(a, b printed) int {
		if c := cmp.Compare(binary.BigEndian.Uint64(a.print[:]), binary.BigEndian.Uint64(b.print[:])); c != 0 {
			return c
		}
		return cmp.Or(slices.Compare(a.print[8:], b.print[8:]), comparePlaces(a.ref, b.ref))
	})
	return out
}

// makeRoom makes a table of the recent rows when there are many. It is called
// under rows, before a change that adds some. An error is the caller's only if
// there are twice as many as should be.
func (x *Index) makeRoom() error {
	n := x.recent.len()
	if n < x.recentMax {
		return nil
	}
	err := x.putTable()
	if err != nil && n < 2*x.recentMax {
		x.log.Warn("cannot make a table of fingerprints", "error", err)
		return nil
	}
	return err
}

// putTable makes a table of the recent rows, durably, and forgets them. It is
// called under rows.
func (x *Index) putTable() error {
	rows := x.recent.sorted()
	if len(rows) == 0 {
		return nil
	}
	// No row may be stable before its slot is.
	if err := x.store.Sync(); err != nil {
		return err
	}
	key := make([]byte, 0, printKeyBytes)
	err := x.store.Ingest(func(set func(key, value []byte) error) error {
		for i := range rows {
			r := &rows[i]
			key = appendPrintKey(key[:0], &r.print, r.ref.Segment, r.ref.Slot)
			if err := set(key, encodePrint(r.ref.Location)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b := x.store.DB.NewBatch()
	lower, upper := span([]byte{keyRecent})
	if err := x.scan(lower, upper, func(key, _ []byte) (bool, error) { del(b, key); return true, nil }); err != nil {
		b.Close()
		return err
	}
	// Should this be lost, they are recent again at the next Open: twice is once.
	if err := x.store.Commit(b); err != nil {
		return err
	}
	x.putTabled(rows)
	x.holds.Lock() // findLive relies on it
	defer x.holds.Unlock()
	x.recent.clear()
	return nil
}

// loadRecent brings the rows back that no table may have.
func (x *Index) loadRecent() error {
	lower, upper := span([]byte{keyRecent})
	return x.scan(lower, upper, func(key, _ []byte) (bool, error) {
		s := id.Segment(lastNumber(key))
		slots, err := x.slots(s)
		rows := make([]printed, len(slots))
		for i := range slots {
			rows[i] = printedSlot(s, &slots[i])
		}
		x.recent.change(nil, rows)
		return true, err
	})
}
