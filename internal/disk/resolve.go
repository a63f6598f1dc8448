package disk

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// smallTrimChunksMax is the longest run of zero chunks that becomes entries of
// the map; a longer one becomes a mark under a new generation.
const smallTrimChunksMax = 4096

// zeroUpdatesMax bounds the entries that zero chunks of one layer become; what
// is beyond becomes marks, however short. One long run that writes have cut
// into short ones since would not fit a batch of the map.
const zeroUpdatesMax = blockmap.UpdatesMax / 4

// A layer's other updates are those of weightMax operations and of one more.
const _ = uint(blockmap.UpdatesMax - zeroUpdatesMax - weightMax - smallTrimChunksMax)

// resultShare of the log is the most that zero chunks take in a result, if that is
// more than one record: half of what a log full of operations keeps for results.
// Other chunks add little, because what is admitted is less than the log. A result
// that does not fit there would never come to be, nor would another.
const resultShare = 40

// zeroUpdatesMax is the constant, or less where the log is small: few operations
// make zeros of many chunks.
func (p *Pool) zeroUpdatesMax() int {
	if p.LogBytes == 0 {
		return zeroUpdatesMax
	}
	return int(min(zeroUpdatesMax, max(logrec.UpdatesMax, p.LogBytes/resultShare/logrec.UpdateBytes)))
}

// mergesPerRead bounds the sealed chunks that are in memory to merge parts with.
const mergesPerRead = 1024

// work is one disk's share of a round: a layer, as changes of the map.
type work struct {
	d      *Disk
	layer  *layer
	trims  []logrec.Extent
	sealed [][]byte // by update; nil for a zero chunk
	places []place  // by update: where this round stores it
	again  []int    // updates to look up once more

	updates []logrec.Update
}

// all returns the indexes of the updates that have data.
func (w *work) all() []int {
	which := make([]int, 0, len(w.updates))
	for i, s := range w.sealed {
		if s != nil {
			which = append(which, i)
		}
	}
	return which
}

// resolve turns a frozen layer into whole chunks: parts are merged with what
// the map has. destageMu is held, so that the map is what lies below the layer.
func (d *Disk) resolve(ctx context.Context, l *layer) (*work, error) {
	w := &work{d: d, layer: l}
	if err := d.resolveZeros(w); err != nil {
		return nil, err
	}
	lbas := make([]id.LBA, 0, len(l.entries))
	var merge []fill
	for lba, e := range l.entries {
		lbas = append(lbas, lba)
		if !l.whole(e) {
			merge = append(merge, d.baseFill(lba, e))
		}
	}
	slices.Sort(lbas)
	slices.SortFunc(merge, func(a, b fill) int { return cmp.Compare(a.lba, b.lba) })
	base := make(map[id.LBA][]byte, len(merge))
	for _, f := range merge {
		base[f.lba] = f.dst
	}
	r := readers.Get().(*reader)
	defer readers.Put(r)
	for some := range slices.Chunk(merge, mergesPerRead) {
		if err := d.fillMapped(ctx, source{d.m, d.memo}, r, some); err != nil {
			return nil, err
		}
	}
	for _, lba := range lbas {
		if err := d.resolveEntry(w, lba, l.entries[lba], base[lba]); err != nil {
			return nil, fmt.Errorf("disk %s, chunk %d in the write buffer: %w", d.cfg.Name, lba, err)
		}
	}
	w.places = make([]place, len(w.updates))
	return w, nil
}

// baseFill wants the bytes of a chunk that the entry does not have, in a buffer
// that has those it has. The entry does not change: readers use it.
func (d *Disk) baseFill(lba id.LBA, e *entry) fill {
	plain := slices.Clone(e.plain)
	_, missing := extents{{0, int64(d.size)}}.split(e.valid)
	return fill{lba: lba, dst: plain, runs: missing}
}

// resolveEntry adds the update of one chunk. merged is its plaintext where the
// entry alone does not have it.
func (d *Disk) resolveEntry(w *work, lba id.LBA, e *entry, merged []byte) error {
	sealed := e.sealed
	var fp id.Fingerprint
	if sealed != nil {
		h, err := chunk.ParseHeader(sealed)
		if err != nil {
			return err
		}
		fp = h.Fingerprint
	} else {
		plain := e.plain
		if merged != nil {
			plain = merged
		}
		if chunk.IsZero(plain) {
			w.addZero(lba)
			return nil
		}
		fp = d.pool.Hasher.Sum(plain)
		var err error
		if sealed, err = d.pool.Sealer.SealChunk(nil, d.cfg.Suite, fp, plain); err != nil {
			return err
		}
	}
	w.updates = append(w.updates, logrec.Update{LBA: lba, Fingerprint: fp})
	w.sealed = append(w.sealed, sealed)
	return nil
}

func (w *work) addZero(lba id.LBA) {
	w.updates = append(w.updates, logrec.Update{LBA: lba})
	w.sealed = append(w.sealed, nil)
}

// resolveZeros turns runs of zero chunks into trims where they are long, and
// else into updates of those chunks that the map has.
func (d *Disk) resolveZeros(w *work) error {
	entries, most := make([]blockmap.Entry, smallTrimChunksMax), d.pool.zeroUpdatesMax()
	for _, z := range w.layer.zeros {
		if n := z.end - z.first; n > smallTrimChunksMax || len(w.updates)+int(n) > most {
			w.trims = append(w.trims, logrec.Extent{First: id.LBA(z.first), End: id.LBA(z.end)})
			continue
		}
		run := entries[:z.end-z.first]
		if err := d.m.LookupRange(id.LBA(z.first), run); err != nil {
			return err
		}
		for i, e := range run {
			if e.Ref != (id.Ref{}) {
				w.addZero(id.LBA(z.first) + id.LBA(i))
			}
		}
	}
	return nil
}
