package rebuild

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

var seeds = flag.Int("rebuild-seeds", 300, "TestSimRebuild: how many pools")

// pool is a model of stripes on spindles: what each segment has where.
type pool struct {
	*testing.T
	rng       *rand.Rand
	l         *stripe.Layouts
	segments  []id.Segment
	fragments map[id.Segment][]bool // by index: it is on its spindle, and right
	states    map[id.Spindle]uint64 // incarnation, 0 while it does not serve
	was       map[id.Spindle]uint64 // before
	row       Row
	saved     []byte
	now       time.Time
	number    uint64
	lost      map[id.Segment]bool // were beyond repair at some time
}

func newPool(t *testing.T, seed uint64) *pool {
	p := &pool{
		T: t, rng: rand.New(rand.NewPCG(seed, 1)), fragments: make(map[id.Segment][]bool), states: make(map[id.Spindle]uint64),
		was: make(map[id.Spindle]uint64), now: time.Unix(1e9, 0), lost: make(map[id.Segment]bool),
	}
	g := stripe.Geometry{K: 2 + p.rng.IntN(3), M: 1 + p.rng.IntN(2)}
	var all []id.Spindle
	for i := range g.Width() + p.rng.IntN(3) {
		all = append(all, id.Spindle(i))
		p.states[id.Spindle(i)] = uint64(i + 1)
	}
	var err error
	if p.l, err = stripe.MakeLayouts(g, all, 1); err != nil {
		t.Fatal(err)
	}
	p.look()
	for range 30 {
		p.write()
	}
	return p
}

func (p *pool) serving() Serving {
	var st []datanode.SpindleStatus
	for s, incarnation := range p.states {
		state := datanode.SpindleOK
		if incarnation == 0 {
			state = datanode.SpindleAbsent
		}
		st = append(st, datanode.SpindleStatus{Spindle: s, State: state, Incarnation: incarnation})
	}
	return ServingOf(st)
}

// write stores a segment on spindles that serve, if a layout has only such.
func (p *pool) write() {
	n := p.rng.IntN(len(p.l.Lists))
	if slices.ContainsFunc(p.l.Lists[n], func(s id.Spindle) bool { return p.states[s] == 0 }) {
		return
	}
	p.number++
	s := id.MakeSegment(id.Layout(n), p.number)
	p.segments = append(p.segments, s)
	p.fragments[s] = make([]bool, len(p.l.Lists[n]))
	for i := range p.fragments[s] {
		p.fragments[s][i] = true
	}
}

// look is what a host does between layouts.
func (p *pool) look() {
	if p.row.Look(p.now, p.l, p.serving()) {
		p.save()
	}
	p.check()
}

func (p *pool) save() {
	b, err := json.Marshal(&p.row)
	if err != nil {
		p.Fatal(err)
	}
	p.saved = b
}

// crash has a host go on from what the registry has.
func (p *pool) crash() {
	p.row = Row{}
	if err := json.Unmarshal(p.saved, &p.row); err != nil {
		p.Fatal(err)
	}
}

// has counts the fragments that can be read.
func (p *pool) has(s id.Segment) (n int) {
	for i, sp := range p.l.Lists[s.Layout()] {
		if p.fragments[s][i] && p.states[sp] != 0 {
			n++
		}
	}
	return n
}

// restore goes through a layout as a host does. It may be interrupted.
func (p *pool) restore() bool {
	layout, targets, ok := p.row.Next(p.l, p.serving())
	if !ok {
		return false
	}
	p.foremost(layout)
	var o Outcome
	for _, s := range slices.Clone(p.segments) {
		if s.Layout() != layout {
			continue
		}
		if p.rng.IntN(30) == 0 {
			p.fault()
		}
		if p.rng.IntN(60) == 0 {
			p.crash()
			return true
		}
		for i, sp := range p.l.Lists[layout] {
			if !slices.Contains(targets, sp) || p.fragments[s] == nil || p.fragments[s][i] {
				continue
			}
			switch {
			case p.has(s) < p.l.Geometry.K:
				if len(o.Lost) == 0 || o.Lost[len(o.Lost)-1].Segment != s {
					away := slices.ContainsFunc(p.l.Lists[layout], func(sp id.Spindle) bool { return p.states[sp] == 0 })
					o.Lost = append(o.Lost, Lost{Segment: s, Final: !away})
				}
			case p.states[sp] == 0 || p.rng.IntN(20) == 0: // no space, say
				o.Again = true
			default:
				p.fragments[s][i] = true
			}
		}
	}
	p.row.Done(p.now, p.l, layout, targets, p.serving(), o)
	p.check()
	if p.rng.IntN(3) == 0 {
		p.save()
	}
	return true
}

// foremost tests that no layout is left that has lost more than this one.
func (p *pool) foremost(chosen id.Layout) {
	lost := func(l id.Layout) (n int, some bool) {
		for _, s := range p.l.Lists[l] {
			_, restored := p.row.Pass.Spindles[s]
			if restored || p.states[s] == 0 {
				n++
			}
			some = some || restored && p.states[s] == p.row.Pass.Spindles[s]
		}
		return n, some
	}
	has, _ := lost(chosen)
	for n := range p.l.Lists {
		if m, some := lost(id.Layout(n)); some && p.row.Pass.Left.has(id.Layout(n)) && m > has {
			p.Fatalf("layout %d, which has lost %d, is before %d, which has lost %d", chosen, has, n, m)
		}
	}
}

// fault has something happen to a spindle, or to a segment.
func (p *pool) fault() {
	s := id.Spindle(p.rng.IntN(len(p.states)))
	switch p.rng.IntN(6) {
	case 0, 1: // it is away
		if p.states[s] != 0 {
			p.was[s], p.states[s] = p.states[s], 0
		}
	case 2, 3: // it comes back
		if p.states[s] == 0 {
			p.states[s] = p.was[s]
		}
	case 4: // another drive is in its place
		p.number++
		p.states[s] = p.number + 1000
		for _, seg := range p.segments {
			if i := slices.Index(p.l.Lists[seg.Layout()], s); i >= 0 {
				p.fragments[seg][i] = false
			}
		}
	case 5: // a segment is deleted
		if n := p.rng.IntN(len(p.segments) + 1); n < len(p.segments) {
			delete(p.fragments, p.segments[n])
			p.segments = slices.Delete(p.segments, n, n+1)
		}
	}
	for _, seg := range p.segments {
		n := 0
		for _, ok := range p.fragments[seg] {
			if ok {
				n++
			}
		}
		if n < p.l.Geometry.K {
			p.lost[seg] = true
		}
	}
}

// check tests that what is called whole is, but for segments that are lost.
func (p *pool) check() {
	p.Helper()
	if r := &p.row; r.Running() && (len(r.Pass.Spindles) == 0 || r.Pass.Left.count()+r.Pass.Failed.count() == 0) {
		p.Fatalf("a pass has nothing to do: %+v", r.Pass)
	}
	for _, seg := range p.segments {
		for i, sp := range p.l.Lists[seg.Layout()] {
			if p.states[sp] != 0 && p.row.Whole[sp] == p.states[sp] && !p.fragments[seg][i] && !p.lost[seg] {
				p.Fatalf("spindle %d is called whole and lacks fragment %d of %s", sp, i, seg)
			}
		}
	}
}

// TestSimRebuild has spindles go, come back and be replaced while a host restores, and
// hosts die. In the end all is whole.
func TestSimRebuild(t *testing.T) {
	first := rand.Uint64()
	restored := 0
	for n := range *seeds {
		seed := first + uint64(n)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPool(t, seed)
			for range 200 {
				switch p.rng.IntN(8) {
				case 0:
					p.fault()
				case 1:
					p.write()
				case 2:
					p.now = p.now.Add(time.Duration(p.rng.IntN(20)) * time.Minute)
				case 3:
					p.crash()
				default:
					p.look()
					p.restore()
				}
			}
			for s, now := range p.states { // all come back, if need be empty
				if now == 0 {
					p.states[s] = p.was[s]
				}
			}
			for left := 20000; ; left-- {
				p.now = p.now.Add(time.Minute)
				p.look()
				if !p.row.Running() {
					break
				}
				if left == 0 {
					t.Fatalf("it never ends: %+v", p.row.Pass)
				}
				p.quietly(p.restore)
			}
			for s, incarnation := range p.states {
				if p.row.Whole[s] != incarnation {
					t.Errorf("spindle %d is not whole", s)
				}
			}
			p.check()
			if p.row.Pass != nil {
				restored += len(p.row.Pass.Restored)
			}
		}) {
			t.Logf("seed %d", seed)
			return
		}
	}
	if restored == 0 {
		t.Error("nothing was restored")
	}
}

// quietly does something while no further fault comes.
func (p *pool) quietly(do func() bool) {
	before := p.rng
	p.rng = rand.New(calm{before})
	do()
	p.rng = before
}

// calm draws no small numbers.
type calm struct{ rand.Source }

func (c calm) Uint64() uint64 { return c.Source.Uint64() | 3<<62 }

// TestLost: what cannot be computed is named, tried again while a spindle is away, and
// final when none is.
func TestLost(t *testing.T) {
	l, err := stripe.MakeLayouts(stripe.Geometry{K: 2, M: 1}, []id.Spindle{0, 1, 2, 3}, 1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	var r Row
	r.Look(now, l, Serving{0: 1, 1: 1, 2: 1, 3: 1})
	if r.Running() || !r.Look(now, l, Serving{1: 1, 2: 2, 3: 1}) || !r.Running() {
		t.Fatalf("%+v", r)
	}
	through := func(serving Serving, lose bool) {
		t.Helper()
		for {
			layout, targets, ok := r.Next(l, serving)
			if !ok {
				return
			}
			var o Outcome
			if lose {
				away := slices.ContainsFunc(l.Lists[layout], func(s id.Spindle) bool { return serving[s] == 0 })
				o.Lost = []Lost{{Segment: id.MakeSegment(layout, 1), What: "gone", Final: !away}}
			}
			r.Done(now, l, layout, targets, serving, o)
		}
	}
	through(Serving{1: 1, 2: 2, 3: 1}, true)
	if !r.Running() || r.Pass.LostCount() == 0 || !slices.Equal(r.Waits(l, Serving{1: 1, 2: 2, 3: 1}), []id.Spindle{0}) {
		t.Fatalf("while a spindle is away: %+v", r.Pass)
	}
	for tries, wait := 0, retryTime; tries < 10; tries++ {
		if now = now.Add(wait - 1); r.Look(now, l, Serving{1: 1, 2: 2, 3: 1}) {
			t.Errorf("it is tried again before %v", wait)
		}
		if now = now.Add(1); !r.Look(now, l, Serving{1: 1, 2: 2, 3: 1}) {
			t.Errorf("it is not tried again after %v", wait)
		}
		through(Serving{1: 1, 2: 2, 3: 1}, true)
		wait = min(2*wait, retryTimeMax)
	}
	if !r.Look(now, l, Serving{0: 1, 1: 1, 2: 2, 3: 1}) || r.Pass.Left.count() == 0 {
		t.Errorf("it is not tried again with the spindle: %+v", r.Pass)
	}
	through(Serving{0: 1, 1: 1, 2: 2, 3: 1}, true)
	if r.Running() || r.Pass.LostCount() == 0 || !r.Pass.Lost[0].Final || r.Whole[2] != 2 {
		t.Errorf("with all spindles: %+v", r.Pass)
	}
	b, err := json.Marshal(r.Pass.Clone())
	var again Pass
	if err != nil || json.Unmarshal(b, &again) != nil || again.LostCount() != r.Pass.LostCount() {
		t.Errorf("%s, %v", b, err)
	}
}

// The spindles of a node that comes are whole; one that is replaced later is not, and neither
// is one that was away when the pool was made.
func TestSpindlesThatComeAreWhole(t *testing.T) {
	nodes := func(n int) (all [][]id.Spindle) {
		for i := range n {
			all = append(all, []id.Spindle{id.Spindle(2 * i), id.Spindle(2*i + 1)})
		}
		return all
	}
	l, err := stripe.MakeSpreadLayouts(stripe.Geometry{K: 2, M: 1}, nodes(3), 1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	var row Row
	serving := Serving{0: 1, 1: 2, 2: 3, 3: 4, 4: 5} // 5 is away
	row.Look(now, l, serving)
	coming, err := l.Prepare(nodes(4), func(id.Layout) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	serving[6] = 7
	if row.Look(now, coming, serving); row.Running() || row.Whole[6] != 7 {
		t.Errorf("while it comes: %+v", row)
	}
	used, err := coming.Switch(func(s id.Spindle) (id.Node, bool) { return id.Node(s / 2), false })
	if err != nil {
		t.Fatal(err)
	}
	serving[7] = 8
	if row.Look(now, used, serving); row.Running() || row.Whole[7] != 8 {
		t.Errorf("when it is used: %+v", row)
	}
	serving[6], serving[5] = 70, 6
	if row.Look(now, used, serving); !row.Running() || row.Pass.Spindles[6] != 70 || row.Pass.Spindles[5] != 6 || len(row.Pass.Spindles) != 2 {
		t.Errorf("after one was replaced, and one came that was away: %+v", row.Pass)
	}
}
