package disk

import (
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// layer is the newest state of the chunks that a run of the log's operations
// touched: the write buffer, and the unit of destaging. What is not in a layer
// is as the layers below it, and at last the map, say. A layer is guarded by
// its disk's mu; once frozen it no longer changes.
//
// A chunk is in entries, or its LBA is in zeros, or neither; never both.
type layer struct {
	size    chunk.Size
	entries map[id.LBA]*entry
	zeros   extents // chunks that read as zeros

	// What it covers: the last operation in it, the operations chain's MAC
	// there and the disk's size after it.
	through   id.Pos
	mac       logrec.MAC
	diskBytes int64
	mark      logrec.Mark // its last operation, if that is one: a rollback's layer has nothing else
	bytes     int64       // of its records in the log
	charge    int64       // admitted for it
	weight    int         // at most this many updates of the map come of it
}

// weightMax and zerosMax bound what one layer becomes, so that it is one batch
// of the map; one more operation may go beyond them by smallTrimChunksMax.
const (
	weightMax = blockmap.UpdatesMax / 2
	zerosMax  = blockmap.TrimsMax / 2
)

// full reports whether the next operation belongs in another layer.
func (l *layer) full() bool { return l.weight >= weightMax || len(l.zeros) >= zerosMax }

// entry is one chunk in one of three forms: sealed (a whole chunk as the log
// holds it), or plain with all bytes valid, or plain with some valid.
type entry struct {
	sealed []byte
	plain  []byte
	valid  extents // of plain
}

func newLayer(size chunk.Size) *layer {
	return &layer{size: size, entries: make(map[id.LBA]*entry)}
}

// empty reports whether no operation is in the layer.
func (l *layer) empty() bool { return l.through == 0 }

// whole reports whether e alone says what the chunk holds.
func (l *layer) whole(e *entry) bool {
	return e.sealed != nil || e.valid.covers(0, int64(l.size))
}

// setSealed makes the chunks from first on what these hold; the layer keeps them.
// Their entries are one piece of memory, as their bytes are: what overwrites
// some of them frees neither.
func (l *layer) setSealed(first id.LBA, chunks [][]byte) {
	entries := make([]entry, len(chunks))
	for i, sealed := range chunks {
		lba := first + id.LBA(i)
		l.makeEntry(lba)
		entries[i].sealed = sealed
		l.entries[lba] = &entries[i]
	}
	l.weight += len(chunks)
}

// patch overwrites part of a chunk. open decrypts a sealed chunk to a new
// buffer of the chunk's size.
func (l *layer) patch(lba id.LBA, off int, p []byte, open func(sealed []byte) ([]byte, error)) error {
	e := l.entries[lba]
	switch {
	case e == nil:
		e = &entry{plain: make([]byte, l.size)}
		if l.zeros.contains(int64(lba)) {
			e.valid = e.valid.add(0, int64(l.size))
		}
		l.makeEntry(lba)
		l.entries[lba] = e
		l.weight++
	case e.sealed != nil:
		plain, err := open(e.sealed)
		if err != nil {
			return fmt.Errorf("chunk %d in the write buffer: %w", lba, err)
		}
		*e = entry{plain: plain, valid: extents{{0, int64(l.size)}}}
	}
	copy(e.plain[off:], p)
	e.valid = e.valid.add(int64(off), int64(off+len(p)))
	return nil
}

// makeEntry takes a chunk out of zeros, before it gets an entry.
func (l *layer) makeEntry(lba id.LBA) {
	i := l.zeros.find(int64(lba))
	if i == len(l.zeros) || l.zeros[i].first > int64(lba) {
		return
	}
	z := l.zeros[i]
	var parts []extent
	if z.first < int64(lba) {
		parts = append(parts, extent{z.first, int64(lba)})
	}
	if int64(lba)+1 < z.end {
		parts = append(parts, extent{int64(lba) + 1, z.end})
	}
	l.zeros = slices.Replace(l.zeros, i, i+1, parts...)
}

// setZero makes the chunks of [first, end) read as zeros.
func (l *layer) setZero(first, end id.LBA) {
	if first >= end {
		return
	}
	if uint64(end-first) < uint64(len(l.entries)) {
		for lba := first; lba < end; lba++ {
			delete(l.entries, lba)
		}
	} else {
		for lba := range l.entries {
			if first <= lba && lba < end {
				delete(l.entries, lba)
			}
		}
	}
	l.zeros = l.zeros.add(int64(first), int64(end))
	l.weight += int(min(int64(end-first), smallTrimChunksMax))
}

// zeroBytes makes a range of bytes read as zeros: chunks that it covers wholly
// by setZero, the others' parts by patch.
func (l *layer) zeroBytes(off, n int64, open func([]byte) ([]byte, error)) error {
	size := int64(l.size)
	first, end := (off+size-1)/size, (off+n)/size
	if first < end {
		l.setZero(id.LBA(first), id.LBA(end))
	}
	edge := func(from, to int64) error {
		for pc := range l.size.Split(from, to-from) {
			if err := l.patch(pc.LBA, pc.Off, zeros[:pc.Len], open); err != nil {
				return err
			}
		}
		return nil
	}
	if first >= end { // no whole chunk: one or two parts
		return edge(off, off+n)
	}
	if err := edge(off, first*size); err != nil {
		return err
	}
	return edge(end*size, off+n)
}

var zeros [chunk.SizeMax]byte
