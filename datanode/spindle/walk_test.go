package spindle

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

func TestListAndSegments(t *testing.T) {
	r := memoryRig(t, 3)
	want := map[id.Segment][]Place{}
	for _, n := range r.rng.Perm(25) {
		s := id.MakeSegment(id.Layout(n%4), uint64(n+1))
		for sp := range id.Spindle(3) {
			if (n+int(sp))%5 != 0 {
				r.mustWrite(sp, s, uint8(sp), r.noise(1+n%3))
				want[s] = append(want[s], Place{sp, uint8(sp)})
			}
		}
	}
	for _, limit := range []int{0, 1, 3, 100} {
		q := &datanode.ListFragmentsRequest{Spindle: 1, Max: limit}
		var rows []datanode.FragmentInfo
		for {
			reply, err := r.ListFragments(context.Background(), q)
			r.ok(err)
			rows = append(rows, reply.Fragments...)
			if !reply.More {
				break
			}
			last := rows[len(rows)-1]
			q.Started, q.Segment, q.Index = true, last.Segment, last.Index
		}
		if len(rows) != 20 || !slices.IsSortedFunc(rows, func(a, b datanode.FragmentInfo) int {
			return name{a.Segment, a.Index}.compare(name{b.Segment, b.Index})
		}) {
			t.Fatalf("pages of %d: %d rows", limit, len(rows))
		}
	}
	var last id.Segment
	r.ok(r.Segments(func(s SegmentOnSpindles) error {
		if s.Segment <= last || !slices.Equal(s.Present, want[s.Segment]) || s.Damaged {
			t.Fatalf("%+v after %s, want %v", s, last, want[s.Segment])
		}
		if s.Header.Segment != s.Segment || len(s.Header.Births) != 2 || s.FragmentBytes != uint32(1+(s.Segment.Number()-1)%3)*blockBytes {
			t.Fatalf("%+v", s)
		}
		last = s.Segment
		delete(want, s.Segment)
		return r.Delete(context.Background(), s.Segment)
	}))
	if len(want) > 0 {
		t.Fatalf("not walked: %v", want)
	}
	r.audit()
	stop := errors.New("stop")
	r.mustWrite(0, 1, 0, r.noise(1))
	if err := r.Segments(func(SegmentOnSpindles) error { return stop }); err != stop {
		t.Fatal(err)
	}
}

// A walk takes the header of a fragment that has a sound one.
func TestSegmentsWithDamage(t *testing.T) {
	r := memoryRig(t, 2)
	for sp := range id.Spindle(2) {
		r.mustWrite(sp, 5, uint8(sp), r.noise(2))
		r.mustWrite(sp, 6, uint8(sp), r.noise(2))
	}
	spoil := func(sp id.Spindle, s id.Segment) {
		p := r.all()[sp].catalog.get(name{s, uint8(sp)}).parts[0]
		if _, err := p.slab.f.WriteAt([]byte{0xEE}, int64(p.start)*blockBytes+100); err != nil {
			t.Fatal(err)
		}
	}
	spoil(0, 5)
	spoil(0, 6)
	spoil(1, 6)
	var got []SegmentOnSpindles
	r.ok(r.Segments(func(s SegmentOnSpindles) error { got = append(got, s); return nil }))
	if len(got) != 2 || got[0].Damaged || got[0].Header.K != 8 || !got[1].Damaged || got[1].Header.Segment != 6 || got[1].FragmentBytes != 2*blockBytes {
		t.Fatalf("%+v", got)
	}
}

func TestMeta(t *testing.T) {
	places(t, func(t *testing.T, fs vfs.FS, base string) {
		r := newRig(t, fs, base, 2, Options{SizeBytes: 1 << 20})
		_, err := r.GetMeta(1, "registry")
		r.expectError(err, datanode.ErrNotFound)
		for _, data := range [][]byte{[]byte("one"), {}, r.noise(300)} {
			r.ok(r.PutMeta(1, "registry", data))
			r.reopen()
			got, err := r.GetMeta(1, "registry")
			r.ok(err)
			if !bytes.Equal(got, data) {
				t.Fatalf("%d bytes of %d", len(got), len(data))
			}
		}
		for _, bad := range []string{"", "A", "../a", "a.new", string(make([]byte, 65))} {
			r.expectError(r.PutMeta(1, bad, nil), datanode.ErrInvalid)
		}
		r.expectError(r.PutMeta(2, "a", nil), datanode.ErrInvalid)
		r.expectError(r.PutMeta(0, "a", make([]byte, MetaBytesMax+1)), datanode.ErrInvalid)
		path := fs.PathJoin(r.dirs[1], metaPrefix+"registry")
		r.ok(writeFile(fs, path, []byte("short")))
		_, err = r.GetMeta(1, "registry")
		r.expectError(err, datanode.ErrCorrupt)
	})
}

// Readers never see another fragment's bytes while theirs is replaced, deleted
// and its blocks are used again.
func TestConcurrentUse(t *testing.T) {
	r := memoryRig(t, 2)
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 60 {
				s := id.Segment(1 + (i+w*37)%9)
				data := bytes.Repeat([]byte{byte(s)}, (1+i%30)*blockBytes)
				if err := r.write(id.Spindle(w%2), s, 0, data, true); err != nil && err.Code != datanode.CodeNoSpace &&
					err.Code != datanode.CodeInvalid && err.Code != datanode.CodeGone {
					t.Error(err)
				}
				if i%4 == 0 {
					if err := r.Delete(context.Background(), s); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				s := id.Segment(1 + i%9)
				fr := datanode.FragmentRange{Spindle: id.Spindle(i % 2), Segment: s, Offset: 10, Length: 100}
				verify := i%3 == 0
				if verify {
					fr.Offset, fr.Length = 0, 0
				}
				d := r.read(fr, verify)
				if d.Err != nil && d.Err.Code != datanode.CodeNotFound || d.BadHeader || len(d.Bad) > 0 ||
					bytes.Count(d.Data, []byte{byte(s)}) != len(d.Data) {
					t.Errorf("segment %s: %v, %v", s, d.Err, d.Bad)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	r.audit()
	for s := range id.Segment(10) {
		r.ok(r.Delete(context.Background(), s))
	}
	r.audit()
	if n := r.Status()[0]; n.Fragments != 0 {
		t.Fatalf("%+v", n)
	}
}

func TestCallsAreBounded(t *testing.T) {
	r := memoryRig(t, 2)
	good := func() *datanode.WriteFragmentsRequest {
		return &datanode.WriteFragmentsRequest{Header: segmentHeader(1), LayoutVersion: 5,
			Fragments: []datanode.Fragment{{Spindle: 1, Index: 2, Data: r.noise(1)}}}
	}
	for i, change := range []func(q *datanode.WriteFragmentsRequest){
		func(q *datanode.WriteFragmentsRequest) { q.Header.Segment = 0 },
		func(q *datanode.WriteFragmentsRequest) { q.Header.Kind = 3 },
		func(q *datanode.WriteFragmentsRequest) { q.Header.K = 0 },
		func(q *datanode.WriteFragmentsRequest) { q.Header.M = 25 },
		func(q *datanode.WriteFragmentsRequest) { q.Header.DataBytes = id.SegmentBytesMax + 1 },
		func(q *datanode.WriteFragmentsRequest) {
			q.Header.Births = make([]datanode.Birth, datanode.BirthsMax+1)
		},
		func(q *datanode.WriteFragmentsRequest) { q.Header.Births[0].Slots = id.SlotsMax },
		func(q *datanode.WriteFragmentsRequest) { q.Fragments = nil },
		func(q *datanode.WriteFragmentsRequest) { q.Fragments[0].Spindle = 2 },
		func(q *datanode.WriteFragmentsRequest) { q.Fragments[0].Index = 10 },
		func(q *datanode.WriteFragmentsRequest) { q.Fragments[0].Data = nil },
		func(q *datanode.WriteFragmentsRequest) { q.Fragments[0].Data = make([]byte, blockBytes+1) },
		func(q *datanode.WriteFragmentsRequest) {
			q.Fragments[0].Data = make([]byte, datanode.FragmentBytesMax+blockBytes)
		},
		func(q *datanode.WriteFragmentsRequest) { q.Fragments = append(q.Fragments, q.Fragments[0]) },
	} {
		q := good()
		change(q)
		if _, err := r.WriteFragments(context.Background(), q); !errors.Is(err, datanode.ErrInvalid) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	r.SetLayoutVersion(6)
	r.SetLayoutVersion(4)
	_, err := r.WriteFragments(context.Background(), good())
	r.expectError(err, datanode.ErrStaleLayout)
	for i, q := range []datanode.ReadFragmentsRequest{
		{Ranges: make([]datanode.FragmentRange, RangesMax+1)},
		{Ranges: []datanode.FragmentRange{{Offset: 1}}, Verify: true},
		{Ranges: []datanode.FragmentRange{{Length: datanode.FragmentBytesMax + 1}}},
		{Ranges: make([]datanode.FragmentRange, 33), Verify: true},
	} {
		if _, err := r.ReadFragments(context.Background(), &q); !errors.Is(err, datanode.ErrInvalid) {
			t.Errorf("read %d: %v", i, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	q := good()
	q.LayoutVersion = 6
	if _, err := r.WriteFragments(ctx, q); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.ok(r.Close())
	_, err = r.WriteFragments(context.Background(), q)
	r.expectError(err, datanode.ErrClosed)
	r.expectError(r.Segments(nil), datanode.ErrClosed)
	r.ok(r.Close())
}
