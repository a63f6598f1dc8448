package blockmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"
)

// uploadsMax is how many tables one Checkpoint uploads at a time: enough to
// keep all spindles of two stripes busy, 16 MiB each.
const uploadsMax = 4

// Checkpoint is a durable copy of a map, once its manifest is.
type Checkpoint struct {
	Manifest      []byte   // what Attach takes; at most ManifestBytesMax
	State         []byte   // the owner's, of the last batch in it
	Objects       []Object // every table that the manifest names
	UploadedBytes int64    // of tables that were not uploaded before, or are again
}

// Checkpoint flushes the map and uploads the tables that have no object yet.
// The checkpoint has all batches whose Apply returned before the call, maybe
// later ones, and the state of the last of them. After an error the map goes
// on; what was uploaded is kept for the next call. One call at a time goes on,
// others wait. Apply waits while the files are gathered, not for uploads.
//
// Errors: of ctx, of Objects and of local files; ErrClosed, ErrFailed.
func (m *Map) Checkpoint(ctx context.Context) (*Checkpoint, error) {
	if err := m.begin(); err != nil {
		return nil, err
	}
	defer m.calls.leave()
	select {
	case m.checkpoints <- struct{}{}:
		defer func() { <-m.checkpoints }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-m.failed:
		return nil, m.cause()
	case <-m.closing:
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.fs.ctx, cancel)()

	// Most is flushed while Apply goes on.
	if err := m.flush(ctx); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	dir := m.fs.PathJoin(m.opts.Dir, "checkpoint")
	state, since, err := m.gather(ctx, dir)
	if err == nil {
		var c *Checkpoint
		if c, err = m.upload(ctx, dir, state); err == nil {
			err = m.fs.RemoveAll(dir)
			m.since.Add(-since)
			if err == nil {
				err = m.cause()
			}
			if err == nil {
				return c, nil
			}
		}
	}
	if m.fs.ctx.Err() != nil {
		err = ErrClosed
	}
	return nil, errors.Join(fmt.Errorf("checkpoint: %w", err), m.removeCheckpoint(dir))
}

// removeCheckpoint clears what a failed checkpoint left, unless all is lost.
func (m *Map) removeCheckpoint(dir string) error {
	if err := m.fs.RemoveAll(dir); err != nil && m.cause() == nil {
		return err
	}
	return nil
}

// gather links the files of this instant into dir, and returns the state and
// the number of updates that go with them.
func (m *Map) gather(ctx context.Context, dir string) (state []byte, since uint64, err error) {
	m.apply.Lock()
	defer m.apply.Unlock()
	if err := m.flush(ctx); err != nil {
		return nil, 0, err
	}
	if err := m.db.Checkpoint(dir); err != nil {
		return nil, 0, err
	}
	if err := m.cause(); err != nil {
		return nil, 0, err // the flush went nowhere
	}
	return slices.Clone(m.head.state), m.since.Load(), nil
}

// flush writes what is in memory to tables.
func (m *Map) flush(ctx context.Context) error {
	done, err := m.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
		return m.cause()
	case <-m.failed:
		return m.cause()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// upload makes a checkpoint of the files in dir.
func (m *Map) upload(ctx context.Context, dir string, state []byte) (*Checkpoint, error) {
	names, err := m.fs.List(dir)
	if err != nil {
		return nil, err
	}
	f := manifest{state: state}
	var missing []string
	for _, name := range names {
		number, isTable := parseTableName(name)
		switch {
		case isTable:
			f.tables = append(f.tables, manifestTable{number: number})
			if o, _ := m.fs.tables.object(name); o == nil || m.opts.Stale != nil && m.opts.Stale(o) {
				missing = append(missing, name)
			}
		case !strings.HasSuffix(name, ".log"):
			bytes, err := readFile(m.fs, m.fs.PathJoin(dir, name))
			if err != nil {
				return nil, err
			}
			f.files = append(f.files, manifestFile{name, bytes})
		}
	}
	slices.SortFunc(f.tables, func(a, b manifestTable) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	slices.SortFunc(f.files, func(a, b manifestFile) int { return strings.Compare(a.name, b.name) })

	if err := m.putTables(ctx, dir, missing); err != nil {
		return nil, err
	}
	c := &Checkpoint{State: state}
	for i := range f.tables {
		t := &f.tables[i]
		t.object, t.bytes = m.fs.tables.object(tableName(t.number))
	}
	for _, name := range missing {
		_, bytes := m.fs.tables.object(name)
		c.UploadedBytes += bytes
	}
	if c.Manifest, err = f.encode(); err != nil {
		return nil, err
	}
	// While the map fails or closes, writes go nowhere and files may be missing.
	if err := m.interrupted(ctx); err != nil {
		return nil, err
	}
	c.Objects = f.objects()
	// From here on it may be recorded, so its objects stay until the next one.
	m.mu.Lock()
	m.pinned = c.Objects
	m.mu.Unlock()
	return c, nil
}

// putTables uploads tables from dir and notes their objects.
func (m *Map) putTables(ctx context.Context, dir string, names []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(uploadsMax)
	for _, name := range names {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := m.putTable(ctx, dir, name); err != nil {
				return fmt.Errorf("upload %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (m *Map) putTable(ctx context.Context, dir, name string) error {
	f, err := m.fs.Open(m.fs.PathJoin(dir, name), vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	o, err := m.opts.Objects.Put(ctx, name, info.Size(), io.LimitReader(f, info.Size()))
	if err != nil {
		return err
	}
	if len(o) == 0 || len(o) > ObjectBytesMax {
		return fmt.Errorf("%w: an object's descriptor of %d bytes", ErrInvalid, len(o))
	}
	m.fs.tables.uploaded(name, info.Size(), slices.Clone(o))
	return nil
}

// Objects returns, in no order and maybe repeatedly, every object that this
// map may still read, that its next checkpoint would name without uploading it,
// or that the last checkpoint names. What a Checkpoint that has not returned
// has put may be missing: who puts objects keeps those until it returns.
func (m *Map) Objects() []Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append(m.fs.tables.objects(), m.pinned...)
}

// readFile returns the bytes of a small file.
func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err == nil && len(b) > fileBytesMax {
		err = fmt.Errorf("%s has more than %d bytes", path, fileBytesMax)
	}
	return b, err
}
