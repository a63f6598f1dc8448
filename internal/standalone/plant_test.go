package standalone

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/indextest"
	"plinth/datanode/shelf"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/stripe"
	"plinth/nbd"
)

// saboteur has the data node of a stopped pool, as a faulty owner of one disk.
type saboteur struct {
	testing.TB
	node  *shelf.Shelf
	disk  id.Disk
	epoch id.Epoch
	seq   id.Seq
}

func sabotage(t testing.TB, dir string, d id.Disk) *saboteur {
	t.Helper()
	ctx := t.Context()
	path := filepath.Join(dir, "datanode")
	pool, err := shelf.PoolID(vfs.Default, path)
	if err != nil {
		t.Fatal(err)
	}
	s := &saboteur{TB: t, disk: d}
	if s.node, err = shelf.Open(ctx, path, shelf.Options{PoolID: pool}); err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprintf("epoch/%016x", uint64(d))
	reply, err := s.node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(string(reply.Value), 10, 63)
	if err != nil {
		t.Fatal(err)
	}
	s.epoch = id.Epoch(n)
	if _, err = s.node.RegistryCommit(ctx, &datanode.RegistryTxn{
		Puts: []datanode.Put{{Key: key, Value: strconv.AppendUint(nil, n+1, 10)}},
	}); err == nil {
		_, err = s.node.Fence(ctx, &datanode.FenceRequest{Disk: d, Epoch: s.epoch})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// segments describes the segments of more than a few chunks, in the order of their numbers.
func (s *saboteur) segments() (out []datanode.SegmentDescription) {
	reply, err := s.node.DescribeSegments(s.Context(), &datanode.DescribeSegmentsRequest{Slots: true})
	if err != nil || reply.More {
		s.Fatal("describe segments: ", err, reply.More)
	}
	for _, d := range reply.Segments {
		if d.Kind == datanode.KindChunks && len(d.Slots) > 100 {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b datanode.SegmentDescription) int {
		return int(a.Segment.Number()) - int(b.Segment.Number())
	})
	return out
}

func (s *saboteur) setList(segment id.Segment, bits []byte) {
	s.seq++
	if _, err := s.node.SetLists(s.Context(), &datanode.SetListsRequest{
		Disk: s.disk, Epoch: s.epoch, Seq: s.seq, Lists: []datanode.List{{Segment: segment, Bits: bits}},
	}); err != nil {
		s.Fatal(err)
	}
}

// fragments reads a whole stripe and says on which spindles it lies.
func (s *saboteur) fragments(segment id.Segment) (all []datanode.Fragment, header datanode.SegmentHeader) {
	all = make([]datanode.Fragment, 10)
	for n := range 12 {
		reply, err := s.node.ListFragments(s.Context(), &datanode.ListFragmentsRequest{Spindle: id.Spindle(n)})
		if err != nil || reply.More {
			s.Fatal("list fragments: ", err, reply.More)
		}
		for _, f := range reply.Fragments {
			if f.Segment != segment {
				continue
			}
			read, err := s.node.ReadFragments(s.Context(), &datanode.ReadFragmentsRequest{
				Ranges: []datanode.FragmentRange{{Spindle: id.Spindle(n), Segment: segment, Index: f.Index}}, Verify: true,
			})
			if err != nil || read.Results[0].Err != nil {
				s.Fatal("read a fragment: ", err, read)
			}
			header = read.Results[0].Header
			all[f.Index] = datanode.Fragment{Spindle: id.Spindle(n), Index: f.Index, Data: read.Results[0].Data}
		}
	}
	return all, header
}

// spoil changes a chunk under a valid checksum, with parity that fits it or not.
func (s *saboteur) spoil(d *datanode.SegmentDescription, slot id.Slot, fit bool) {
	all, header := s.fragments(d.Segment)
	ref := id.Ref{Segment: d.Segment, Slot: slot, Location: d.Slots[slot].Location}
	r := stripe.Geometry{K: 8, M: 2}.Locate(ref)
	write := all[r.Index : r.Index+1]
	all[r.Index].Data[r.Offset+r.Length/2] ^= 0x10
	if fit {
		var data [][]byte
		for i := range 8 {
			data = append(data, all[i].Data)
		}
		coded, err := stripe.PackObject(stripe.Geometry{K: 8, M: 2}, s.disk, s.epoch, data)
		if err != nil {
			s.Fatal(err)
		}
		for i := 8; i < 10; i++ {
			all[i].Data = coded.Fragments[i]
		}
		write = append(slices.Clone(write), all[8:]...)
	}
	reply, err := s.node.WriteFragments(s.Context(), &datanode.WriteFragmentsRequest{
		Header: header, LayoutVersion: 1, Replace: true, Fragments: write,
	})
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range reply.Errors {
		if e != nil {
			s.Fatal(e)
		}
	}
}

// planted says what verify must name.
type planted struct{ kind, where string }

// plant damages a stopped pool in every way that verify must name, in another
// segment each. It returns what the report must hold, and how many chunks are lost
// as a segment is.
func plant(t testing.TB, dir string, d id.Disk) (named []planted, lost int) {
	t.Helper()
	s := sabotage(t, dir, d)
	all := s.segments()
	if len(all) < 5 {
		t.Fatalf("%d segments", len(all))
	}
	at := func(n int, slot id.Slot) string { return fmt.Sprintf("segment %s, slot %d", all[n].Segment, slot) }

	s.setList(all[0].Segment, nil)
	deleted, err := s.node.Reclaim(t.Context(), &datanode.ReclaimRequest{})
	if err != nil || !slices.Equal(deleted.Deleted, []id.Segment{all[0].Segment}) {
		t.Fatalf("reclaimed %v, %v", deleted, err)
	}
	bits := slices.Clone(all[1].Lists[0].Bits)
	bits[10/8] &^= 1 << (10 % 8)
	s.setList(all[1].Segment, bits)
	s.spoil(&all[3], 7, true)
	s.spoil(&all[4], 9, false)
	if err := s.node.Close(); err != nil {
		t.Fatal(err)
	}
	indextest.LoseRow(t, filepath.Join(dir, "datanode", "index", "fingerprints"), all[2].Slots[5].Fingerprint)
	r := stripe.Geometry{K: 8, M: 2}.Locate(id.Ref{Location: all[4].Slots[9].Location})
	t.Logf("spoilt without parity: %v", r)
	return []planted{
		{"map", "segment " + all[0].Segment.String()},
		{"missing", "segment " + all[0].Segment.String()},
		{"list", at(1, 10)},
		{"index", at(2, 5)},
		{"chunk", at(3, 7)},
		{"wrong parity", "segment " + all[4].Segment.String()},
	}, len(all[0].Slots)
}

// TestSimPlanted plants damage that no checksum finds.
func TestSimPlanted(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := quiet(t, t.TempDir())
	s := open(t, opts)
	data := image(seed, 40<<20)
	write(t, create(t, s, "vm1", 64<<20), data, 0)
	quiesce(t, s)
	info, err := s.Host.Disk("vm1")
	if err != nil {
		t.Fatal(err)
	}
	verify(t, s)
	shut(t, s)
	want, lost := plant(t, opts.Dir, info.ID)
	verifyByCommand(t, opts.Dir, want)

	s = open(t, opts)
	r, err := s.Host.Verify(t.Context(), host.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) != len(want) || r.OK() {
		t.Errorf("%d findings, want %d", len(r.Findings), len(want))
	}
	for _, w := range want {
		if !slices.ContainsFunc(r.Findings, func(f host.Finding) bool { return f.Kind == w.kind && f.Where == w.where }) {
			t.Errorf("verify does not name %+v", w)
		}
	}
	for _, f := range r.Findings {
		t.Logf("%s: %s: %s", f.Kind, f.Where, f.What)
	}
	readPlanted(t, device(t, s, "vm1"), data, lost)
	if n := status(t, s).Repairs["fragments_rewritten"]; n != 1 {
		t.Errorf("reads repaired %d fragments, want that of the chunk whose parity is sound", n)
	}
	shut(t, s)
}

// readPlanted reads chunk by chunk: each is right or an error, and the errors are
// of the segment that is gone and of the one chunk that nothing can restore.
func readPlanted(t testing.TB, d nbd.Device, data []byte, want int) {
	t.Helper()
	got := make([]byte, 4096)
	lost, spoilt := 0, 0
	for off := 0; off < len(data); off += len(got) {
		err := d.ReadAt(t.Context(), got, int64(off))
		switch {
		case err == nil && !bytes.Equal(got, data[off:off+len(got)]):
			t.Fatalf("read at %d returns what was not written", off)
		case err == nil:
		case !errors.Is(err, disk.ErrCorrupt) || !strings.Contains(err.Error(), "segment"):
			t.Fatalf("read at %d: %v", off, err)
		case errors.Is(err, datanode.ErrNotFound):
			lost++
		default:
			spoilt++
		}
	}
	if spoilt != 1 || lost != want {
		t.Errorf("%d chunks are lost and %d spoilt, want %d and 1", lost, spoilt, want)
	}
}
