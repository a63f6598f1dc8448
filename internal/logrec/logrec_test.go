package logrec

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
)

func sealer(t testing.TB) (*chunk.Sealer, *chunk.Hasher) {
	s, err := chunk.NewSealer(1, chunk.NewSecret(), nil, chunk.SealerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, chunk.NewHasher(chunk.NewSecret())
}

func writeRecord(t testing.TB, first id.LBA, n int) []byte {
	s, h := sealer(t)
	rec := AppendWrite(nil, first, n)
	for i := range n {
		plain := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		var err error
		if rec, err = s.SealChunk(rec, chunk.Suite(1+i%2), h.Sum(plain), plain); err != nil {
			t.Fatal(err)
		}
	}
	return rec
}

func TestWriteDecodes(t *testing.T) {
	rec := writeRecord(t, 77, 5)
	op, err := DecodeOp(TypeWrite, rec)
	if err != nil || op.First != 77 || len(op.Chunks) != 5 {
		t.Fatalf("DecodeOp = %v chunks from %d, %v", len(op.Chunks), op.First, err)
	}
	if got := bytes.Join(op.Chunks, nil); !bytes.Equal(got, rec[writeHeaderBytes:]) {
		t.Error("the chunks are not the record's")
	}
	for n := range rec {
		if _, err := DecodeOp(TypeWrite, rec[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("write cut at %d of %d bytes: %v", n, len(rec), err)
		}
	}
}

func TestRangesAndBounds(t *testing.T) {
	for _, c := range []struct {
		t    Type
		data []byte
		want error
	}{
		{TypeZero, AppendRange(nil, 5, 7), nil},
		{TypeTrim, AppendRange(nil, 0, DiskBytesMax), nil},
		{TypeTrim, AppendRange(nil, 1, DiskBytesMax), ErrCorrupt},
		{TypeTrim, AppendRange(nil, -1, 5), ErrCorrupt},
		{TypeTrim, AppendRange(nil, 1, 0), ErrCorrupt},
		{TypeZero, AppendRange(nil, 5, 7)[:15], ErrCorrupt},
		{TypeResize, AppendResize(nil, 1<<30), nil},
		{TypeResize, AppendResize(nil, -1), ErrCorrupt},
		{TypePart, append(AppendPart(nil, 3, 5), make([]byte, 48)...), nil},
		{TypePart, AppendPart(nil, 3, 5), ErrCorrupt},
		{TypePart, append(AppendPart(nil, 3, 0), 1), ErrCorrupt},
		{TypePart, append(AppendPart(nil, 3, 1<<20), 1), ErrCorrupt},
		{TypeSnapshot, AppendSnapshot(nil, 7, 6), nil},
		{TypeSnapshot, AppendSnapshot(nil, 0, 6), ErrCorrupt},
		{TypeSnapshot, AppendSnapshot(nil, 7, 6)[:23], ErrCorrupt},
		{TypeSnapshot, append(AppendSnapshot(nil, 7, 6)[:23], 1), ErrUnsupported},
		{TypeRollback, AppendRollback(nil, 7, 1<<30), nil},
		{TypeRollback, AppendRollback(nil, 7, -1), ErrCorrupt},
		{TypeRollback, append(AppendRollback(nil, 7, 1<<30), 0), ErrCorrupt},
		{8, nil, ErrUnsupported},
		{200, nil, ErrUnsupported},
	} {
		if _, err := DecodeOp(c.t, c.data); !errors.Is(err, c.want) {
			t.Errorf("type %d, %x: %v, want %v", c.t, c.data, err, c.want)
		}
	}
}

func TestResultCutsAndDecodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range [][2]int{{0, 0}, {3, 10}, {UpdatesMax, UpdatesMax}, {0, 3*UpdatesMax + 5}, {UpdatesMax + 1, 7}} {
		want := Result{Through: 9, MAC: MAC{1, 2}, Gen: 4, SizeBytes: 1 << 40}
		if n[1]%2 == 1 {
			want.Mark = Mark{TypeSnapshot, 77}
		}
		for i := range n[0] {
			want.Trims = append(want.Trims, Extent{id.LBA(i), id.LBA(i + 1 + rng.IntN(9))})
		}
		for i := range n[1] {
			want.Updates = append(want.Updates, Update{id.LBA(i), id.Fingerprint{byte(i)}, id.Ref{Segment: id.Segment(rng.Uint64()), Slot: id.Slot(i), Location: id.Location(rng.Uint32())}})
		}
		var got Result
		cut := want.Cut()
		for i, part := range cut {
			data := part.Append(nil)
			if len(data) > datanode.RecordBytesMax {
				t.Fatalf("record of %d bytes", len(data))
			}
			r, err := DecodeResult(data)
			if err != nil {
				t.Fatal(err)
			}
			if r.More != (i < len(cut)-1) {
				t.Errorf("part %d of %d: More is %v", i, len(cut), r.More)
			}
			if len(r.Trims) > 0 && len(got.Updates) > 0 {
				t.Error("a trim comes after an update")
			}
			trims, updates := append(got.Trims, r.Trims...), append(got.Updates, r.Updates...)
			got = *r
			got.Trims, got.Updates = trims, updates
			for _, n := range []int{0, 3, len(data) - 1} {
				if _, err := DecodeResult(data[:n]); !errors.Is(err, ErrCorrupt) {
					t.Errorf("result cut to %d bytes: %v", n, err)
				}
			}
		}
		if len(got.Updates) == 0 {
			got.Updates = nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d trims and %d updates came back as %d and %d", n[0], n[1], len(got.Trims), len(got.Updates))
		}
	}
}

// TestChainNoticesEveryChange alters a stream of records in each way a data
// node could, and expects the chain to notice at that record.
func TestChainNoticesEveryChange(t *testing.T) {
	key := [32]byte{9}
	var recs []datanode.Record
	c := NewChain(key, 3, datanode.Ops, MAC{})
	for i, data := range [][]byte{writeRecord(t, 1, 2), AppendRange(nil, 0, 4096), writeRecord(t, 5, 1), AppendRange(nil, 9, 1)} {
		typ := TypeWrite
		if i%2 == 1 {
			typ = TypeTrim
		}
		r := datanode.Record{Pos: id.Pos(i + 1), Epoch: 2, Type: uint8(typ), Data: data}
		r.MAC = c.Next(2, r.Pos, typ, data)
		recs = append(recs, r)
	}
	verify := func(disk id.Disk, recs []datanode.Record) int {
		c := NewChain(key, disk, datanode.Ops, MAC{})
		for i := range recs {
			if err := c.Verify(&recs[i]); err != nil {
				return i
			}
		}
		return len(recs)
	}
	if got := verify(3, recs); got != 4 {
		t.Fatalf("true records end at %d", got)
	}
	if got := verify(4, recs); got != 0 {
		t.Errorf("another disk's records verify up to %d", got)
	}
	change := func(name string, want int, f func(r []datanode.Record) []datanode.Record) {
		cp := append([]datanode.Record(nil), recs...)
		for i := range cp {
			cp[i].Data = bytes.Clone(cp[i].Data)
		}
		if got := verify(3, f(cp)); got != want {
			t.Errorf("%s: noticed at %d, want %d", name, got, want)
		}
	}
	change("drop", 1, func(r []datanode.Record) []datanode.Record { return append(r[:1], r[2:]...) })
	change("swap", 1, func(r []datanode.Record) []datanode.Record { r[1], r[2] = r[2], r[1]; return r })
	change("epoch", 2, func(r []datanode.Record) []datanode.Record { r[2].Epoch = 3; return r })
	change("type", 1, func(r []datanode.Record) []datanode.Record { r[1].Type = uint8(TypeZero); return r })
	change("position", 3, func(r []datanode.Record) []datanode.Record { r[3].Pos = 9; return r })
	change("range", 1, func(r []datanode.Record) []datanode.Record { r[1].Data[3] ^= 1; return r })
	change("fingerprint", 0, func(r []datanode.Record) []datanode.Record { r[0].Data[writeHeaderBytes+20] ^= 1; return r })
	change("tag", 2, func(r []datanode.Record) []datanode.Record { r[2].Data[len(r[2].Data)-1] ^= 1; return r })
	change("cut", 2, func(r []datanode.Record) []datanode.Record { r[2].Data = r[2].Data[:50]; return r })
}

func FuzzDecodeOp(f *testing.F) {
	f.Add(uint8(TypeWrite), writeRecord(f, 5, 2))
	f.Add(uint8(TypeTrim), AppendRange(nil, 1, 2))
	f.Add(uint8(TypeSnapshot), AppendSnapshot(nil, 1, 2))
	f.Add(uint8(TypeRollback), AppendRollback(nil, 1, 2))
	f.Add(uint8(TypePart), append(AppendPart(nil, 3, 5), make([]byte, 48)...))
	f.Fuzz(func(t *testing.T, typ uint8, data []byte) {
		op, err := DecodeOp(Type(typ), data)
		if err == nil && (op.Off < 0 || op.Len < 0 || op.Off+op.Len < 0 || op.Off > DiskBytesMax) {
			t.Fatalf("offset %d, length %d out of bounds", op.Off, op.Len)
		}
		NewChain([32]byte{1}, 1, datanode.Ops, MAC{}).Next(1, 1, Type(typ), data)
	})
}

// TestMarkOfResult changes the mark of a result in each way that must not pass.
func TestMarkOfResult(t *testing.T) {
	r := Result{Through: 9, Mark: Mark{TypeRollback, 5}}
	good := r.Append(nil)
	if got, err := DecodeResult(good); err != nil || got.Mark != r.Mark {
		t.Fatalf("%v, %v", got, err)
	}
	for _, c := range []struct {
		at   int
		to   byte
		want error
	}{
		{0, 3, ErrUnsupported},
		{1, resultMore, ErrCorrupt},
		{resultHeaderBytes, 0, ErrUnsupported},
		{resultHeaderBytes, byte(TypeResize), ErrUnsupported},
		{resultHeaderBytes + 7, 1, ErrUnsupported},
		{resultHeaderBytes + 15, 0, ErrCorrupt},
	} {
		bad := bytes.Clone(good)
		bad[c.at] = c.to
		if _, err := DecodeResult(bad); !errors.Is(err, c.want) {
			t.Errorf("byte %d is %d: %v, want %v", c.at, c.to, err, c.want)
		}
	}
	for n := range good {
		if _, err := DecodeResult(good[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestPatchesDecode(t *testing.T) {
	var want []Patch
	for i := range PatchesMax {
		want = append(want, Patch{
			id.LBA(i), id.Gen(3 * i), id.Segment(i + 1), id.Slot(i), id.Ref{Segment: id.Segment(i + 9), Slot: id.Slot(2 * i), Location: id.Location(7 * i)},
		})
	}
	data := AppendPatches(nil, want)
	if len(data) > datanode.RecordBytesMax {
		t.Fatalf("a record of %d bytes", len(data))
	}
	got, err := DecodePatches(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%d patches came back as %d, %v", len(want), len(got), err)
	}
	for _, n := range []int{0, 7, 8, len(data) - 1} {
		if _, err := DecodePatches(data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for i := range 4 {
		bad := bytes.Clone(data)
		bad[i]++
		if _, err := DecodePatches(bad); !errors.Is(err, ErrUnsupported) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	if _, err := DecodePatches(AppendPatches(nil, []Patch{{To: id.Ref{Segment: 1}}})); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a patch of no segment: %v", err)
	}
}

func FuzzDecodePatches(f *testing.F) {
	f.Add(AppendPatches(nil, []Patch{{LBA: 4, Segment: 1, To: id.Ref{Segment: 2}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		ps, err := DecodePatches(data)
		if err == nil && !bytes.Equal(AppendPatches(nil, ps), data) {
			t.Fatal("decoded patches encode differently")
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	r := Result{Through: 3, Trims: []Extent{{1, 2}}, Updates: []Update{{LBA: 4}}}
	f.Add(r.Append(nil))
	r.Mark = Mark{TypeSnapshot, 9}
	f.Add(r.Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeResult(data)
		if err == nil && !bytes.Equal(r.Append(nil), data) {
			t.Fatal("a decoded result encodes differently")
		}
	})
}

func BenchmarkChainWrite4K(b *testing.B) {
	rec := writeRecord(b, 1, 1)
	c := NewChain([32]byte{1}, 1, datanode.Ops, MAC{})
	for i := 0; b.Loop(); i++ {
		c.Next(1, id.Pos(i), TypeWrite, rec)
	}
}
