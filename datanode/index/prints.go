package index

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// prints reads the rows of fingerprints as they are when it is opened.
type prints struct {
	x   *Index
	it  *pebble.Iterator
	key [printPrefixBytes]byte
}

func (x *Index) prints() (*prints, error) {
	lower, upper := span([]byte{keyPrint})
	it, err := x.store.DB.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper, UseL6Filters: true})
	if err != nil {
		return nil, x.store.Wrap(err)
	}
	return &prints{x: x, it: it, key: [printPrefixBytes]byte{keyPrint}}, nil
}

func (p *prints) close() { p.it.Close() }

// each calls f with the places of a fingerprint, by segment and slot, until f
// returns false. It is called under rows or holds, and so was prints: else what
// goes from memory to a table in between would be seen nowhere.
func (p *prints) each(print *id.Fingerprint, f func(id.Ref) bool) error {
	near, more := p.x.recent.places(print), true
	err := p.inTables(print, func(r id.Ref) bool {
		for more && len(near) > 0 && comparePlaces(near[0], r) < 0 {
			more = f(near[0])
			near = near[1:]
		}
		if len(near) > 0 && near[0] == r {
			near = near[1:]
		}
		more = more && f(r)
		return more
	})
	for more && err == nil && len(near) > 0 {
		more = f(near[0])
		near = near[1:]
	}
	return err
}

// inTables is each, without what is in memory only.
func (p *prints) inTables(print *id.Fingerprint, f func(id.Ref) bool) error {
	copy(p.key[1:], print[:])
	for ok := p.it.SeekPrefixGE(p.key[:]); ok; ok = p.it.Next() {
		v, err := p.it.ValueAndErr()
		if err != nil {
			return p.x.store.Wrap(err)
		}
		ref, err := decodePrint(p.it.Key(), v)
		if err != nil {
			return err
		}
		if !f(ref) {
			return nil
		}
	}
	return p.x.store.Wrap(p.it.Error())
}

// ranked is a fingerprint's number in a list, with its first bytes.
type ranked struct {
	head uint64
	i    int
}

// inOrder returns 0 to n-1 in the order, nearly, of these fingerprints. Rows that
// are sought or put in the order of their keys cost half: what one step has
// brought into the processor's caches, the next one uses.
func inOrder(n int, print func(i int) *id.Fingerprint) []ranked {
	order := make([]ranked, n)
	for i := range order {
		order[i] = ranked{binary.BigEndian.Uint64(print(i)[:]), i}
	}
	slices.SortFunc(order, func(a, b ranked) int { return cmp.Compare(a.head, b.head) })
	return order
}
