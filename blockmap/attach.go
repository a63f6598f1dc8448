package blockmap

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

// Attach opens the map of a checkpoint's manifest in Options.Dir, which it
// removes first. It reads some blocks of some tables now and the others when
// they are needed; it changes nothing in Objects. The objects that the manifest
// names must stay as long as Objects of the map names them. ctx is for the call.
//
// Errors: ErrInvalid, ErrCorrupt, ErrUnsupported, those of Objects and of the
// file system.
func Attach(ctx context.Context, manifest []byte, opts Options) (*Map, error) {
	return attach(ctx, manifest, 0, opts)
}

// attach is Attach with the rows of all snapshots, or of one: a clone, which drops
// them, need not read thousands.
func attach(ctx context.Context, manifest []byte, only id.Snapshot, opts Options) (*Map, error) {
	f, err := parseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("attach map: %w", err)
	}
	m, err := prepare(opts)
	if err != nil {
		return nil, fmt.Errorf("attach map: %w", err)
	}
	stop := context.AfterFunc(ctx, m.cancel)
	err = m.attach(f, only)
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

func (m *Map) attach(f *manifest, only id.Snapshot) error {
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
	kept, err := readMarks(m.db, only)
	if err != nil {
		return err
	}
	for _, k := range kept {
		if !h.marked || k.view.last() > h.gen {
			return fmt.Errorf("%w: snapshot %d of generation %d in a map of generation %d", ErrCorrupt, k.id, k.view.last(), h.gen)
		}
		m.unmarked = max(m.unmarked, k.view.last()+1)
	}
	m.show(h.view, shownTrims(h.view, rows), kept)
	m.install(h)
	return nil
}

// AttachClone attaches a manifest as another disk's first map: it shows what
// snapshot s of the manifest's disk shows, begins above every generation in it,
// and has no snapshots. state takes the place of the owner's. The same manifest
// always makes the same map. Errors: Attach's, and ErrNoSnapshot.
func AttachClone(ctx context.Context, manifest []byte, s id.Snapshot, state []byte, opts Options) (*Map, error) {
	if len(state) > StateBytesMax {
		return nil, fmt.Errorf("%w: a state of %d bytes", ErrInvalid, len(state))
	}
	m, err := attach(ctx, manifest, s, opts)
	if err != nil {
		return nil, err
	}
	if err := m.become(s, state); err != nil {
		return nil, errors.Join(fmt.Errorf("attach map of snapshot %d: %w", s, err), m.Close())
	}
	return m, nil
}

// become makes a map that nobody uses yet a clone.
func (m *Map) become(s id.Snapshot, state []byte) error {
	m.apply.Lock()
	defer m.apply.Unlock()
	at, ok := m.marks.find(s)
	if !ok {
		return ErrNoSnapshot
	}
	if m.head.gen+1 >= genEnd {
		return fmt.Errorf("%w: no generation is left", ErrInvalid)
	}
	next := m.step()
	next.head.gen++
	next.head.view = m.marks[at].view.resume(next.head.gen)
	next.head.state = slices.Clone(state)
	if len(next.head.view) > intervalsMax {
		return fmt.Errorf("%w: a view of %d intervals", ErrInvalid, len(next.head.view))
	}
	rows, err := readTrims(m.db)
	if err != nil {
		return err
	}
	next.trims, next.marks, next.shows = shownTrims(next.head.view, rows), nil, true
	next.batch = m.db.NewBatch()
	defer next.batch.Close()
	lower, upper := markKey(0), trimPrefixKey()
	if err := next.batch.DeleteRange(lower[:], upper[:], nil); err != nil {
		return err
	}
	return m.take(next)
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
