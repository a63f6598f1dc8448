package rebuild

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"plinth/internal/id"
	"plinth/internal/stripe"
)

// shared is a pass over a drive that was replaced, and what hosts have of it.
type shared struct {
	*testing.T
	row  Row
	x    *Share
	view *View
	now  time.Time
}

// sharedLayouts are to be gone through.
const sharedLayouts = 6

// newShared has drive 1 of 5 replaced, with stripes of 2+1, and some of its layouts left.
func newShared(t *testing.T, hosts ...string) *shared {
	l, err := stripe.MakeLayouts(stripe.Geometry{K: 2, M: 1}, []id.Spindle{0, 1, 2, 3, 4}, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := &shared{T: t, x: NewShare(), now: time.Unix(1e9, 0)}
	s.view = &View{Layouts: l, Serving: Serving{0: 1, 1: 1, 2: 1, 3: 1, 4: 1}}
	s.row.Look(s.now, l, s.view.Serving)
	s.view.Serving[1] = 2
	s.row.Look(s.now, l, s.view.Serving)
	for n := range l.Lists {
		if left := s.row.Pass.Left; left.has(id.Layout(n)) {
			if left.clear(id.Layout(n)); left.count() == sharedLayouts-1 {
				left.set(id.Layout(n))
				break
			}
		}
	}
	for _, name := range hosts {
		s.see(name, &Work{Pass: s.row.Pass.Began, Began: s.now})
	}
	return s
}

func (s *shared) see(host string, w *Work) { s.x.See(s.now, &s.row, host, w) }

// step is a step of the warden, after so long; it wants these events.
func (s *shared) step(after time.Duration, want ...string) {
	s.Helper()
	s.now = s.now.Add(after)
	s.row.Look(s.now, s.view.Layouts, s.view.Serving)
	_, events := s.x.Step(s.now, &s.row, s.view)
	var got []string
	for _, e := range events {
		got = append(got, e.Host+": "+e.What)
	}
	if slices.Sort(got); !slices.Equal(slices.Compact(got), want) {
		s.Errorf("events %q, want %q", got, want)
	}
}

// has are the layouts that a host has.
func (s *shared) has(host string) (out []id.Layout) {
	if w := s.x.Work(host); w != nil {
		for _, t := range w.Tasks {
			out = append(out, t.Layout)
		}
	}
	return out
}

// does has a host be through with its tasks.
func (s *shared) does(host string, o Outcome) *Work {
	w := s.x.Work(host)
	for i := range w.Tasks {
		w.Tasks[i].Outcome = &o
	}
	return w
}

// Layouts are dealt out evenly, and all are gone through once.
func TestShareIsEven(t *testing.T) {
	s := newShared(t, "a", "b", "c")
	s.step(0)
	if s.row.Pass.Sharing() != 3 || len(s.has("a")) != 2 || len(s.has("b")) != 2 || len(s.has("c")) != 2 {
		t.Fatalf("of 6 layouts: %v, %v, %v; %d hosts share", s.has("a"), s.has("b"), s.has("c"), s.row.Pass.Sharing())
	}
	for _, name := range []string{"a", "b", "c"} {
		w := s.does(name, Outcome{})
		w.Fragments, w.Bytes = 10, 1000
		s.see(name, w)
	}
	s.row.Pass.FragmentsLeft = 31
	s.step(0)
	if p := s.row.Pass; s.row.Running() || p.Fragments != 30 || p.Bytes != 3000 || p.Hosts["b"].Fragments != 10 || s.row.Whole[1] != 2 || p.Sharing() != 1 {
		t.Errorf("after all: %+v", p)
	}
}

// What stands still goes to another host, and its late result does not count.
func TestShareLapses(t *testing.T) {
	s := newShared(t, "a", "b")
	s.step(0)
	slow := s.has("a")
	w := s.x.Work("b")
	for i := range w.Tasks {
		w.Tasks[i].Steps = 1
	}
	late := s.does("a", Outcome{})
	s.now = s.now.Add(LapseTime / 2)
	s.see("b", w)
	s.step(LapseTime/2 - 1)
	if !slices.Equal(s.has("a"), slow) {
		t.Error("it is taken back early")
	}
	s.step(1, "a: it stands still")
	if len(s.has("a")) > 0 || len(s.has("b")) != TasksMax {
		t.Errorf("after it: %v, %v", s.has("a"), s.has("b"))
	}
	s.see("a", late)
	before := s.row.Pass.Left.count()
	s.step(0, "a: it does not count any more")
	if s.row.Pass.Left.count() != before {
		t.Error("a late result counts")
	}
	for i := range w.Tasks {
		w.Tasks[i].Steps = 2
	}
	s.see("b", w)
	if s.step(LapseTime - 1); len(s.has("a")) > 0 {
		t.Error("a host that stood still gets something at once")
	}
	for i := range w.Tasks {
		w.Tasks[i].Outcome = &Outcome{}
	}
	s.see("b", w)
	if s.step(1); len(s.has("a")) == 0 {
		t.Error("a host that stood still gets nothing any more")
	}
}

// A drive that is replaced again since a layout was given out is not restored by what comes of that.
func TestShareOfADriveThatGoes(t *testing.T) {
	s := newShared(t, "a")
	s.step(0)
	s.view.Serving[1] = 3
	s.see("a", s.does("a", Outcome{}))
	s.step(0, "a: other spindles are to be restored than when it was given out")
	if s.row.Pass.Left.count() < sharedLayouts || s.row.Pass.Spindles[1] != 3 || s.x.Work("a").Tasks[0].Targets[1] != 3 {
		t.Errorf("after it: %+v, %+v", s.row.Pass, s.x.Work("a"))
	}
	// The same where it goes between the look and the result.
	if s.row.Done(s.now, s.view.Layouts, s.has("a")[0], Serving{1: 2}, s.view.Serving, Outcome{}); s.row.Pass.Failed.count() != 1 {
		t.Error("a layout counts as restored for a drive that is another one")
	}
	s.view.Serving[2] = 2
	s.step(0, "a: other spindles are to be restored than when it was given out")
	for _, task := range s.x.Work("a").Tasks {
		if list := s.view.Layouts.Lists[task.Layout]; !slices.Contains(list, 1) && !slices.Contains(list, 2) || len(task.Targets) == 0 {
			t.Errorf("after a second one: %+v", task)
		}
	}
}

// The next warden goes on with what hosts have, and a host that gave a layout back gets none for a
// while.
func TestShareGoesOn(t *testing.T) {
	s := newShared(t, "a", "b")
	s.step(0)
	a, b := s.does("a", Outcome{}), s.x.Work("b")
	old := s.x.Work("a")
	s.x = NewShare()
	s.see("a", a)
	s.see("b", b)
	s.step(0)
	if s.row.Pass.Left.count() != sharedLayouts/2 || len(s.has("a")) != 0 || len(s.has("b")) != 3 {
		t.Fatalf("with another warden: %v, %v, %+v", s.has("a"), s.has("b"), s.row.Pass)
	}
	s.see("a", old) // what it was taken from could not be put
	s.step(0, "a: it does not count any more")
	b.Tasks[0].Error = "cut off"
	s.see("b", b)
	s.step(0, "b: cut off")
	if len(s.has("a")) != 1 || len(s.has("b")) != 2 {
		t.Errorf("after one was given back: %v, %v", s.has("a"), s.has("b"))
	}
	s.x.Gone("a")
	if s.step(restTime - 1); len(s.has("b")) != 2 {
		t.Errorf("a host that gave a layout back gets one too early: %v", s.has("b"))
	}
	if s.step(1); len(s.has("b")) != 3 {
		t.Errorf("a host that gave a layout back gets none: %v", s.has("b"))
	}
	s.see("c", &Work{Pass: s.now, Began: s.now})
	if s.step(0); s.x.Work("c") != nil {
		t.Error("a host takes part that means another pass")
	}
}

// FuzzWork: rows are read and written again, and no step fails with one.
func FuzzWork(f *testing.F) {
	f.Add([]byte(`{"version":1,"pass":"2001-09-09T01:46:40Z","began":"2001-09-09T01:46:40Z","given":3,"tasks":[{"number":2,"layout":1,"targets":{"1":2},"steps":4,"outcome":{"again":true,"lost_segments":2,"lost":[{"segment":1}]}},{"number":3,"layout":9999,"targets":{"77":1},"error":"x"}],"fragments":9223372036854775807,"bytes":5}`))
	f.Add([]byte(`{"version":1,"tasks":[{"number":1,"layout":0,"targets":{}}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		w, err := ParseWork(value)
		if err != nil {
			return
		}
		again, err := w.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if w, err = ParseWork(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if third, err := w.Marshal(); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%s and %s: %v", again, third, err)
		}
		s := newShared(t, "a")
		w.Pass = s.row.Pass.Began
		s.see("b", w)
		s.x.Step(s.now, &s.row, s.view)
		s.x.Step(s.now.Add(LapseTime), &s.row, s.view)
		for _, name := range []string{"a", "b"} {
			if err := s.x.Work(name).validate(); err != nil && w.Given < 1<<63 {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
