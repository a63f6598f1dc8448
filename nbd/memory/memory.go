// Package memory has an NBD device in RAM, to test and to measure with.
package memory

import (
	"context"
	"slices"
	"sync"

	"plinth/nbd"
)

// pageBytes is the unit in which a Device allocates.
const pageBytes = 64 << 10

const shardCount = 64

// Device is a sparse device in RAM of any size. It costs what was written,
// stores nothing durably, and has every ability that a Device can have.
type Device struct {
	size   int64
	shards [shardCount]struct {
		mu    sync.RWMutex
		pages map[int64]*[pageBytes]byte // by page number
	}
}

// New returns a device of size bytes, all zeros.
func New(size int64) *Device {
	m := &Device{size: size}
	for i := range m.shards {
		m.shards[i].pages = map[int64]*[pageBytes]byte{}
	}
	return m
}

// Size returns the size in bytes.
func (m *Device) Size() int64 { return m.size }

// TryReadAt fills p from off, always.
func (m *Device) TryReadAt(p []byte, off int64) bool {
	return m.ReadAt(context.Background(), p, off) == nil
}

// TryWriteAt writes p at off, always.
func (m *Device) TryWriteAt(p []byte, off int64) bool {
	return m.WriteAt(context.Background(), p, off, false) == nil
}

// ReadAt fills p from off.
func (m *Device) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := m.check(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		page, at := off/pageBytes, int(off%pageBytes)
		n := min(len(p), pageBytes-at)
		s := &m.shards[page%shardCount]
		s.mu.RLock()
		if b := s.pages[page]; b != nil {
			copy(p[:n], b[at:])
		} else {
			clear(p[:n])
		}
		s.mu.RUnlock()
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p at off.
func (m *Device) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	if err := m.check(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		page, at := off/pageBytes, int(off%pageBytes)
		n := min(len(p), pageBytes-at)
		s := &m.shards[page%shardCount]
		s.mu.Lock()
		b := s.pages[page]
		if b == nil {
			b = new([pageBytes]byte)
			s.pages[page] = b
		}
		copy(b[at:], p[:n])
		s.mu.Unlock()
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Trim zeroes.
func (m *Device) Trim(ctx context.Context, off, n int64, fua bool) error {
	return m.Zero(ctx, off, n, true, fua)
}

// Zero clears the pages that exist, and drops whole ones.
func (m *Device) Zero(_ context.Context, off, n int64, _, _ bool) error {
	if err := m.check(off, n); err != nil {
		return err
	}
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for page, b := range s.pages {
			// Not (page+1)*pageBytes, which may be 2^63.
			from, to := max(off-page*pageBytes, 0), min(off+n-page*pageBytes, pageBytes)
			switch {
			case from >= to:
			case from == 0 && to == min(pageBytes, m.size-page*pageBytes):
				delete(s.pages, page)
			default:
				clear(b[from:to])
			}
		}
		s.mu.Unlock()
	}
	return nil
}

// Extents tells pages that were written from those that were not.
func (m *Device) Extents(_ context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if err := m.check(off, n); err != nil {
		return err
	}
	var pages []int64
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		for page := range s.pages {
			if page >= off/pageBytes && page <= (off+n-1)/pageBytes {
				pages = append(pages, page)
			}
		}
		s.mu.RUnlock()
	}
	slices.Sort(pages)
	end := off + n
	for _, page := range pages {
		if first := page * pageBytes; off < first {
			if !each(nbd.Extent{N: first - off, Hole: true, Zero: true}) {
				return nil
			}
			off = first
		}
		e := nbd.Extent{N: min(pageBytes-off%pageBytes, end-off)}
		if !each(e) {
			return nil
		}
		off += e.N
	}
	if off < end {
		each(nbd.Extent{N: end - off, Hole: true, Zero: true})
	}
	return nil
}

// Prefetch does nothing: all is in memory.
func (m *Device) Prefetch(_ context.Context, off, n int64) error { return m.check(off, n) }

// ZeroIsFast is true for whole pages that may go.
func (m *Device) ZeroIsFast(off, n int64, mayTrim bool) bool {
	return mayTrim && off%pageBytes == 0 && (n%pageBytes == 0 || off+n == m.size)
}

// Flush does nothing.
func (m *Device) Flush(context.Context) error { return nil }

func (m *Device) check(off, n int64) error {
	if off < 0 || n < 0 || off > m.size || n > m.size-off {
		return nbd.ErrOutOfRange
	}
	return nil
}
