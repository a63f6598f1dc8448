package stripe

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

type place struct {
	spindle id.Spindle
	segment id.Segment
	index   uint8
}

type kept struct {
	header    datanode.SegmentHeader
	data      []byte
	sums      []uint32
	badHeader bool
}

// memory is a FragmentNode in memory with faults to inject.
type memory struct {
	datanode.FragmentNode // the calls a Store does not make

	mu        sync.Mutex
	fragments map[place]*kept
	down      map[id.Spindle]bool // fails every call
	full      map[id.Spindle]bool // refuses writes
	torn      map[id.Spindle]bool // fails the I/O of every call
	version   uint64              // of the layouts
	takes     func(id.Spindle) time.Duration
	reads     int // ranges asked for
	calls     int
}

func newMemory() *memory {
	return &memory{
		fragments: map[place]*kept{}, down: map[id.Spindle]bool{}, full: map[id.Spindle]bool{},
		torn: map[id.Spindle]bool{}, version: 7,
	}
}

func (m *memory) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.LayoutVersion < m.version {
		return nil, datanode.ErrStaleLayout
	}
	reply := &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(r.Fragments))}
	for i, f := range r.Fragments {
		at := place{f.Spindle, r.Header.Segment, f.Index}
		switch {
		case m.down[f.Spindle]:
			reply.Errors[i] = datanode.ErrSpindle
		case m.torn[f.Spindle]:
			reply.Errors[i] = datanode.ErrCorrupt
		case m.full[f.Spindle]:
			reply.Errors[i] = datanode.ErrNoSpace
		case m.fragments[at] != nil && !r.Replace:
			reply.Errors[i] = datanode.ErrInvalid
		case len(f.Data) == 0 || len(f.Data)%datanode.BlockBytes != 0:
			reply.Errors[i] = datanode.ErrInvalid
		default:
			k := &kept{header: r.Header, data: bytes.Clone(f.Data)}
			k.header.Births = slices.Clone(r.Header.Births)
			k.sum()
			m.fragments[at] = k
		}
	}
	return reply, nil
}

func (m *memory) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for at := range m.fragments {
		if at.segment == r.Segment && !m.down[at.spindle] {
			delete(m.fragments, at)
		}
	}
	return nil
}

func (k *kept) sum() {
	k.sums = k.sums[:0]
	for b := 0; b < len(k.data); b += datanode.BlockBytes {
		k.sums = append(k.sums, crc32.Checksum(k.data[b:b+datanode.BlockBytes], castagnoli))
	}
}

func (m *memory) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	if m.takes != nil {
		longest := time.Duration(0)
		for i := range r.Ranges {
			longest = max(longest, m.takes(r.Ranges[i].Spindle))
		}
		time.Sleep(longest)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(r.Ranges) > callRangesMax {
		return nil, datanode.ErrInvalid
	}
	m.calls++
	m.reads += len(r.Ranges)
	reply := &datanode.ReadFragmentsReply{Results: make([]datanode.FragmentData, len(r.Ranges))}
	for i, f := range r.Ranges {
		d, k := &reply.Results[i], m.fragments[place{f.Spindle, f.Segment, f.Index}]
		switch {
		case m.down[f.Spindle]:
			d.Err = datanode.ErrSpindle
			continue
		case m.torn[f.Spindle]:
			d.Err = datanode.ErrCorrupt
			continue
		case k == nil:
			d.Err = datanode.ErrNotFound
			continue
		}
		end := int(f.Offset) + int(f.Length)
		if r.Verify && f.Length == 0 {
			end = len(k.data)
		}
		if end > len(k.data) || int(f.Offset) >= end || r.Verify && (f.Offset%datanode.BlockBytes != 0 || end%datanode.BlockBytes != 0) {
			d.Err = datanode.ErrInvalid
			continue
		}
		d.Data = bytes.Clone(k.data[f.Offset:end])
		if !r.Verify {
			continue
		}
		if d.BadHeader = k.badHeader; d.BadHeader {
			d.Err = datanode.ErrCorrupt
			continue
		}
		d.Bytes, d.Header = uint32(len(k.data)), k.header
		for b := int(f.Offset) / datanode.BlockBytes; b < end/datanode.BlockBytes; b++ {
			block := k.data[b*datanode.BlockBytes:][:datanode.BlockBytes]
			if crc32.Checksum(block, castagnoli) != k.sums[b] {
				d.Bad = append(d.Bad, uint32(b))
			}
		}
	}
	return reply, nil
}

// rig is a store over a node in memory, with what it has written.
type rig struct {
	testing.TB
	g      Geometry
	node   *memory
	store  *Store
	memory Memory
	number uint64
}

func newRig(t testing.TB, g Geometry, spindles int) *rig {
	t.Helper()
	r := &rig{TB: t, g: g, node: newMemory()}
	store, err := NewStore(r.node, makeLayouts(t, g, spindles), Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.store = store
	return r
}

func (r *rig) next(context.Context) (uint64, error) {
	r.number++
	return r.number, nil
}

func (r *rig) write(s *Segment) {
	r.Helper()
	if err := r.store.Write(r.Context(), s, r.next); err != nil {
		r.Fatal(err)
	}
}

// kept returns a fragment as the node has it, to damage it; nil if it has not.
func (r *rig) kept(seg id.Segment, index int) *kept {
	return r.node.fragments[r.place(seg, index)]
}

func (r *rig) place(seg id.Segment, index int) place {
	return place{r.store.Layouts().Lists[seg.Layout()][index], seg, uint8(index)}
}

func (r *rig) lose(seg id.Segment, index int) { delete(r.node.fragments, r.place(seg, index)) }

// flip changes a byte; with silent, its block's checksum is made to hold.
func (r *rig) flip(seg id.Segment, index, at int, silent bool) {
	k := r.kept(seg, index)
	k.data[at] ^= 0x41
	if silent {
		k.sum()
	}
}

// intact fails the test unless the node holds the segment exactly as packed.
func (r *rig) intact(s *Segment) {
	r.Helper()
	for i, want := range s.Fragments {
		k := r.kept(s.Header.Segment, i)
		if k == nil || k.badHeader || !bytes.Equal(k.data, want) {
			r.Fatalf("%s: fragment %d is not as it was packed", r.g, i)
		}
		h, sums := k.header, slices.Clone(k.sums)
		if k.sum(); !slices.Equal(sums, k.sums) || fmt.Sprint(h) != fmt.Sprint(s.Header) {
			r.Fatalf("%s: fragment %d: header %+v or checksums differ", r.g, i, h)
		}
	}
}

// is returns a check for exactly those bytes.
func is(want []byte) func([]byte) error {
	return func(p []byte) error {
		if !bytes.Equal(p, want) {
			return fmt.Errorf("not what was sealed")
		}
		return nil
	}
}
