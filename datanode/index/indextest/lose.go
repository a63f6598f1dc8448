// Package indextest damages an index, for tests of those who must notice.
package indextest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

const (
	printKind        = 'F'
	printPrefixBytes = 1 + len(id.Fingerprint{})
)

// comparer is that of docs/format/index.md, which an index needs to be opened.
func comparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "plinth.index.v1"
	c.Split = func(key []byte) int {
		if len(key) > printPrefixBytes && key[0] == printKind {
			return printPrefixBytes
		}
		return len(key)
	}
	return &c
}

// LoseRow deletes one row of a fingerprint from the index in dir, which nobody
// has open, as if it had never been written.
func LoseRow(t testing.TB, dir string, print id.Fingerprint) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{
		Comparer: comparer(), ErrorIfNotExists: true, Logger: quiet{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(loseRow(db, print), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func loseRow(db *pebble.DB, print id.Fingerprint) error {
	prefix := append([]byte{printKind}, print[:]...)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: prefix})
	if err != nil {
		return err
	}
	if !it.First() || !bytes.HasPrefix(it.Key(), prefix) {
		return errors.Join(errors.New("the index has no row for "+print.String()), it.Error(), it.Close())
	}
	key := slices.Clone(it.Key())
	return errors.Join(it.Close(), db.Delete(key, pebble.Sync))
}

// quiet logs errors only.
type quiet struct{ testing.TB }

func (quiet) Infof(string, ...any) {}
