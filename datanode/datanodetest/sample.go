package datanodetest

import (
	"math/rand/v2"

	"plinth/datanode"
	"plinth/internal/id"
)

// The geometry of the suite's segments.
const (
	sampleK     = 2
	sampleM     = 1
	sampleWidth = sampleK + sampleM
	// sampleFragmentBytes is the data of each fragment.
	sampleFragmentBytes = 2 * datanode.BlockBytes
	// sampleSlotBytes is the length of each sealed chunk; all slots of a sample
	// lie in fragment 0.
	sampleSlotBytes = 64
)

// sample is a small segment of the suite. Its parity is noise: a node computes
// none.
type sample struct {
	entry     datanode.SegmentEntry
	fragments []datanode.Fragment
}

// make draws the next segment, with the given births, for the first healthy
// spindles.
func (e *env) make(births ...datanode.Birth) *sample {
	e.Helper()
	e.number++
	return e.makeNumber(e.number, births...)
}

func (e *env) makeNumber(number uint64, births ...datanode.Birth) *sample {
	e.Helper()
	rng := rand.New(rand.NewPCG(number, 0))
	slots := 0
	for _, b := range births {
		slots += int(b.Slots)
	}
	s := &sample{entry: datanode.SegmentEntry{
		Header: datanode.SegmentHeader{
			Segment: id.MakeSegment(0, number), Kind: datanode.KindChunks, K: sampleK, M: sampleM,
			DataBytes: uint32(slots * sampleSlotBytes), Births: births,
		},
		FragmentBytes: sampleFragmentBytes,
	}}
	for i := range slots {
		location, ok := id.MakeLocation(i*sampleSlotBytes, sampleSlotBytes)
		if !ok {
			e.Fatalf("slot %d has no location", i)
		}
		entry := datanode.SlotEntry{Slot: id.Slot(i), Location: location, PlainBytes: 4096}
		fill(rng, entry.Fingerprint[:])
		s.entry.Slots = append(s.entry.Slots, entry)
	}
	for i, spindle := range e.spindles(sampleWidth) {
		f := datanode.Fragment{Spindle: spindle, Index: uint8(i), Data: make([]byte, sampleFragmentBytes)}
		fill(rng, f.Data)
		s.fragments = append(s.fragments, f)
	}
	return s
}

// spindles returns the first n healthy ones.
func (e *env) spindles(n int) []id.Spindle {
	e.Helper()
	var out []id.Spindle
	for _, s := range e.status().Spindles {
		if s.State == datanode.SpindleOK && len(out) < n {
			out = append(out, s.Spindle)
		}
	}
	if len(out) < n {
		e.Fatalf("the node has %d healthy spindles, the suite needs %d", len(out), n)
	}
	return out
}

// write stores a sample's fragments.
func (e *env) write(s *sample) {
	e.Helper()
	reply, err := e.node.WriteFragments(e.ctx(), s.writeRequest(e.status().LayoutVersion))
	e.ok(err)
	if len(reply.Errors) != len(s.fragments) {
		e.Fatalf("%d errors for %d fragments", len(reply.Errors), len(s.fragments))
	}
	for i, err := range reply.Errors {
		if err != nil {
			e.Fatalf("fragment %d: %v", i, err)
		}
	}
}

func (s *sample) writeRequest(layoutVersion uint64) *datanode.WriteFragmentsRequest {
	return &datanode.WriteFragmentsRequest{
		Header: s.entry.Header, LayoutVersion: layoutVersion, Fragments: s.fragments,
	}
}

func (e *env) publish(samples ...*sample) error {
	r := &datanode.PublishRequest{}
	for _, s := range samples {
		r.Segments = append(r.Segments, s.entry)
	}
	return e.node.Publish(e.ctx(), r)
}

// store makes, writes and publishes a segment.
func (e *env) store(births ...datanode.Birth) *sample {
	e.Helper()
	s := e.make(births...)
	e.write(s)
	e.ok(e.publish(s))
	return s
}

func (s *sample) id() id.Segment { return s.entry.Header.Segment }

func (s *sample) fingerprints() []id.Fingerprint {
	var out []id.Fingerprint
	for _, slot := range s.entry.Slots {
		out = append(out, slot.Fingerprint)
	}
	return out
}

// list is a reference list with the given slots live.
func (s *sample) list(live ...id.Slot) datanode.List {
	return datanode.List{Segment: s.id(), Bits: bits(live...)}
}

func bits(live ...id.Slot) []byte {
	var out []byte
	for _, slot := range live {
		for len(out) <= int(slot>>3) {
			out = append(out, 0)
		}
		out[slot>>3] |= 1 << (slot & 7)
	}
	return out
}

func count(bits []byte) int {
	n := 0
	for _, b := range bits {
		for ; b != 0; b &= b - 1 {
			n++
		}
	}
	return n
}

func (e *env) lookup(o owner, seq id.Seq, fingerprints ...id.Fingerprint) ([]datanode.Hit, error) {
	reply, err := e.node.Lookup(e.ctx(), &datanode.LookupRequest{
		Disk: o.disk, Epoch: o.epoch, Seq: seq, Fingerprints: fingerprints,
	})
	if err != nil {
		return nil, err
	}
	if len(reply.Hits) != len(fingerprints) {
		e.Fatalf("%d hits for %d fingerprints", len(reply.Hits), len(fingerprints))
	}
	return reply.Hits, nil
}

func (e *env) setLists(o owner, seq id.Seq, lists ...datanode.List) ([]id.Segment, error) {
	reply, err := e.node.SetLists(e.ctx(), &datanode.SetListsRequest{
		Disk: o.disk, Epoch: o.epoch, Seq: seq, Lists: lists,
	})
	if err != nil {
		return nil, err
	}
	return reply.Refused, nil
}

// release clears what a disk holds of samples.
func (e *env) release(o owner, seq id.Seq, samples ...*sample) {
	e.Helper()
	var lists []datanode.List
	for _, s := range samples {
		lists = append(lists, s.list())
	}
	refused, err := e.setLists(o, seq, lists...)
	e.ok(err)
	if len(refused) != 0 {
		e.Fatalf("lists of %v refused", refused)
	}
}

// reclaim runs Reclaim until nothing more is to do and returns what it deleted.
func (e *env) reclaim() []id.Segment {
	e.Helper()
	var all []id.Segment
	for {
		reply, err := e.node.Reclaim(e.ctx(), &datanode.ReclaimRequest{})
		e.ok(err)
		all = append(all, reply.Deleted...)
		if !reply.More {
			return all
		}
	}
}

// holds fails the test unless the disk holds that many slots of the sample, by
// registration or birth; 0 is also right for a segment that is gone.
func (e *env) holds(disk id.Disk, s *sample, slots int) {
	e.Helper()
	d := e.describe(s.id())
	held := 0
	for _, l := range d.Lists {
		if l.Disk == disk {
			held = count(l.Bits)
		}
	}
	if held != slots || slots > 0 && !d.Known {
		e.Fatalf("disk %d holds %d slots of segment %s (known: %t), want %d", disk, held, s.id(), d.Known, slots)
	}
}

func (e *env) describe(segment id.Segment) datanode.SegmentDescription {
	e.Helper()
	reply, err := e.node.DescribeSegments(e.ctx(), &datanode.DescribeSegmentsRequest{
		Segments: []id.Segment{segment}, Slots: true,
	})
	e.ok(err)
	if len(reply.Segments) != 1 || reply.Segments[0].Segment != segment {
		e.Fatalf("describing %s gave %+v", segment, reply.Segments)
	}
	return reply.Segments[0]
}
