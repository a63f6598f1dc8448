//go:build synthetic

package blockmap

import (
	"cmp"
	"context"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

// Row is one version of an LBA.
type Row struct {
	LBA   id.LBA
	Gen   id.Gen
	Entry Entry
}

// Load puts rows into a new map as tables below all others: as compactions would
// leave them, in a hundredth of the time. It is there for measurements of large
// maps only. Rows come by rising LBA, and of one LBA by falling generation; no
// other call is under way, and an Apply follows.
func (m *Map) Load(rows iter.Seq[Row]) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.calls.leave()
	m.apply.Lock()
	defer m.apply.Unlock()
	dir := m.fs.PathJoin(m.opts.Dir, "load")
	if err := m.fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	paths, err := m.tablesOf(dir, rows)
	if err == nil {
		err = m.db.Ingest(context.Background(), paths)
	}
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	names, err := m.fs.List(m.dbDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := parseTableName(name); ok {
			m.fs.tables.add(name, m.fs.PathJoin(m.dbDir, name))
		}
	}
	m.head.floor = 0
	m.install(m.head)
	m.holes = holes{bits: m.holes.bits}
	return m.fs.RemoveAll(dir)
}

// tablesOf writes rows to tables in dir.
func (m *Map) tablesOf(dir string, rows iter.Seq[Row]) (paths []string, err error) {
	o := m.pebbleOptions(cmp.Or(m.opts.Cache, m.cache), false)
	o.EnsureDefaults()
	bottom := len(o.Levels) - 1
	var w *sstable.Writer
	for r := range rows {
		if w == nil {
			path := m.fs.PathJoin(dir, fmt.Sprint("rows-", len(paths)))
			f, err := m.fs.Create(path, vfs.WriteCategoryUnspecified)
			if err != nil {
				return nil, err
			}
			paths = append(paths, path)
			w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), o.MakeWriterOptions(bottom, m.db.TableFormat()))
		}
		key := makePointKey(r.LBA, r.Gen)
		var value [entryBytes]byte
		putEntry(&value, &r.Entry)
		if err := w.Set(key[:], value[:]); err != nil {
			return nil, err
		}
		if w.Raw().EstimatedSize() >= tableBytes {
			if err := w.Close(); err != nil {
				return nil, err
			}
			w = nil
		}
	}
	if w != nil {
		return paths, w.Close()
	}
	return paths, nil
}
