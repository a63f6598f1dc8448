package index

import (
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
// returns false.
func (p *prints) each(print *id.Fingerprint, f func(id.Ref) bool) error {
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
