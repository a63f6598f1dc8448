package blockmap

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Attach opens the map of a checkpoint's manifest in Options.Dir, which it
// removes first. It reads some blocks of some tables now and the others when
// they are needed; it changes nothing in Objects. The objects that the manifest
// names must stay as long as Objects of the map names them. ctx is for the call.
//
// Errors: ErrInvalid, ErrCorrupt, ErrUnsupported, those of Objects and of the
// file system.
func Attach(ctx context.Context, manifest []byte, opts Options) (*Map, error) {
	f, err := parseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("attach map: %w", err)
	}
	m, err := prepare(opts)
	if err != nil {
		return nil, fmt.Errorf("attach map: %w", err)
	}
	stop := context.AfterFunc(ctx, m.cancel)
	err = m.attach(f)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, errors.Join(fmt.Errorf("attach map: %w", err), m.Close())
	}
	return m, nil
}

func (m *Map) attach(f *manifest) error {
	for _, file := range f.files {
		if err := writeFile(m.opts.FS, m.fs.PathJoin(m.dbDir, file.name), file.bytes); err != nil {
			return err
		}
	}
	for _, t := range f.tables {
		name := tableName(t.number)
		m.fs.tables.addRemote(name, m.fs.PathJoin(m.dbDir, name), t.bytes, slices.Clone(t.object))
	}
	if err := m.open(true); err != nil {
		return err
	}
	value, closer, err := m.db.Get(headKey[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return fmt.Errorf("%w: no head", ErrCorrupt)
	}
	if err != nil {
		return err
	}
	h, err := parseHead(value)
	if err = errors.Join(err, closer.Close()); err != nil {
		return err
	}
	if !slices.Equal(h.state, f.state) {
		return fmt.Errorf("%w: the manifest's state is not the map's", ErrCorrupt)
	}
	rows, err := readTrims(m.db)
	if err != nil {
		return err
	}
	rows = slices.DeleteFunc(rows, func(t trim) bool { return !h.view.contains(t.gen) })
	m.show(h.view, buildTrims(rows))
	m.install(h)
	return nil
}

// readTrims returns the rows of trims, by rising generation.
func readTrims(db pebble.Reader) (rows []trim, err error) {
	lower, upper := trimPrefixKey(), headKey
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower[:], UpperBound: upper[:]})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for valid := it.First(); valid; valid = it.Next() {
		t, err := parseTrim(it.Key())
		if err != nil {
			return nil, err
		}
		rows = append(rows, t)
	}
	return rows, nil
}

func writeFile(fs vfs.FS, path string, b []byte) error {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Clone(b))
	return errors.Join(err, f.Close())
}
