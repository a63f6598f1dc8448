package rebuild

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"plinth/internal/id"
	"plinth/internal/stripe"
)

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
			some := r.next(l, serving, 1, func(id.Layout) bool { return false })
			if len(some) == 0 {
				return
			}
			layout := some[0]
			var o Outcome
			if lose {
				away := slices.ContainsFunc(l.Lists[layout], func(s id.Spindle) bool { return serving[s] == 0 })
				o.Lose(Lost{Segment: id.MakeSegment(layout, 1), What: "gone", Final: !away})
			}
			r.Done(now, l, layout, r.targets(&View{Layouts: l, Serving: serving}, layout), serving, o)
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
