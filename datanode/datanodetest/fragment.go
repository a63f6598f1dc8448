package datanodetest

import (
	"bytes"

	"plinth/datanode"
	"plinth/internal/id"
)

// reading returns the request for a whole fragment of a sample.
func (s *sample) reading(index int) datanode.FragmentRange {
	return datanode.FragmentRange{
		Spindle: s.fragments[index].Spindle, Segment: s.id(), Index: uint8(index),
		Length: sampleFragmentBytes,
	}
}

// readFragments reads ranges and checks that each has an answer.
func (e *env) readFragments(verify bool, ranges ...datanode.FragmentRange) []datanode.FragmentData {
	e.Helper()
	reply, err := e.node.ReadFragments(e.ctx(), &datanode.ReadFragmentsRequest{Ranges: ranges, Verify: verify})
	e.ok(err)
	if len(reply.Results) != len(ranges) {
		e.Fatalf("%d results for %d ranges", len(reply.Results), len(ranges))
	}
	return reply.Results
}

// intact fails the test unless all fragments of a sample read back verified.
func (e *env) intact(s *sample) {
	e.Helper()
	for i, f := range s.fragments {
		got := e.readFragments(true, s.reading(i))[0]
		if got.Err != nil {
			e.Fatalf("fragment %d of %s: %v", i, s.id(), got.Err)
		}
		if !bytes.Equal(got.Data, f.Data) || len(got.Bad) != 0 || got.BadHeader {
			e.Fatalf("fragment %d of %s differs (bad blocks %v, bad header %t)", i, s.id(), got.Bad, got.BadHeader)
		}
		h, w := got.Header, s.entry.Header
		if got.Bytes != uint32(len(f.Data)) || h.Segment != w.Segment || h.Kind != w.Kind || h.K != w.K ||
			h.M != w.M || h.DataBytes != w.DataBytes || len(h.Births) != len(w.Births) {
			e.Fatalf("fragment %d of %s: header %+v (%d bytes), want %+v", i, s.id(), h, got.Bytes, w)
		}
		for j := range h.Births {
			if h.Births[j] != w.Births[j] {
				e.Fatalf("fragment %d of %s: birth %d is %+v, want %+v", i, s.id(), j, h.Births[j], w.Births[j])
			}
		}
	}
}

// gone fails the test unless none of the sample's fragments is left.
func (e *env) gone(s *sample) {
	e.Helper()
	for i := range s.fragments {
		if got := e.readFragments(false, s.reading(i))[0]; got.Err == nil || got.Err.Code != datanode.CodeNotFound {
			e.Fatalf("fragment %d of %s is not gone: %v", i, s.id(), got.Err)
		}
	}
}

func (e *env) listFragments(spindle id.Spindle, max int) []datanode.FragmentInfo {
	e.Helper()
	var all []datanode.FragmentInfo
	r := &datanode.ListFragmentsRequest{Spindle: spindle, Max: max}
	for {
		reply, err := e.node.ListFragments(e.ctx(), r)
		e.ok(err)
		if max > 0 && len(reply.Fragments) > max {
			e.Fatalf("a page of %d rows, asked for at most %d", len(reply.Fragments), max)
		}
		all = append(all, reply.Fragments...)
		if !reply.More {
			return all
		}
		if len(reply.Fragments) == 0 {
			e.Fatal("an empty page says that there is more")
		}
		last := reply.Fragments[len(reply.Fragments)-1]
		r.Started, r.Segment, r.Index = true, last.Segment, last.Index
	}
}

var sampleBirths = []datanode.Birth{{Disk: 1, Epoch: 1, Slots: 5}, {Disk: 2, Epoch: 7, Slots: 3}}

var fragmentRules = []rule{
	{"what was written is read back, with its header", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		e.intact(s)
	}},
	{"any range of bytes is read without verifying", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		var ranges []datanode.FragmentRange
		for _, at := range [][2]uint32{{0, 1}, {1, 4096}, {4095, 2}, {4096, 4096}, {8191, 1}, {64, 64}} {
			r := s.reading(1)
			r.Offset, r.Length = at[0], at[1]
			ranges = append(ranges, r)
		}
		for i, got := range e.readFragments(false, ranges...) {
			r := ranges[i]
			if got.Err != nil || !bytes.Equal(got.Data, s.fragments[1].Data[r.Offset:r.Offset+r.Length]) {
				e.Fatalf("range %d+%d: error %v, %d bytes", r.Offset, r.Length, got.Err, len(got.Data))
			}
		}
	}},
	{"answers are the same in memory that the caller lends, and in too little of it", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		a, b, absent := s.reading(1), s.reading(2), s.reading(1)
		a.Offset, a.Length, b.Length = 7, 100, 5000
		absent.Segment++
		for _, n := range []int{0, 1, 5100, 1 << 20} {
			reply, err := e.node.ReadFragments(e.ctx(), &datanode.ReadFragmentsRequest{
				Ranges: []datanode.FragmentRange{a, absent, b}, Into: make([]byte, n),
			})
			e.ok(err)
			for i, want := range [][]byte{s.fragments[1].Data[7:107], nil, s.fragments[2].Data[:5000]} {
				if got := reply.Results[i]; (got.Err == nil) != (want != nil) || !bytes.Equal(got.Data, want) {
					e.Fatalf("range %d, %d bytes lent: error %v, %d bytes", i, n, got.Err, len(got.Data))
				}
			}
		}
	}},
	{"a verified read of length 0 goes to the end, a scrub returns no data", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		r := s.reading(2)
		r.Offset, r.Length = datanode.BlockBytes, 0
		got := e.readFragments(true, r)[0]
		if got.Err != nil || !bytes.Equal(got.Data, s.fragments[2].Data[datanode.BlockBytes:]) {
			e.Fatalf("read to the end: error %v, %d bytes", got.Err, len(got.Data))
		}
		reply, err := e.node.ReadFragments(e.ctx(), &datanode.ReadFragmentsRequest{
			Ranges: []datanode.FragmentRange{s.reading(2)}, Verify: true, Discard: true,
		})
		e.ok(err)
		if got := reply.Results[0]; got.Err != nil || len(got.Data) != 0 || got.Bytes != sampleFragmentBytes {
			e.Fatalf("scrub: error %v, %d bytes of data, length %d", got.Err, len(got.Data), got.Bytes)
		}
	}},
	{"each range has its own error", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		absent, other := s.reading(1), s.reading(1)
		absent.Segment++
		other.Index = 0
		got := e.readFragments(false, absent, s.reading(1), other)
		for _, i := range []int{0, 2} {
			if got[i].Err == nil || got[i].Err.Code != datanode.CodeNotFound {
				e.Fatalf("range %d of a fragment that is not there: %v", i, got[i].Err)
			}
		}
		if got[1].Err != nil || !bytes.Equal(got[1].Data, s.fragments[1].Data) {
			e.Fatalf("the range between them: %v", got[1].Err)
		}
	}},
	{"a fragment is not overwritten by accident", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		r := s.writeRequest(e.status().LayoutVersion)
		r.Fragments = []datanode.Fragment{s.fragments[0]}
		r.Fragments[0].Data = make([]byte, sampleFragmentBytes)
		reply, err := e.node.WriteFragments(e.ctx(), r)
		e.ok(err)
		if reply.Errors[0] == nil {
			e.Fatal("an existing fragment was written again without Replace")
		}
		e.intact(s)
	}},
	{"one refused fragment does not stop the others of its call", func(e *env) {
		s := e.make(sampleBirths...)
		r := s.writeRequest(e.status().LayoutVersion)
		r.Fragments = s.fragments[1:2]
		_, err := e.node.WriteFragments(e.ctx(), r)
		e.ok(err)
		reply, err := e.node.WriteFragments(e.ctx(), s.writeRequest(r.LayoutVersion))
		e.ok(err)
		if reply.Errors[0] != nil || reply.Errors[1] == nil || reply.Errors[2] != nil {
			e.Fatalf("errors %v", reply.Errors)
		}
		e.intact(s)
	}},
	{"what was not published can be discarded, for good", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		for range 2 {
			e.ok(e.node.DiscardFragments(e.ctx(), &datanode.DiscardFragmentsRequest{Segment: s.id()}))
		}
		for range 2 {
			for _, f := range s.fragments {
				if rows := e.listFragments(f.Spindle, 0); len(rows) != 0 {
					e.Fatalf("%d rows on spindle %d after a discard", len(rows), f.Spindle)
				}
			}
			e.reopen()
		}
	}},
	{"what was published is not discarded", func(e *env) {
		s := e.store(sampleBirths...)
		e.fails("discard", e.node.DiscardFragments(e.ctx(), &datanode.DiscardFragmentsRequest{Segment: s.id()}), datanode.ErrInvalid)
		e.intact(s)
	}},
	{"a spindle that serves is not another drive", func(e *env) {
		s := e.store(sampleBirths...)
		e.fails("replace", e.node.ReplaceSpindle(e.ctx(), &datanode.ReplaceSpindleRequest{Spindle: s.fragments[0].Spindle}), datanode.ErrInvalid)
		e.intact(s)
	}},
	{"a spindle is added under the next number alone", func(e *env) {
		s := e.store(sampleBirths...)
		e.fails("add", e.node.AddSpindle(e.ctx(), &datanode.AddSpindleRequest{}), datanode.ErrInvalid)
		e.intact(s)
	}},
	{"Replace replaces, and survives", func(e *env) {
		s := e.make(sampleBirths...)
		e.write(s)
		for i := range s.fragments[1].Data {
			s.fragments[1].Data[i] ^= 0x5a
		}
		r := s.writeRequest(e.status().LayoutVersion)
		r.Replace, r.Fragments = true, s.fragments[1:2]
		reply, err := e.node.WriteFragments(e.ctx(), r)
		e.ok(err)
		if reply.Errors[0] != nil {
			e.Fatal(reply.Errors[0])
		}
		e.intact(s)
		e.reopen()
		e.intact(s)
		if rows := e.listFragments(s.fragments[1].Spindle, 0); len(rows) != 1 {
			e.Fatalf("%d rows after a replacement, want 1", len(rows))
		}
	}},
	{"Replace restores a fragment that is not there", func(e *env) {
		s := e.make(sampleBirths...)
		r := s.writeRequest(e.status().LayoutVersion)
		r.Replace = true
		reply, err := e.node.WriteFragments(e.ctx(), r)
		e.ok(err)
		for i := range reply.Errors {
			if reply.Errors[i] != nil {
				e.Fatal(reply.Errors[i])
			}
		}
		e.intact(s)
	}},
	{"a spindle lists its fragments in order, in pages", func(e *env) {
		var spindle id.Spindle
		for _, n := range []uint64{9, 3, 12, 1, 7, 30, 5} {
			s := e.makeNumber(n, sampleBirths...)
			e.write(s)
			spindle = s.fragments[0].Spindle
		}
		for _, max := range []int{0, 1, 3, 7, 100} {
			rows := e.listFragments(spindle, max)
			if len(rows) != 7 {
				e.Fatalf("%d rows in pages of %d, want 7", len(rows), max)
			}
			allocated := int64(0)
			for i, r := range rows {
				if i > 0 && rows[i-1].Segment >= r.Segment {
					e.Fatalf("row %d: %s after %s", i, r.Segment, rows[i-1].Segment)
				}
				if r.Bytes != sampleFragmentBytes || r.AllocatedBytes < r.Bytes || r.Index != 0 {
					e.Fatalf("row %+v", r)
				}
				allocated += int64(r.AllocatedBytes)
			}
			for _, s := range e.status().Spindles {
				if s.Spindle == spindle && (s.AllocatedBytes != allocated || s.Fragments != 7) {
					e.Fatalf("status says %d bytes in %d fragments, the rows %d in 7", s.AllocatedBytes, s.Fragments, allocated)
				}
			}
		}
	}},
	{"a spindle that the pool has not", func(e *env) {
		s := e.make(sampleBirths...)
		s.fragments[0].Spindle = 60000
		reply, err := e.node.WriteFragments(e.ctx(), s.writeRequest(e.status().LayoutVersion))
		if err != nil {
			e.fails("write", err, datanode.ErrInvalid)
		} else if reply.Errors[0] == nil {
			e.Fatal("written to a spindle that does not exist")
		}
		reads, err := e.node.ReadFragments(e.ctx(), &datanode.ReadFragmentsRequest{
			Ranges: []datanode.FragmentRange{s.reading(0)},
		})
		if err != nil {
			e.fails("read", err, datanode.ErrInvalid)
		} else if reads.Results[0].Err == nil {
			e.Fatal("read from a spindle that does not exist")
		}
		_, err = e.node.ListFragments(e.ctx(), &datanode.ListFragmentsRequest{Spindle: 60000})
		e.fails("list", err, datanode.ErrInvalid, datanode.ErrSpindle, datanode.ErrNotFound)
	}},
	{"fragments survive their node", func(e *env) {
		var all []*sample
		for range 10 {
			s := e.make(sampleBirths...)
			e.write(s)
			all = append(all, s)
		}
		e.reopen()
		for _, s := range all {
			e.intact(s)
		}
	}},
	{"a node keeps no slice of a request, and a caller owns the reply", func(e *env) {
		s := e.make(sampleBirths...)
		sent := e.makeNumber(e.number, append([]datanode.Birth(nil), sampleBirths...)...)
		e.write(sent)
		for i := range sent.fragments {
			clear(sent.fragments[i].Data)
		}
		clear(sent.entry.Header.Births)
		e.intact(s)
		clear(e.readFragments(true, s.reading(0))[0].Data)
		clear(e.readFragments(true, s.reading(0))[0].Header.Births)
		e.intact(s)
	}},
}
