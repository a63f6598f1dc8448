package index

import (
	"encoding/binary"
	mathbits "math/bits"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

const (
	// filterShare of the block cache's size is the filter's, besides: 32 MiB, at 10
	// bits each for 26 million fingerprints, of which then 1 % are false alarms.
	filterShare = 4
	// filterBitsMin a fingerprint: with less the filter is given up, and tables'
	// own filters are asked.
	filterBitsMin = 4
	filterWords   = 8 // of a block: a line of the processor's cache
	filterProbes  = 6
	// filterStep is how many rows a scan reads between looks at whether it is to end.
	filterStep = 4096
)

// filter tells of fingerprints that are in no table, most times, without asking
// one. It is soft: not ready, it tells nothing.
type filter struct {
	words []atomic.Uint64
	rows  atomic.Int64 // put in, since it was empty
	ready atomic.Bool
}

func newFilter(cacheBytes int64) *filter {
	blocks := max(1, cacheBytes/filterShare/(8*filterWords))
	return &filter{words: make([]atomic.Uint64, blocks*filterWords)}
}

// place returns where a fingerprint's block begins, and its bits in that, 9 bits
// each.
func (f *filter) place(print *id.Fingerprint) (block int, bits uint64) {
	n, _ := mathbits.Mul64(binary.BigEndian.Uint64(print[:]), uint64(len(f.words)/filterWords))
	return int(n) * filterWords, binary.BigEndian.Uint64(print[8:]) * 0x9e3779b97f4a7c15 >> 8
}

func (f *filter) put(print *id.Fingerprint) {
	block, bits := f.place(print)
	for range filterProbes {
		f.words[block+int(bits&7)].Or(1 << (bits >> 3 & 63))
		bits >>= 9
	}
}

// excludes reports whether no table has a row of the fingerprint. The filter was
// ready before; it is asked again, as it may be being filled anew.
func (f *filter) excludes(print *id.Fingerprint) bool {
	block, bits := f.place(print)
	for range filterProbes {
		if f.words[block+int(bits&7)].Load()&(1<<(bits>>3&63)) == 0 {
			return f.ready.Load()
		}
		bits >>= 9
	}
	return false
}

func (f *filter) crowded(rows int64) bool { return rows*filterBitsMin > int64(len(f.words))*64 }

// putTabled puts in rows of a table that has just been made. Where the filter is
// full of what has gone since, it is filled anew.
func (x *Index) putTabled(rows []printed) {
	for i := range rows {
		x.filter.put(&rows[i].print)
	}
	n := x.filter.rows.Add(int64(len(rows)))
	if x.filter.ready.Load() && x.filter.crowded(n) {
		x.filter.ready.Store(false)
		if !x.filter.crowded(2 * x.counters.Load().fingerprints) { // else that would be soon again
			x.startFilter()
		}
	}
}

// startFilter fills the filter from the tables, in the background. It is called
// by Open, and under rows while the filter is not ready and no other fills it.
func (x *Index) startFilter() {
	if x.closing.Load() || x.filter.crowded(x.counters.Load().fingerprints) {
		return
	}
	x.filling.Go(func() {
		if err := x.fillFilter(); err != nil {
			x.log.Warn("cannot fill the filter of fingerprints", "error", err)
		}
	})
}

func (x *Index) fillFilter() error {
	f := x.filter
	if f.rows.Swap(0) > 0 { // what is new is not touched before it is needed
		for i := range f.words {
			f.words[i].Store(0)
		}
	}
	lower, upper := span([]byte{keyPrint})
	// Rows of tables that come to be from here on are put in by who makes them.
	it, err := x.store.DB.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return x.store.Wrap(err)
	}
	n := int64(0)
	for ok := it.First(); ok; ok = it.Next() {
		if key := it.Key(); len(key) == printKeyBytes {
			print := id.Fingerprint(key[1:printPrefixBytes])
			f.put(&print)
		}
		if n++; n%filterStep == 0 && (x.closing.Load() || f.crowded(n)) {
			return x.store.Wrap(it.Close())
		}
	}
	f.rows.Add(n)
	if err := it.Close(); err != nil {
		return x.store.Wrap(err)
	}
	f.ready.Store(true)
	return nil
}
