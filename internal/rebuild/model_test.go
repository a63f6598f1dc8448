package rebuild

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

var seeds = flag.Int("rebuild-seeds", 120, "TestSimRebuild: how many pools")

// pool is a model of stripes on spindles: what each segment has where.
type pool struct {
	*testing.T
	rng       *rand.Rand
	l         *stripe.Layouts
	segments  []id.Segment
	fragments map[id.Segment][]bool // by index: it is on its spindle, and right
	states    map[id.Spindle]uint64 // incarnation, 0 while it does not serve
	was       map[id.Spindle]uint64 // before
	row       Row                   // the warden's
	saved     []byte                // of it, in the registry
	now       time.Time
	number    uint64
	lost      map[id.Segment]bool // were beyond repair at some time
	calm      bool                // nothing bad happens any more

	hosts  []*worker
	warden *worker
	share  *Share
	seen   map[string]uint64 // revisions of the rows that the warden has read
	rows   map[string]hostRow
	shared map[string]bool // hosts that have gone through layouts
	lapsed int
}

// hostRow is a host's row in the registry.
type hostRow struct {
	value    []byte
	revision uint64
}

// worker is a host. Of the warden itself the registry has no row.
type worker struct {
	name     string
	work     *Work // its row as it is told there, and what it has done since
	revision uint64
	runs     map[uint64]*run
	stuck    bool // it does nothing
	cut      bool // from the registry
}

// run is a task that a host is at.
type run struct {
	task Task
	has  map[id.Segment][]bool // as the spindles' lists said when it began
	todo []id.Segment
	o    Outcome
}

func newPool(t *testing.T, seed uint64) *pool {
	p := &pool{
		T: t, rng: rand.New(rand.NewPCG(seed, 1)), fragments: make(map[id.Segment][]bool), states: make(map[id.Spindle]uint64),
		was: make(map[id.Spindle]uint64), now: time.Unix(1e9, 0), lost: make(map[id.Segment]bool),
		share: NewShare(), seen: make(map[string]uint64), rows: make(map[string]hostRow), shared: make(map[string]bool),
	}
	for n := range 1 + p.rng.IntN(4) {
		p.hosts = append(p.hosts, &worker{name: fmt.Sprint("h", n)})
	}
	p.warden = p.hosts[0]
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
	p.lead()
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

// chance is true once in n times, as long as anything bad may happen.
func (p *pool) chance(n int) bool { return !p.calm && p.rng.IntN(n) == 0 }

func (p *pool) view() *View { return &View{Layouts: p.l, Serving: p.serving()} }

// lead is a step of the warden.
func (p *pool) lead() {
	w := p.warden
	if w.stuck {
		return
	}
	for name, row := range p.rows {
		if p.seen[name] != row.revision && !p.chance(4) { // which it may hear of later
			p.seen[name] = row.revision
			p.share.See(p.now, &p.row, name, p.parse(row.value))
		}
	}
	for name := range p.seen {
		if _, there := p.rows[name]; !there {
			delete(p.seen, name)
			p.share.Gone(name)
		}
	}
	changed := p.row.Look(p.now, p.l, p.serving())
	if w.work == nil || p.row.Running() && !w.work.Pass.Equal(p.row.Pass.Began) {
		p.offer(w, p.row.Pass)
	}
	p.share.See(p.now, &p.row, w.name, w.work)
	before := p.tasks()
	hosts, events := p.share.Step(p.now, &p.row, p.view())
	for _, e := range events {
		if e.What == "it stands still" {
			p.lapsed++
		}
	}
	p.foremost(before)
	if changed || p.rng.IntN(3) == 0 {
		p.save()
	}
	for _, name := range hosts {
		p.put(name)
	}
	p.check()
}

// put puts a host's row as the warden wants it.
func (p *pool) put(name string) {
	work := p.share.Work(name)
	if name == p.warden.name {
		p.follow(p.warden, work)
		return
	}
	value, err := work.Marshal()
	if err != nil {
		p.Fatal(err)
	}
	row, there := p.rows[name]
	fits := there && row.revision == p.seen[name] && !p.chance(10)
	if fits {
		p.number++
		p.rows[name] = hostRow{value, p.number}
	}
	if fits && !p.chance(10) {
		p.seen[name] = p.number
		p.share.See(p.now, &p.row, name, work)
	} else if there { // not done, or in doubt: it is read again
		p.seen[name] = 0
		p.share.See(p.now, &p.row, name, p.parse(row.value))
	}
}

func (p *pool) parse(value []byte) *Work {
	w, err := ParseWork(value)
	if err != nil {
		p.Fatal(err)
	}
	return w
}

// offer begins a host's part in a pass.
func (p *pool) offer(w *worker, pass *Pass) {
	p.number++
	w.work, w.runs = &Work{Version: WorkVersion, Began: p.now.Add(time.Duration(p.number))}, make(map[uint64]*run)
	if pass != nil {
		w.work.Pass = pass.Began
	}
}

// tick is what a host does now: it looks at its row, restores one segment and tells of that.
func (p *pool) tick(w *worker) {
	if w.stuck {
		return
	}
	if w != p.warden && !w.cut && !p.read(w) {
		return
	}
	if w.work == nil {
		return
	}
	for _, n := range slices.Sorted(maps.Keys(w.runs)) {
		i := slices.IndexFunc(w.work.Tasks, func(t Task) bool { return t.Number == n })
		if p.rng.IntN(2) == 0 && p.work(w, w.runs[n], &w.work.Tasks[i]) {
			delete(w.runs, n)
			p.shared[w.name] = true
		}
	}
	if row := p.rows[w.name]; w != p.warden && !w.cut && row.revision == w.revision && p.rng.IntN(2) == 0 {
		value, err := w.work.Marshal()
		if err != nil {
			p.Fatal(err)
		}
		p.number++
		p.rows[w.name], w.revision = hostRow{value, p.number}, p.number
	}
}

// read looks at a host's row, and puts one where a pass has none of it.
func (p *pool) read(w *worker) bool {
	var now Row
	if err := json.Unmarshal(p.saved, &now); err != nil {
		p.Fatal(err)
	}
	row, there := p.rows[w.name]
	if !now.Running() {
		delete(p.rows, w.name)
		w.work, w.runs = nil, nil
		return false
	}
	if !there || w.work == nil || !w.work.Pass.Equal(now.Pass.Began) {
		p.offer(w, now.Pass)
		value, err := w.work.Marshal()
		if err != nil {
			p.Fatal(err)
		}
		p.number++
		p.rows[w.name], w.revision = hostRow{value, p.number}, p.number
		return true
	}
	if row.revision != w.revision {
		w.revision = row.revision
		p.follow(w, p.parse(row.value))
	}
	return true
}

// follow has a host go on as its row says.
func (p *pool) follow(w *worker, row *Work) {
	mine := w.work
	w.work = row.Clone()
	w.work.Fragments, w.work.Bytes = mine.Fragments, mine.Bytes
	for i := range w.work.Tasks {
		t := &w.work.Tasks[i]
		if n := slices.IndexFunc(mine.Tasks, func(o Task) bool { return o.Number == t.Number }); n >= 0 {
			*t = mine.Tasks[n]
		} else if !t.Ended() {
			w.runs[t.Number] = p.begin(t)
		}
	}
	maps.DeleteFunc(w.runs, func(n uint64, _ *run) bool {
		return !slices.ContainsFunc(w.work.Tasks, func(t Task) bool { return t.Number == n })
	})
}

// begin begins a task: it lists what spindles have.
func (p *pool) begin(t *Task) *run {
	for s, incarnation := range t.Targets {
		if now := p.states[s]; now != incarnation || p.chance(30) {
			t.Error = "it is not as it was told"
			return &run{}
		}
	}
	r := &run{task: *t, has: make(map[id.Segment][]bool)}
	for _, s := range p.segments {
		if s.Layout() == t.Layout {
			r.todo = append(r.todo, s)
			r.has[s] = slices.Clone(p.fragments[s])
		}
	}
	return r
}

// work goes on with a task by one segment, and reports whether it is through.
func (p *pool) work(w *worker, r *run, t *Task) bool {
	if t.Ended() {
		return true
	}
	t.Steps++
	if len(r.todo) > 0 {
		p.restore(w, r, r.todo[0])
		r.todo = r.todo[1:]
		return false
	}
	o := r.o
	t.Outcome = &o
	return true
}

// restore restores what a segment lacked when its layout was begun.
func (p *pool) restore(w *worker, r *run, s id.Segment) {
	if p.fragments[s] == nil {
		return // deleted meanwhile
	}
	list := p.l.Lists[s.Layout()]
	for i, sp := range list {
		if r.task.Targets[sp] == 0 || r.has[s][i] {
			continue
		}
		switch {
		case p.fragments[s][i]:
		case p.has(s) < p.l.Geometry.K:
			away := slices.ContainsFunc(list, func(sp id.Spindle) bool { return p.states[sp] == 0 })
			r.o.Lose(Lost{Segment: s, Final: !away})
			return
		case p.states[sp] == 0 || p.chance(20): // no space, say
			r.o.Again = true
		default:
			p.fragments[s][i] = true
			w.work.Fragments++
		}
	}
}

func (p *pool) save() {
	b, err := json.Marshal(&p.row)
	if err != nil {
		p.Fatal(err)
	}
	p.saved = b
}

// crash has another warden go on from what the registry has. The last one is dead, or
// only lost its session.
func (p *pool) crash() {
	p.warden.work, p.warden.runs = nil, nil
	p.warden = p.hosts[p.rng.IntN(len(p.hosts))]
	p.warden.work, p.warden.runs, p.warden.stuck = nil, nil, false
	delete(p.rows, p.warden.name)
	p.share, p.seen, p.row = NewShare(), make(map[string]uint64), Row{}
	if err := json.Unmarshal(p.saved, &p.row); err != nil {
		p.Fatal(err)
	}
}

// hit has something happen to a host.
func (p *pool) hit() {
	w := p.hosts[p.rng.IntN(len(p.hosts))]
	switch {
	case p.rng.IntN(3) == 0:
		w.stuck = !w.stuck
	case w == p.warden:
	case p.rng.IntN(3) == 0:
		w.cut = !w.cut
	default: // it dies: its row goes with its lease
		delete(p.rows, w.name)
		w.work, w.runs = nil, nil
	}
}

// tasks are what the warden has given out, by layout.
func (p *pool) tasks() map[id.Layout]bool {
	out := make(map[id.Layout]bool)
	for _, h := range p.share.hosts {
		for _, t := range h.work.Tasks {
			if !t.Ended() {
				out[t.Layout] = true
			}
		}
	}
	return out
}

// foremost tests a step: no layout is at two hosts, what was given out has lost as much as what
// was not, at least, and nothing was not as long as a host has room.
func (p *pool) foremost(before map[id.Layout]bool) {
	taken, room, least := make(map[id.Layout]bool), false, 100
	for _, h := range p.share.hosts {
		room = room || len(h.work.Tasks) < TasksMax && !p.now.Before(h.rests)
		for _, t := range h.work.Tasks {
			if taken[t.Layout] {
				p.Fatalf("layout %d is at two hosts", t.Layout)
			}
			taken[t.Layout] = true
			if lost, _ := p.lostOf(t.Layout); !before[t.Layout] {
				least = min(least, lost)
			}
		}
	}
	for n := range p.l.Lists {
		lost, some := p.lostOf(id.Layout(n))
		if !some || taken[id.Layout(n)] {
			continue
		}
		if lost > least || room {
			p.Fatalf("layout %d, which has lost %d, is not given out, with room %v; one that lost %d is", n, lost, room, least)
		}
	}
}

// lostOf counts the spindles of a layout that is left which lost something; some: one of them is there.
func (p *pool) lostOf(l id.Layout) (n int, some bool) {
	if !p.row.Running() || !p.row.Pass.Left.has(l) {
		return 0, false
	}
	for _, s := range p.l.Lists[l] {
		_, restored := p.row.Pass.Spindles[s]
		if restored || p.states[s] == 0 {
			n++
		}
		some = some || restored && p.states[s] == p.row.Pass.Spindles[s]
	}
	return n, some
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

// TestSimRebuild has spindles go, come back and be replaced while hosts restore, and hosts die,
// stand still and lose the registry, wardens too. In the end all is whole.
func TestSimRebuild(t *testing.T) {
	first := rand.Uint64()
	restored, shared, lapsed := 0, 0, 0
	for n := range *seeds {
		seed := first + uint64(n)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPool(t, seed)
			for range 400 {
				p.event()
			}
			p.settle()
			if p.row.Pass != nil {
				restored += len(p.row.Pass.Restored)
			}
			if len(p.shared) > 1 {
				shared++
			}
			lapsed += p.lapsed
		}) {
			t.Logf("seed %d", seed)
			return
		}
	}
	t.Logf("%d spindles were restored, %d pools shared that, %d tasks lapsed", restored, shared, lapsed)
	if restored == 0 || shared == 0 || lapsed == 0 {
		t.Error("the test shows nothing")
	}
}

// event is one thing that happens.
func (p *pool) event() {
	switch p.rng.IntN(16) {
	case 0, 1:
		p.fault()
	case 2:
		p.write()
	case 3:
		p.now = p.now.Add(time.Duration(p.rng.IntN(10)) * time.Minute)
	case 4:
		if p.rng.IntN(3) == 0 {
			p.crash()
		}
	case 5:
		p.hit()
	default:
		p.lead()
		for _, w := range p.hosts {
			p.tick(w)
		}
	}
}

// settle has all spindles and hosts come back and no more happen, and waits for the end of the
// rebuild.
func (p *pool) settle() {
	for s, now := range p.states { // if need be empty
		if now == 0 {
			p.states[s] = p.was[s]
		}
	}
	p.calm = true
	for _, w := range p.hosts {
		w.stuck, w.cut = false, false
	}
	for left := 20000; ; left-- {
		p.now = p.now.Add(time.Second)
		p.lead()
		if !p.row.Running() {
			break
		}
		if left == 0 {
			p.Fatalf("it never ends: %+v, %+v", p.row.Pass, p.share.hosts)
		}
		for _, w := range p.hosts {
			p.tick(w)
		}
	}
	for s, incarnation := range p.states {
		if p.row.Whole[s] != incarnation {
			p.Errorf("spindle %d is not whole", s)
		}
	}
	p.check()
}
