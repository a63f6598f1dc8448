package datanodetest

import (
	"fmt"
	"slices"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
)

// outOfBounds are requests that package datanode's comments exclude, by call.
// Each runs against a node on which owner{1, 1} has fenced, has appended
// positions 1 to 3 and holds all eight slots of the sample.
var outOfBounds = []struct {
	name string
	call func(e *env, o owner, s *sample) error
}{
	{"Fence without a disk", func(e *env, _ owner, _ *sample) error {
		_, err := e.node.Fence(e.ctx(), &datanode.FenceRequest{Epoch: 1})
		return err
	}},
	{"Fence without an epoch", func(e *env, _ owner, _ *sample) error {
		_, err := e.node.Fence(e.ctx(), &datanode.FenceRequest{Disk: 9})
		return err
	}},
	{"Append to a stream that there is not", func(e *env, o owner, _ *sample) error {
		return e.appendTo(o, datanode.Streams, records(o, 1, 1, 10))
	}},
	{"Append of an unknown class", func(e *env, o owner, _ *sample) error {
		_, err := e.node.Append(e.ctx(), &datanode.AppendRequest{Disk: 1, Epoch: 1, Class: 2, Records: records(o, 4, 1, 10)})
		return err
	}},
	{"Append of too large a record", func(e *env, o owner, _ *sample) error {
		return e.appendTo(o, datanode.Ops, []datanode.Record{{Pos: 4, Data: make([]byte, datanode.RecordBytesMax+1)}})
	}},
	{"Append of too many bytes", func(e *env, o owner, _ *sample) error {
		rs := make([]datanode.Record, datanode.AppendBytesMax/datanode.RecordBytesMax+1)
		for i := range rs {
			rs[i] = datanode.Record{Pos: 4 + id.Pos(i), Data: make([]byte, datanode.RecordBytesMax)}
		}
		return e.appendTo(o, datanode.Ops, rs)
	}},
	{"Append of too many records", func(e *env, o owner, _ *sample) error {
		rs := make([]datanode.Record, datanode.RecordsMax+1)
		for i := range rs {
			rs[i].Pos = 4 + id.Pos(i)
		}
		return e.appendTo(o, datanode.Ops, rs)
	}},
	{"ReadLog of a stream that there is not", func(e *env, o owner, _ *sample) error {
		_, err := e.read(o, datanode.Streams, 1, 0)
		return err
	}},
	{"TrimLog of a stream that there is not", func(e *env, o owner, _ *sample) error {
		return e.trim(o, datanode.Streams, 1)
	}},
	{"TrimLog through positions that were never appended", func(e *env, o owner, _ *sample) error {
		return e.trim(o, datanode.Ops, 4)
	}},
	{"Lookup of too many fingerprints", func(e *env, o owner, _ *sample) error {
		_, err := e.lookup(o, 50, make([]id.Fingerprint, datanode.FingerprintsMax+1)...)
		return err
	}},
	{"Publish of too many segments", func(e *env, _ owner, s *sample) error {
		r := &datanode.PublishRequest{Segments: make([]datanode.SegmentEntry, datanode.SegmentsMax+1)}
		for i := range r.Segments {
			r.Segments[i] = s.entry
		}
		return e.node.Publish(e.ctx(), r)
	}},
	{"Publish of a slot number that is too large", func(e *env, _ owner, _ *sample) error {
		bad := e.make(sampleBirths...)
		bad.entry.Slots[7].Slot = id.SlotsMax
		return e.publish(bad)
	}},
	{"SetLists of too many segments", func(e *env, o owner, _ *sample) error {
		lists := make([]datanode.List, datanode.SegmentsMax+1)
		for i := range lists {
			lists[i].Segment = id.MakeSegment(3, uint64(i+1))
		}
		_, err := e.setLists(o, 50, lists...)
		return err
	}},
	{"SetLists of more slots than a segment can have", func(e *env, o owner, s *sample) error {
		_, err := e.setLists(o, 50, datanode.List{Segment: s.id(), Bits: make([]byte, id.SlotsMax/8+1)})
		return err
	}},
	{"Condemn of too many segments", func(e *env, o owner, _ *sample) error {
		_, err := e.condemn(o, make([]id.Segment, datanode.SegmentsMax+1)...)
		return err
	}},
	{"Forward of too many moves", func(e *env, o owner, s *sample) error {
		r := &datanode.ForwardRequest{Disk: o.disk, Epoch: o.epoch, Segment: s.id()}
		r.Moves = make([]datanode.Move, datanode.MovesMax+1)
		return e.node.Forward(e.ctx(), r)
	}},
	{"Forward of a slot number that is too large", func(e *env, o owner, s *sample) error {
		return e.forward(o, s.id(), datanode.Move{From: id.MakeSegment(0, 77), Slot: id.SlotsMax, Location: s.entry.Slots[0].Location})
	}},
	{"Forward of one slot twice", func(e *env, o owner, s *sample) error {
		m := datanode.Move{From: id.MakeSegment(0, 77), Location: s.entry.Slots[0].Location}
		return e.forward(o, s.id(), m, m)
	}},
	{"Forward of a segment to itself", func(e *env, o owner, s *sample) error {
		return e.forward(o, s.id(), datanode.Move{From: s.id(), Location: s.entry.Slots[0].Location})
	}},
	{"Usage of less than nothing", func(e *env, _ owner, _ *sample) error {
		_, err := e.node.Usage(e.ctx(), &datanode.UsageRequest{Max: -1})
		return err
	}},
	{"Reserve of less than nothing", func(e *env, _ owner, _ *sample) error {
		return e.node.Reserve(e.ctx(), &datanode.ReserveRequest{Host: "a", Bytes: -1})
	}},
	{"RegistryCommit without a key", func(e *env, _ owner, _ *sample) error {
		_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Puts: puts("", "x")})
		return err
	}},
	{"RegistryCommit of too long a key", func(e *env, _ owner, _ *sample) error {
		key := string(make([]byte, datanode.RegistryKeyBytesMax+1))
		_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Puts: puts(key, "x")})
		return err
	}},
	{"RegistryCommit of too large a value", func(e *env, _ owner, _ *sample) error {
		value := string(make([]byte, datanode.RegistryValueBytesMax+1))
		_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Puts: puts("t/a", value)})
		return err
	}},
	{"RegistryCommit of too many changes", func(e *env, _ owner, _ *sample) error {
		txn := &datanode.RegistryTxn{}
		for i := range datanode.RegistryOpsMax + 1 {
			txn.Deletes = append(txn.Deletes, fmt.Sprintf("t/%d", i))
		}
		_, err := e.node.RegistryCommit(e.ctx(), txn)
		return err
	}},
	{"RegistryCommit of too many bytes", func(e *env, _ owner, _ *sample) error {
		txn := &datanode.RegistryTxn{}
		for i := range datanode.RegistryTxnBytesMax/datanode.RegistryValueBytesMax + 1 {
			txn.Puts = append(txn.Puts, datanode.Put{Key: fmt.Sprintf("t/%d", i), Value: make([]byte, datanode.RegistryValueBytesMax)})
		}
		_, err := e.node.RegistryCommit(e.ctx(), txn)
		return err
	}},
	{"RegistryGrant of no time", func(e *env, _ owner, _ *sample) error {
		_, err := e.node.RegistryGrant(e.ctx(), &datanode.RegistryGrantRequest{})
		return err
	}},
	{"RegistryWatch for too long", func(e *env, _ owner, _ *sample) error {
		_, err := e.node.RegistryWatch(e.ctx(), &datanode.RegistryWatchRequest{Wait: datanode.RegistryWatchMax + 1})
		return err
	}},
}

// badWrites change a request to write a new sample into one that is out of
// bounds. The refusal may be the call's or that of every fragment.
var badWrites = []struct {
	name   string
	change func(r *datanode.WriteFragmentsRequest)
}{
	{"no data fragments", func(r *datanode.WriteFragmentsRequest) { r.Header.K = 0 }},
	{"too wide a stripe", func(r *datanode.WriteFragmentsRequest) { r.Header.K = datanode.WidthMax }},
	{"too many births", func(r *datanode.WriteFragmentsRequest) {
		r.Header.Births = make([]datanode.Birth, datanode.BirthsMax+1)
		for i := range r.Header.Births {
			r.Header.Births[i] = datanode.Birth{Disk: 1, Epoch: 1, Slots: 1}
		}
	}},
	{"an index outside the stripe", func(r *datanode.WriteFragmentsRequest) {
		r.Fragments = r.Fragments[:1]
		r.Fragments[0].Index = sampleWidth
	}},
	{"a length that is no multiple of a block", func(r *datanode.WriteFragmentsRequest) {
		for i := range r.Fragments {
			r.Fragments[i].Data = r.Fragments[i].Data[:sampleFragmentBytes-1]
		}
	}},
	{"no data", func(r *datanode.WriteFragmentsRequest) {
		for i := range r.Fragments {
			r.Fragments[i].Data = nil
		}
	}},
	{"too much data", func(r *datanode.WriteFragmentsRequest) {
		r.Fragments = r.Fragments[:1]
		r.Fragments[0].Data = make([]byte, datanode.FragmentBytesMax+datanode.BlockBytes)
	}},
	{"two fragments on one spindle", func(r *datanode.WriteFragmentsRequest) {
		r.Fragments = r.Fragments[:2]
		r.Fragments[1].Spindle = r.Fragments[0].Spindle
	}},
}

// badRanges are reads of fragment 0 of a sample.
var badRanges = []struct {
	name           string
	verify         bool
	offset, length uint32
}{
	{"past the end", false, 0, sampleFragmentBytes + 1},
	{"behind the end", false, sampleFragmentBytes + datanode.BlockBytes, 1},
	{"whose end overflows", false, datanode.BlockBytes, 1<<32 - datanode.BlockBytes},
	{"verified, past the end", true, datanode.BlockBytes, sampleFragmentBytes},
	{"verified, at no block's start", true, 1, datanode.BlockBytes},
	{"verified, to no block's end", true, 0, datanode.BlockBytes + 1},
}

var boundsRules = boundingRules()

func boundingRules() []rule {
	rules := []rule{
		{"writes out of bounds store nothing", func(e *env) {
			o, good := e.populate()
			for _, bad := range badWrites {
				s := e.make(sampleBirths...)
				r := s.writeRequest(e.status().LayoutVersion)
				bad.change(r)
				reply, err := e.node.WriteFragments(e.ctx(), r)
				if err != nil {
					e.fails(bad.name, err, datanode.ErrInvalid)
				} else {
					refused := 0
					for _, err := range reply.Errors {
						if err != nil {
							e.fails(bad.name, err, datanode.ErrInvalid)
							refused++
						}
					}
					if refused == 0 {
						e.Fatalf("%s: nothing was refused", bad.name)
					}
				}
			}
			e.untouched(o, good)
		}},
		{"reads out of bounds are refused", func(e *env) {
			o, good := e.populate()
			for _, bad := range badRanges {
				r := good.reading(0)
				r.Offset, r.Length = bad.offset, bad.length
				reply, err := e.node.ReadFragments(e.ctx(), &datanode.ReadFragmentsRequest{
					Ranges: []datanode.FragmentRange{r}, Verify: bad.verify,
				})
				if err == nil {
					if reply.Results[0].Err == nil {
						e.Fatalf("a read %s gave %d bytes", bad.name, len(reply.Results[0].Data))
					}
					err = reply.Results[0].Err
				}
				e.fails("a read "+bad.name, err, datanode.ErrInvalid, datanode.ErrNotFound)
			}
			e.untouched(o, good)
		}},
	}
	for _, bad := range outOfBounds {
		rules = append(rules, rule{bad.name, func(e *env) {
			o, good := e.populate()
			e.fails(bad.name, bad.call(e, o, good), datanode.ErrInvalid, datanode.ErrPosition)
			e.untouched(o, good)
		}})
	}
	return rules
}

// populate gives a node something to lose.
func (e *env) populate() (owner, *sample) {
	e.Helper()
	o, _ := e.fence(1, 1)
	e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 3, 50)))
	s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 8})
	e.put("t/kept", "kept")
	return o, s
}

// untouched fails the test unless everything is as populate left it.
func (e *env) untouched(o owner, s *sample) {
	e.Helper()
	e.same(e.readAll(o, datanode.Ops, 1), records(o, 1, 3, 50), 1)
	e.ok(e.appendTo(o, datanode.Ops, records(o, 4, 1, 50)))
	e.intact(s)
	e.holds(1, s, 8)
	if n := e.status().Index.Segments; n != 1 {
		e.Fatalf("the index has %d segments, want 1", n)
	}
	e.has("t/kept", "kept")
	got := slices.DeleteFunc(e.list("", 0), func(k datanode.RegistryEntry) bool {
		return strings.HasPrefix(k.Key, "logset/") // which several nodes keep of their own
	})
	if len(got) != 1 {
		e.Fatalf("the registry has %d keys, want 1", len(got))
	}
}
