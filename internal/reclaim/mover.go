package reclaim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// groupMax bounds the sources that are condemned ahead of being read: their
// chunks are stored anew if they are written again meanwhile.
const groupMax = 8

// Mover empties segments. It is an owner without a map: targets are born to its
// disk number, until the disks that need them hold them. One Move or Release at a
// time.
type Mover struct {
	Index   datanode.IndexNode
	Stripes *stripe.Store
	Opener  *chunk.Opener
	// Geometry is the stripes'.
	Geometry stripe.Geometry
	// Number returns a segment number that was never used.
	Number func(context.Context) (uint64, error)
	// Disk is the mover's number, Epoch was claimed and fenced.
	Disk  id.Disk
	Epoch id.Epoch
	// Keeper says whose index has a segment: chunks move only between those of one.
	Keeper Keeper
	// Pace, if set, is called after bytes were read to be moved and returns when
	// more may be.
	Pace func(ctx context.Context, bytes int64) error

	seq    id.Seq
	memory stripe.Memory // of what is read
}

// Moved says what a Move has done.
type Moved struct {
	Condemned int // segments
	Targets   int
	Chunks    int64
	Bytes     int64 // sealed
	// Damaged are sources that keep all they have, for one chunk each that cannot
	// be copied.
	Damaged []Damage
}

// Damage is a chunk that cannot be copied.
type Damage struct {
	Segment id.Segment
	Slot    id.Slot
	Err     error
}

// Move condemns segments, copies what is held of them, and records where that is
// now. Those that are condemned already are gone on with; what is not there, or
// not of chunks, is passed over. It blocks for the node. After an error what was
// done stands: the node knows which segments are condemned and which slots have
// moved, and the report is as valid as without.
func (m *Mover) Move(ctx context.Context, segments []id.Segment) (*Moved, error) {
	r := &run{m: m, builder: stripe.NewBuilder(m.Geometry), placed: make(map[id.Fingerprint]id.Slot)}
	if err := r.loadMoves(ctx); err != nil {
		return &r.report, fmt.Errorf("move chunks: read what has moved: %w", err)
	}
	for _, own := range r.m.byKeeper(segments) {
		r.keeper = r.m.Keeper.of(own[0])
		for group := range slices.Chunk(own, groupMax) {
			if err := r.group(ctx, group); err != nil {
				return &r.report, fmt.Errorf("move chunks: %w", err)
			}
		}
		if err := r.seal(ctx); err != nil {
			return &r.report, fmt.Errorf("move chunks: %w", err)
		}
	}
	return &r.report, nil
}

// Release gives up all that the mover holds: targets of moves that did not end.
func (m *Mover) Release(ctx context.Context) error {
	for after := id.Segment(0); ; {
		reply, err := m.Index.ListSegments(ctx, &datanode.ListSegmentsRequest{
			Disk: m.Disk, Epoch: m.Epoch, After: after, Max: datanode.SegmentsMax,
		})
		if err != nil {
			return fmt.Errorf("list what the mover holds: %w", err)
		}
		if err := m.release(ctx, reply.Segments); err != nil {
			return err
		}
		if !reply.More || len(reply.Segments) == 0 {
			return nil
		}
		after = reply.Segments[len(reply.Segments)-1]
	}
}

func (m *Mover) release(ctx context.Context, segments []id.Segment) error {
	if len(segments) == 0 {
		return nil
	}
	m.seq++
	r := &datanode.SetListsRequest{Disk: m.Disk, Epoch: m.Epoch, Seq: m.seq}
	for _, s := range segments {
		r.Lists = append(r.Lists, datanode.List{Segment: s})
	}
	if _, err := m.Index.SetLists(ctx, r); err != nil {
		return fmt.Errorf("release %d segments of the mover, first %s: %w", len(segments), segments[0], err)
	}
	return nil
}

// byKeeper deals segments to their keepers, each in order.
func (m *Mover) byKeeper(segments []id.Segment) (all [][]id.Segment) {
	at := make(map[id.Node]int)
	for _, s := range segments {
		n := m.Keeper.of(s)
		i, known := at[n]
		if !known {
			i = len(all)
			at[n] = i
			all = append(all, nil)
		}
		all[i] = append(all[i], s)
	}
	return all
}

// run is one Move.
type run struct {
	m       *Mover
	moved   map[id.Segment][]datanode.SlotMove // by earlier runs, by slot
	builder *stripe.Builder
	placed  map[id.Fingerprint]id.Slot // in the builder
	moves   []datanode.Move            // into it, without locations
	report  Moved
	keeper  id.Node // of what is emptied
}

func (r *run) loadMoves(ctx context.Context) error {
	r.moved = make(map[id.Segment][]datanode.SlotMove)
	for after := id.Segment(0); ; {
		reply, err := r.m.Index.Forwards(ctx, &datanode.ForwardsRequest{After: after})
		if err != nil {
			return err
		}
		for _, f := range reply.Forwards {
			r.moved[f.From] = f.Moves
			after = f.From
		}
		if !reply.More || len(reply.Forwards) == 0 {
			return nil
		}
	}
}

// group condemns some segments and packs what is held of them.
func (r *run) group(ctx context.Context, segments []id.Segment) error {
	reply, err := r.m.Index.Condemn(ctx, &datanode.CondemnRequest{Disk: r.m.Disk, Epoch: r.m.Epoch, Segments: segments})
	if err != nil {
		return fmt.Errorf("condemn %d segments: %w", len(segments), err)
	}
	failpoint.Reach(failpoint.Condemned)
	if r.report.Condemned += len(reply.Condemned); len(reply.Condemned) == 0 {
		return nil
	}
	// What is held is read after condemning: it can only shrink now.
	described, err := r.m.Index.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: reply.Condemned, Slots: true})
	if err != nil {
		return err
	}
	for i := range described.Segments {
		if err := r.empty(ctx, &described.Segments[i]); err != nil {
			return fmt.Errorf("empty segment %s: %w", described.Segments[i].Segment, err)
		}
	}
	return nil
}

// empty packs what is held of a segment and has not moved, if all of it opens.
func (r *run) empty(ctx context.Context, d *datanode.SegmentDescription) error {
	slots, missing := r.toMove(d)
	if len(missing) > 0 && len(d.Slots) == 0 {
		// Its writer died before he published it, or its owners have not passed since the
		// index was lost. The next pass of whom it was born to, maybe at another host,
		// says what is needed of it.
		return nil
	}
	if len(missing) > 0 {
		err := errors.New("the index does not know what is there")
		r.report.Damaged = append(r.report.Damaged, Damage{d.Segment, missing[0], err})
		return nil
	}
	chunks, damage, err := r.m.read(ctx, d.Segment, slots)
	if err != nil {
		return err
	}
	if damage != nil {
		r.report.Damaged = append(r.report.Damaged, *damage)
		return nil
	}
	bytes := int64(0)
	for i, sealed := range chunks {
		if err := r.add(ctx, d.Segment, &slots[i], sealed); err != nil {
			return err
		}
		bytes += int64(len(sealed))
	}
	r.report.Bytes += bytes
	r.report.Chunks += int64(len(chunks))
	return nil
}

// toMove returns the slots of a segment that are held and have no move, and those
// among them that the index cannot describe.
func (r *run) toMove(d *datanode.SegmentDescription) (slots []datanode.SlotEntry, missing []id.Slot) {
	var held []byte
	for _, l := range d.Lists {
		held = union(held, l.Bits)
	}
	for _, m := range r.moved[d.Segment] {
		if int(m.Slot>>3) < len(held) {
			held[m.Slot>>3] &^= 1 << (m.Slot & 7)
		}
	}
	at := 0
	for slot := range id.Slot(len(held) * 8) {
		if held[slot>>3]&(1<<(slot&7)) == 0 {
			continue
		}
		for at < len(d.Slots) && d.Slots[at].Slot < slot {
			at++
		}
		if at == len(d.Slots) || d.Slots[at].Slot != slot {
			missing = append(missing, slot)
			continue
		}
		slots = append(slots, d.Slots[at])
	}
	return slots, missing
}

func union(a, b []byte) []byte {
	if len(b) > len(a) {
		a = append(a, make([]byte, len(b)-len(a))...)
	}
	for i := range b {
		a[i] |= b[i]
	}
	return a
}

// add packs one chunk. A chunk that lies in two sources comes together again.
func (r *run) add(ctx context.Context, from id.Segment, s *datanode.SlotEntry, sealed []byte) error {
	if len(r.moves) == datanode.MovesMax {
		if err := r.seal(ctx); err != nil {
			return err
		}
	}
	to, ok := r.placed[s.Fingerprint]
	if !ok {
		if to, ok = r.builder.Add(r.m.Disk, r.m.Epoch, s.Fingerprint, sealed, int(s.PlainBytes)); !ok {
			if err := r.seal(ctx); err != nil {
				return err
			}
			if to, ok = r.builder.Add(r.m.Disk, r.m.Epoch, s.Fingerprint, sealed, int(s.PlainBytes)); !ok {
				return fmt.Errorf("a chunk of %d bytes does not fit an empty segment", len(sealed))
			}
		}
		r.placed[s.Fingerprint] = to
	}
	r.moves = append(r.moves, datanode.Move{From: from, Slot: s.Slot, To: to})
	return nil
}

// seal writes what is packed and records all moves into it in one step: a pass
// that began before knows nothing of the target, and one that begins after finds
// every move.
func (r *run) seal(ctx context.Context) error {
	if r.builder.Len() == 0 {
		return nil
	}
	segment, err := r.builder.Seal()
	if err != nil {
		return err
	}
	var allowed func(id.Layout) bool
	if r.m.Keeper != nil {
		allowed = func(l id.Layout) bool { return r.m.Keeper(l) == r.keeper }
	}
	if err := r.m.Stripes.WriteTo(ctx, segment, r.m.Number, allowed); err != nil {
		return err
	}
	segment.Free()
	s := segment.Header.Segment
	ctx = context.WithoutCancel(ctx) // half of what follows is work for nothing
	if err := r.m.Index.Publish(ctx, &datanode.PublishRequest{Segments: []datanode.SegmentEntry{segment.Entry()}}); err != nil {
		r.m.Stripes.Discard(ctx, s)
		return fmt.Errorf("publish segment %s: %w", s, err)
	}
	failpoint.Reach(failpoint.Copied)
	for i := range r.moves {
		r.moves[i].Location = segment.Slots[r.moves[i].To].Location
	}
	err = r.m.Index.Forward(ctx, &datanode.ForwardRequest{Disk: r.m.Disk, Epoch: r.m.Epoch, Segment: s, Moves: r.moves})
	if err != nil {
		err = fmt.Errorf("forward to segment %s: %w", s, err)
	} else {
		failpoint.Reach(failpoint.Forwarded)
		r.report.Targets++
	}
	// Now those hold it who need it, or nobody if it failed.
	err = errors.Join(err, r.m.release(ctx, []id.Segment{s}))
	r.builder.Reset()
	clear(r.placed)
	r.moves = nil
	return err
}
