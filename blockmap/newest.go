package blockmap

import (
	"sync"
	"sync/atomic"

	"plinth/internal/id"
)

const (
	// newestBits: 2^18 LBAs, 1 GiB of chunks in a row, in 2 MiB.
	newestBits = 18
	// newestGenBits is what an LBA's upper bits leave of a word.
	newestGenBits = 64 - (52 - newestBits)
	newestLocks   = 64

	_ = uint(1<<52 - LBAMax)
)

// newest remembers of some LBAs in which generation is the row that a map shows,
// which is data: so a look-up gets one row by its key, and need not search all
// tables for the LBA's other versions. What it knows is true but while an Apply
// that changes it is under way.
type newest struct {
	// slots has for an LBA's lower bits the upper ones and the generation plus 1;
	// 0: nothing. It is made when something is learnt.
	slots atomic.Pointer[[1 << newestBits]atomic.Uint64]
	// changes counts the map's changes. It rises after the map has the change and
	// before the slots that it concerns are corrected; learn compares it under the
	// slot's lock. So what was read before the change is refused, or it was learnt
	// before the correction, which finds it.
	changes atomic.Uint64
	locks   [newestLocks]struct {
		sync.Mutex
		_ [56]byte
	}
}

// newestSlot returns what stands for a generation of an LBA; 0 for one that has
// more bits than there is room for.
func newestSlot(lba id.LBA, gen id.Gen) uint64 {
	if gen >= 1<<newestGenBits-1 {
		return 0
	}
	return uint64(lba)>>newestBits<<newestGenBits | uint64(gen+1)
}

// at returns an LBA's slot, nil if nothing was ever learnt.
func (n *newest) at(lba id.LBA) *atomic.Uint64 {
	slots := n.slots.Load()
	if slots == nil {
		return nil
	}
	return &slots[lba%(1<<newestBits)]
}

// get returns the generation of the row that the map shows of an LBA, if it is
// known.
func (n *newest) get(lba id.LBA) (id.Gen, bool) {
	slot := n.at(lba)
	if slot == nil {
		return 0, false
	}
	known := slot.Load()
	gen := known & (1<<newestGenBits - 1)
	if gen == 0 || known>>newestGenBits != uint64(lba)>>newestBits {
		return 0, false
	}
	return id.Gen(gen - 1), true
}

// learn notes what was read of the map since there were that many changes.
func (n *newest) learn(changes uint64, lba id.LBA, gen id.Gen) {
	if n.slots.Load() == nil {
		n.slots.CompareAndSwap(nil, new([1 << newestBits]atomic.Uint64))
	}
	l := &n.locks[lba%newestLocks]
	l.Lock()
	defer l.Unlock()
	if n.changes.Load() == changes {
		n.at(lba).Store(newestSlot(lba, gen))
	}
}

// changed corrects what a batch has changed.
func (n *newest) changed(b *Batch) {
	n.changes.Add(1)
	if n.slots.Load() == nil {
		return // and whoever is about to learn is refused
	}
	if len(b.Trims) > 0 || b.Mark.Rollback != 0 {
		n.forget()
		return
	}
	for i := range b.Updates {
		u := &b.Updates[i]
		n.correct(u.LBA, b.Gen, u.Zero())
	}
}

func (n *newest) correct(lba id.LBA, gen id.Gen, zero bool) {
	l := &n.locks[lba%newestLocks]
	l.Lock()
	defer l.Unlock()
	if slot := n.at(lba); !zero {
		slot.Store(newestSlot(lba, gen))
	} else if _, ok := n.get(lba); ok {
		slot.Store(0)
	}
}

// forget empties all slots.
func (n *newest) forget() {
	slots := n.slots.Load()
	for i := range n.locks {
		n.locks[i].Lock()
		for at := i; at < len(slots); at += newestLocks {
			slots[at].Store(0)
		}
		n.locks[i].Unlock()
	}
}
