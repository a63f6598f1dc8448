package datanodetest

import (
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// mover is the disk under which the suite moves chunks.
const mover id.Disk = 90

func (e *env) condemn(o owner, segments ...id.Segment) ([]id.Segment, error) {
	reply, err := e.node.Condemn(e.ctx(), &datanode.CondemnRequest{Disk: o.disk, Epoch: o.epoch, Segments: segments})
	if err != nil {
		return nil, err
	}
	return reply.Condemned, nil
}

// condemnAll condemns samples, which all can be.
func (e *env) condemnAll(o owner, samples ...*sample) {
	e.Helper()
	var segments []id.Segment
	for _, s := range samples {
		segments = append(segments, s.id())
	}
	got, err := e.condemn(o, segments...)
	e.ok(err)
	if !slices.Equal(got, segments) {
		e.Fatalf("condemned %v of %v", got, segments)
	}
}

// copied stores a segment, born to the mover, with copies of slots of others.
func (e *env) copied(moves ...move) *sample {
	e.Helper()
	s := e.make(datanode.Birth{Disk: mover, Epoch: 1, Slots: uint16(len(moves))})
	for i, m := range moves {
		s.entry.Slots[i].Fingerprint = m.from.entry.Slots[m.slot].Fingerprint
	}
	e.write(s)
	e.ok(e.publish(s))
	return s
}

// move names a slot of a sample.
type move struct {
	from *sample
	slot id.Slot
}

// moves returns those of some slots of a sample.
func (s *sample) moves(slots ...id.Slot) (out []move) {
	for _, slot := range slots {
		out = append(out, move{s, slot})
	}
	return out
}

// moved returns the moves into the slots of a copy, in order.
func moved(to *sample, moves ...move) (out []datanode.Move) {
	for i, m := range moves {
		out = append(out, datanode.Move{From: m.from.id(), Slot: m.slot, To: id.Slot(i), Location: to.entry.Slots[i].Location})
	}
	return out
}

func (e *env) forward(o owner, to id.Segment, moves ...datanode.Move) error {
	return e.node.Forward(e.ctx(), &datanode.ForwardRequest{Disk: o.disk, Epoch: o.epoch, Segment: to, Moves: moves})
}

// move copies slots into a new segment, records the moves, and has the mover
// give the copy up.
func (e *env) move(o owner, seq id.Seq, moves ...move) *sample {
	e.Helper()
	s := e.copied(moves...)
	e.ok(e.forward(o, s.id(), moved(s, moves...)...))
	e.release(o, seq, s)
	return s
}

// forwards returns all moves, by segment.
func (e *env) forwards(max int) map[id.Segment][]datanode.SlotMove {
	e.Helper()
	all := map[id.Segment][]datanode.SlotMove{}
	r := &datanode.ForwardsRequest{Max: max}
	for more := true; more; {
		reply, err := e.node.Forwards(e.ctx(), r)
		e.ok(err)
		if max > 0 && len(reply.Forwards) > max {
			e.Fatalf("a page of %d, asked for at most %d", len(reply.Forwards), max)
		}
		for _, f := range reply.Forwards {
			if f.From <= r.After || len(f.Moves) == 0 {
				e.Fatalf("segment %s with %d moves after %s", f.From, len(f.Moves), r.After)
			}
			r.After, all[f.From] = f.From, f.Moves
		}
		if more = reply.More; more && len(reply.Forwards) == 0 {
			e.Fatal("an empty page says that there is more")
		}
	}
	return all
}

// state fails the test unless a sample is known and in a state.
func (e *env) state(s *sample, want datanode.State) {
	e.Helper()
	if d := e.describe(s.id()); !d.Known || d.State != want {
		e.Fatalf("segment %s: known %t, state %d, want %d", s.id(), d.Known, d.State, want)
	}
}

func (e *env) usage(max int) []datanode.SegmentUse {
	e.Helper()
	var all []datanode.SegmentUse
	r := &datanode.UsageRequest{Max: max}
	for {
		reply, err := e.node.Usage(e.ctx(), r)
		e.ok(err)
		if max > 0 && len(reply.Segments) > max {
			e.Fatalf("a page of %d, asked for at most %d", len(reply.Segments), max)
		}
		all = append(all, reply.Segments...)
		if !reply.More {
			return all
		}
		if len(reply.Segments) == 0 {
			e.Fatal("an empty page says that there is more")
		}
		r.After = all[len(all)-1].Segment
	}
}
