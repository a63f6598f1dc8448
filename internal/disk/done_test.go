package disk

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

var onceSteps = flag.Int("once-steps", 150, "changes of TestSimOnce")

// onceChange is a change that is sent until it is answered.
type onceChange struct {
	tag  id.Tag
	kind int // 0 write, 1 zero, 2 trim
	p    []byte
	off  int
}

func (c *onceChange) send(ctx context.Context, d *Disk) error {
	once, off, n := d.Once(c.tag), int64(c.off), int64(len(c.p))
	switch c.kind {
	case 1:
		return once.Zero(ctx, off, n, false)
	case 2:
		return once.Trim(ctx, off, n, false)
	}
	return once.WriteAt(ctx, c.p, off, false)
}

// onceRun is owners of a disk, one after the other, and who sends them changes.
type onceRun struct {
	*house
	node *mute
	rng  *rand.Rand
	c    *content
	d    *Disk
	last map[doneSlot]uint64
}

// next has the disk go to the next owner, and with some luck to more. They destage and
// make checkpoints.
func (r *onceRun) next() {
	for again := true; again; again = r.rng.IntN(3) == 0 {
		r.ok(r.d.Close())
		p := r.session()
		p.LogBytes = 16 << 20 // a portion is 2 MiB
		r.d = r.open(p, 1)
		if r.rng.IntN(2) == 0 {
			r.work()
		}
	}
}

func (r *onceRun) work() {
	if r.rng.IntN(2) == 0 {
		r.ok(r.round(r.d))
	}
	if r.rng.IntN(2) == 0 {
		r.ok(r.d.Checkpoint(r.Context()))
	}
}

// draw makes a change in a slot, the next one there.
func (r *onceRun) draw() *onceChange {
	c := &onceChange{kind: r.rng.IntN(3)}
	c.tag.Session[0] = byte(r.rng.IntN(3))
	key := doneSlot{c.tag.Session, uint64(r.rng.IntN(4))}
	r.last[key]++
	c.tag.Number = r.last[key]*id.TagSlots + key.slot
	c.off = r.rng.IntN(houseDiskBytes - 1)
	n := 1 + r.rng.IntN(min(houseDiskBytes-c.off, 64<<10))
	if r.rng.IntN(10) == 0 { // of several portions
		c.off, n = r.rng.IntN(8192), 3<<20+r.rng.IntN(8192)
	}
	if c.kind == 2 {
		c.off, n = c.off&^4095, max(n&^4095, 4096)
	}
	c.p = make([]byte, n)
	if c.kind == 0 { // which compresses: nobody reclaims space here
		for i, word := 0, byte(r.rng.Uint32()); i < n; i++ {
			c.p[i] = word + byte(i%3)
		}
	}
	return c
}

// step has one change sent, perhaps without an answer, and again when others have
// written over some of it.
func (r *onceRun) step() {
	c := r.draw()
	lost := r.rng.IntN(2) == 0
	if lost {
		r.node.done.Store(r.rng.IntN(2) == 0)
		r.node.appends.Store(1 + r.rng.Int32N(2))
	}
	err := c.send(r.Context(), r.d)
	r.node.appends.Store(0)
	if err != nil { // all of it is in the disk, or its first portions
		if !errors.Is(err, ErrFailed) {
			r.Fatal(err)
		}
		r.next()
	} else if r.rng.IntN(2) == 0 {
		r.next()
	}
	// What is there of it now is all that will be.
	was := bytes.Clone(r.c.data)
	got := make([]byte, len(was))
	r.ok(r.d.ReadAt(r.Context(), got, 0))
	done := 0
	var part *Interrupted
	switch portion := min(2<<20-c.off%4096, len(c.p)); {
	case err == nil:
		done = len(c.p)
	case errors.As(err, &part):
		done = int(part.Logged)
		if r.node.done.Load() {
			done += int(part.Doubt)
		}
	default:
		r.Fatalf("an append of %d bytes without an answer: %v", portion, err)
	}
	copy(r.c.data[c.off:], c.p[:done])
	if !bytes.Equal(got, r.c.data) {
		r.Fatalf("%d of %d bytes are said to be done", done, len(c.p))
	}
	over := c.off + r.rng.IntN(len(c.p))
	other := make([]byte, 1+r.rng.IntN(min(houseDiskBytes-over, 8192)))
	for i := range other {
		other[i] = byte(r.rng.Uint32())
	}
	r.ok(r.d.WriteAt(r.Context(), other, int64(over), false))
	rest := bytes.Clone(r.c.data)
	copy(rest[over:], other)
	copy(rest[c.off+done:], c.p[done:])
	r.c.data = rest
	for range 2 {
		r.ok(c.send(r.Context(), r.d))
		if r.rng.IntN(4) == 0 {
			r.next()
		}
		r.work()
	}
	r.same(r.d, r.c)
}

// TestSimOnce has changes sent again, as hosts do that forward them: where the append got
// no answer and was done, or was not, and by the next owners, that have destaged it and
// made checkpoints; others have written over it meanwhile.
func TestSimOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := &onceRun{rng: rand.New(rand.NewPCG(seed, 0)), c: newContent(seed), last: map[doneSlot]uint64{}}
	r.house = newHouse(t, func(n datanode.Node) datanode.Node {
		r.node = &mute{Node: n}
		return r.node
	})
	p := r.session()
	p.LogBytes = 16 << 20
	r.d = r.open(p, 1)
	for range *onceSteps {
		r.step()
	}
}

// An old copy of a change that nobody waits for any more does nothing.
func TestGivenUp(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	first, next := d.Once(id.Tag{Number: 3}), d.Once(id.Tag{Number: 3 + id.TagSlots})
	h.ok(next.WriteAt(t.Context(), []byte("next"), 0, false))
	h.ok(first.d.Once(id.Tag{Number: 4}).WriteAt(t.Context(), []byte("other"), 100, false))
	if err := first.WriteAt(t.Context(), []byte("first"), 0, false); !errors.Is(err, errGivenUp) {
		t.Errorf("an old copy: %v", err)
	}
	got := make([]byte, 4)
	if h.ok(d.ReadAt(t.Context(), got, 0)); string(got) != "next" {
		t.Errorf("read %q", got)
	}
}

// What is remembered is bounded in number and time.
func TestLedgerBounds(t *testing.T) {
	l := newLedger()
	for i := range 3 * logrec.ChangesMax {
		l.note(&logrec.Done{Changes: []logrec.Change{{Tag: id.Tag{Session: [16]byte{byte(i), byte(i >> 8)}}, End: 9}}}, 0)
	}
	for i := range id.Epoch(3 * logrec.OwnersMax) {
		l.owner(i, 7)
	}
	tag := id.Tag{Session: [16]byte{0xff, 3*logrec.ChangesMax>>8 - 1}} // the last one
	if n, err := l.find(tag, 4, 9); n != 5 || err != nil || l.ownerEnd(3*logrec.OwnersMax-1) != 7 {
		t.Errorf("the last change is done up to %d, %v", n, err)
	}
	d, err := logrec.DecodeDone(l.carry(1))
	if err != nil || len(d.Changes) < logrec.ChangesMax*7/8 || len(d.Owners) < logrec.OwnersMax*7/8-1 || d.Owners[0].Pos != 1 {
		t.Errorf("%d changes and %d owners, %v", len(d.Changes), len(d.Owners), err)
	}
	l.note(&logrec.Done{Changes: []logrec.Change{{Tag: id.Tag{Number: 5}, End: 9}}}, 2)
	if d, _ := logrec.DecodeDone(l.carry(1)); d.Changes[0].Tag.Number == 5 {
		t.Error("what need not be stable is carried")
	}
	old := time.Now().Add(-DoneTime - time.Second)
	for k, c := range l.changes {
		c.at = old
		l.changes[k] = c
	}
	for k, o := range l.owners {
		o.at = old
		l.owners[k] = o
	}
	if b := l.carry(9); b != nil || len(l.changes)+len(l.owners) != 0 {
		t.Errorf("%d bytes are carried of what is old", len(b))
	}
}
