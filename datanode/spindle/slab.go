package spindle

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx"
)

// slab is one preallocated file of a spindle.
type slab struct {
	head slabHeader // tableBlocks is guarded by tableMu
	path string
	f    vfs.File
	// direct writes fragments: they are written once and whole, and hosts have
	// caches of their own. It is opened by the first write, as most slabs of a
	// spindle are full; nil where the file system has no such writes.
	direct     *vfsx.Direct
	directOnce sync.Once
	geometry
	seed uint32
	syncer

	tableMu sync.Mutex

	// Guarded by the spindle's mu.
	free  freeMap
	slots slotMap
}

func slabName(n uint32) string { return fmt.Sprintf("slab-%06d", n) }

// newSlab returns an empty slab whose file is yet to be opened.
func (sp *spindle) newSlab(n uint32) *slab {
	s := &slab{
		head:     slabHeader{pool: sp.pool, spindle: sp.number, slab: n, tableBlocks: 1},
		path:     sp.fs.PathJoin(sp.dir, slabName(n)),
		geometry: slabGeometry(sp.super.slabBytes),
	}
	s.seed = s.head.seed()
	s.free = newFreeMap(s.data())
	return s
}

func (s *slab) close() error { return errors.Join(s.direct.Close(), s.f.Close()) }

// write writes whole blocks, one piece behind the other, not yet durably.
func (s *slab) write(pieces [][]byte, off int64) error {
	s.directOnce.Do(func() { s.direct = vfsx.OpenDirect(s.f, s.aio) })
	if ok, err := s.direct.WriteAt(pieces, off); ok {
		return err
	}
	for _, p := range pieces {
		if _, err := s.f.WriteAt(p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// createSlab makes a slab's file, durably, with real blocks for its data and
// the first block of its table. A slab that was not made whole leaves no file.
func (sp *spindle) createSlab(n uint32) (*slab, error) {
	if err := sp.present(); err != nil {
		return nil, err // before a file comes to lie on another drive
	}
	s := sp.newSlab(n)
	f, err := sp.fs.Create(s.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("create slab: %w", err)
	}
	s.f, s.syncer.f, s.syncer.aio = f, f, sp.aio
	if err := s.format(); err != nil {
		return nil, errors.Join(fmt.Errorf("create slab %s: %w", s.path, err), f.Close(), sp.fs.Remove(s.path))
	}
	if err := vfsx.SyncDir(sp.fs, sp.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("create slab %s: %w", s.path, err), f.Close())
	}
	return s, nil
}

// format makes an empty file a slab.
func (s *slab) format() error {
	data := s.data()
	if err := vfsx.Allocate(s.f, 0, 2*blockBytes); err != nil {
		return err
	}
	if err := vfsx.Allocate(s.f, int64(data.start)*blockBytes, int64(data.n)*blockBytes); err != nil {
		return err
	}
	return s.reform()
}

// reform writes the header and gives the file its length, durably.
func (s *slab) reform() error {
	if err := vfsx.Extend(s.f, int64(s.blocks)*blockBytes); err != nil {
		return err
	}
	if _, err := s.f.WriteAt(s.head.encode(), 0); err != nil {
		return err
	}
	return s.f.Sync()
}

// openSlab opens a slab's file and reads its table. A crash while the file was
// made may have left any part of it: it is then made again, as empty as it is.
func (sp *spindle) openSlab(n uint32) (s *slab, rows []located, err error) {
	path := sp.fs.PathJoin(sp.dir, slabName(n))
	f, err := sp.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open slab %s: %w", path, errors.Join(err, f.Close()))
		}
	}()
	s = sp.newSlab(n)
	s.f, s.syncer.f, s.syncer.aio = f, f, sp.aio
	first := make([]byte, blockBytes)
	if err := readFull(s.f, first, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	head, err := decodeSlabHeader(first)
	switch {
	case errors.Is(err, ErrVersion):
		return nil, nil, err
	case err == nil && (head.pool != sp.pool || head.spindle != sp.number || head.slab != n):
		return nil, nil, fmt.Errorf("it is slab %d of spindle %d of pool %x", head.slab, head.spindle, head.pool)
	case err != nil || head.tableBlocks == 0 || head.tableBlocks > s.tableBlocks:
		// The header only says how much of the table to read.
		sp.log.Warn("slab header is made anew; its whole table is read", "slab", s.path, "cause", err)
		s.head.tableBlocks = s.geometry.tableBlocks
		if err := s.reform(); err != nil {
			return nil, nil, err
		}
	default:
		s.head.tableBlocks = head.tableBlocks
	}
	rows, err = s.readTable(sp)
	return s, rows, err
}

// located is an entry and the place it was read from.
type located struct {
	entry
	slab *slab
	slot uint32
}

func (s *slab) readTable(sp *spindle) ([]located, error) {
	table := make([]byte, int(s.head.tableBlocks)*blockBytes)
	if err := readFull(s.f, table, blockBytes); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var rows []located
	damaged := 0
	for slot := range uint32(len(table) / entryBytes) {
		e, used, err := decodeEntry(table[slot*entryBytes:], s.data(), s.seed, slot)
		if err != nil {
			damaged++
		}
		if used {
			rows = append(rows, located{e, s, slot})
		}
	}
	if damaged > 0 {
		sp.log.Warn("table entries are torn or damaged: their fragments are not there", "slab", s.path, "entries", damaged)
	}
	return rows, nil
}

// reach makes the header cover a slot, before an entry is written to it. It is
// durable with the next sync of the slab.
func (s *slab) reach(slot uint32) error {
	s.tableMu.Lock()
	defer s.tableMu.Unlock()
	need := slot/entriesInTurn + 1
	have := s.head.tableBlocks
	if need <= have {
		return nil
	}
	next := s.head
	next.tableBlocks = min(max(need, 2*have), s.geometry.tableBlocks)
	if err := vfsx.Allocate(s.f, int64(1+have)*blockBytes, int64(next.tableBlocks-have)*blockBytes); err != nil {
		return err
	}
	if _, err := s.f.WriteAt(next.encode(), 0); err != nil {
		return err
	}
	s.head = next
	return nil
}

// writeEntry stores part i of f in the table, not yet durably.
func (p *part) writeEntry(f *fragment, i int) error {
	e := entry{
		name: f.name(), part: uint16(i), parts: uint16(len(f.parts)),
		serial: f.serial, extent: p.extent, bytes: f.bytes,
	}
	_, err := p.slab.f.WriteAt(e.encode(p.slab.seed, p.slot), entryOffset(p.slot))
	return err
}

func (s *slab) clearEntry(slot uint32) error {
	_, err := s.f.WriteAt(make([]byte, entryBytes), entryOffset(slot))
	return err
}

func entryOffset(slot uint32) int64 { return blockBytes + int64(slot)*entryBytes }

// punch gives the blocks back to the file system.
func (s *slab) punch(e extent) error {
	return vfsx.PunchHole(s.f, int64(e.start)*blockBytes, int64(e.n)*blockBytes)
}

// readFull fills p or returns an error: io.EOF at the end of the file, where
// the rest of p is zero.
func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	clear(p[n:])
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// syncer groups the syncs of one file: those who wait while one runs share the
// next. A failure stays, since nobody knows what was lost (I2).
type syncer struct {
	f   vfs.File
	aio *vfsx.AIO

	mu      sync.Mutex
	changed *sync.Cond // created with the first wait
	started uint64
	done    uint64
	running bool
	err     error
}

// sync returns when everything written to the file before the call is on
// stable media.
func (s *syncer) sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = sync.NewCond(&s.mu)
	}
	mine := s.started + 1
	for s.done < mine && s.err == nil {
		if s.running {
			s.changed.Wait()
			continue
		}
		s.started++
		s.running = true
		s.mu.Unlock()
		err := s.aio.SyncData(s.f)
		s.mu.Lock()
		s.running = false
		s.done = s.started
		if err != nil {
			s.err = fmt.Errorf("sync: %w", err)
		}
		s.changed.Broadcast()
	}
	return s.err
}
