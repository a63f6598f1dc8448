package spindle

import (
	"errors"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
)

// pin finds a fragment and keeps its blocks from being reused until unpin, which ends the
// call that this begins.
func (sp *spindle) pin(n name) (*fragment, *datanode.Error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err := sp.unavailable(); err != nil {
		return nil, err
	}
	f := sp.catalog.get(n)
	if f == nil {
		return nil, datanode.Errorf(datanode.ErrNotFound, "fragment %d of segment %s on spindle %d", n.index, n.segment, sp.number)
	}
	f.pins++
	sp.calls.Add(1)
	return f, nil
}

func (sp *spindle) unpin(f *fragment) {
	defer sp.leave()
	sp.mu.Lock()
	f.pins--
	idle := f.pins == 0 && f.cleared
	sp.mu.Unlock()
	if idle {
		sp.release([]*fragment{f}) // a failure is the spindle's state
	}
}

// readAt fills p with the fragment's bytes from off on, its header included.
func (f *fragment) readAt(p []byte, off int64) error {
	for _, part := range f.parts {
		if len(p) == 0 {
			return nil
		}
		length := int64(part.n) * blockBytes
		if off >= length {
			off -= length
			continue
		}
		n := min(int64(len(p)), length-off)
		if err := readFull(part.slab.f, p[:n], int64(part.start)*blockBytes+off); err != nil {
			return fmt.Errorf("%s: %w", part.slab.path, err)
		}
		p, off = p[n:], 0
	}
	return nil
}

// header reads and checks the fragment's header.
func (sp *spindle) header(f *fragment) (*header, error) {
	b := buffer(int(headerBlocks(f.bytes)) * blockBytes)
	defer buffers.Put(b)
	if err := f.readAt(*b, 0); err != nil {
		return nil, err
	}
	h, err := decodeHeader(*b, &sp.pool)
	if err != nil {
		return nil, err
	}
	if h.Segment != f.segment || h.index != f.index || h.bytes != f.bytes || h.serial != f.serial {
		return nil, fmt.Errorf("fragment header: %w: it is fragment %d of %s, serial %d", errDamaged, h.index, h.Segment, h.serial)
	}
	return h, nil
}

// read answers one range, in the memory into if that is not nil: then it has the
// range's length, and verify is false.
func (sp *spindle) read(r *datanode.FragmentRange, into []byte, verify, discard bool) (d datanode.FragmentData) {
	f, failed := sp.pin(name{r.Segment, r.Index})
	if failed != nil {
		return datanode.FragmentData{Err: failed}
	}
	defer sp.unpin(f)
	length := r.Length
	if verify && length == 0 && r.Offset < f.bytes {
		length = f.bytes - r.Offset
	}
	if length == 0 || uint64(r.Offset)+uint64(length) > uint64(f.bytes) {
		return datanode.FragmentData{Err: datanode.Errorf(datanode.ErrInvalid,
			"read %d bytes at %d of fragment %d of segment %s, which has %d", length, r.Offset, r.Index, r.Segment, f.bytes)}
	}
	corrupt := func(err error) *datanode.Error {
		return datanode.Errorf(datanode.ErrCorrupt, "read fragment %d of segment %s on spindle %d (%s): %s",
			f.index, f.segment, sp.number, sp.dir, err)
	}
	var data []byte
	if discard {
		b := buffer(int(length))
		defer buffers.Put(b)
		data = *b
	} else {
		if data = into; data == nil {
			data = make([]byte, length)
		}
		d.Data = data
	}
	if err := f.readAt(data, int64(headerBlocks(f.bytes))*blockBytes+int64(r.Offset)); err != nil {
		return datanode.FragmentData{Err: corrupt(err)}
	}
	if !verify {
		return d
	}
	h, err := sp.header(f)
	if err != nil {
		d.Err = corrupt(err)
		d.BadHeader = errors.Is(err, errDamaged) || errors.Is(err, ErrVersion)
		return d
	}
	d.Bytes, d.Header = f.bytes, h.SegmentHeader
	for first := r.Offset / blockBytes; len(data) > 0; first++ {
		if checksum(data[:blockBytes]) != h.sums[first] {
			d.Bad = append(d.Bad, first)
		}
		data = data[blockBytes:]
	}
	return d
}

// list returns up to n rows from start on.
func (sp *spindle) list(start name, n int) ([]datanode.FragmentInfo, *datanode.Error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err := sp.unavailable(); err != nil {
		return nil, err
	}
	var rows []datanode.FragmentInfo
	for _, f := range sp.catalog.from(start, n) {
		rows = append(rows, f.info())
	}
	return rows, nil
}

// next returns the name behind n in the order of catalogs, and false at its end.
func (n name) next() (name, bool) {
	if n.index < 1<<8-1 {
		return name{n.segment, n.index + 1}, true
	}
	return name{n.segment + 1, 0}, n.segment+1 != id.Segment(0)
}
