package kv

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ingestName is the file that a table is written to before it is one of the
// store's.
const ingestName = "ingest"

// Ingest adds rows as a table of their own, past the log and the memtable: write
// calls its argument with them in the order of keys, each once. They are stable at
// return, all or, after an error, none. Only one Ingest may be under way.
func (s *Store) Ingest(write func(set func(key, value []byte) error) error) error {
	path := s.fs.PathJoin(s.dir, ingestName)
	// It is never written over: one that a crash left may be a table's other name.
	if err := s.fs.Remove(path); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return s.ingestFailed(err)
	}
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return s.ingestFailed(err)
	}
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), s.opts.MakeWriterOptions(0, s.DB.TableFormat()))
	err = write(w.Set)
	if err = errors.Join(err, w.Close()); err != nil {
		return s.ingestFailed(err)
	}
	if err := s.DB.Ingest(context.Background(), []string{path}); err != nil {
		return s.ingestFailed(err)
	}
	return s.Err()
}

func (s *Store) ingestFailed(err error) error {
	return errors.Join(fmt.Errorf("add a table to %s: %w", s.name, err), s.Err())
}
