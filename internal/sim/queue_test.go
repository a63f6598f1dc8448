package sim

import (
	"slices"
	"testing"
	"time"
)

func TestQueueIsInOrder(t *testing.T) {
	q := NewQueue(1)
	var got []time.Duration
	var order []int
	for i := range 1000 {
		at := q.Span(0, 50)
		q.After(at, func() {
			got = append(got, q.Now)
			if at == 7 {
				order = append(order, i)
			}
			if i%10 == 0 {
				q.After(3, func() { got = append(got, q.Now) })
			}
		})
	}
	for q.Step() {
	}
	if len(got) != 1100 || !slices.IsSorted(got) || len(order) == 0 || !slices.IsSorted(order) {
		t.Errorf("%d events, in order: %v, and of one time: %v", len(got), slices.IsSorted(got), order)
	}
}

func TestKeptGoesOn(t *testing.T) {
	dir := t.TempDir()
	for done := range 3 {
		k, err := LoadKept(dir)
		if err != nil || k.Done != 10*done || k.Took != time.Duration(done)*time.Second {
			t.Fatalf("after %d seeds: %+v, %v", 10*done, k, err)
		}
		if err := k.Add(10, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := LoadKept(""); err != nil || k.Done != 0 || k.Add(1, 0) != nil {
		t.Errorf("a run that is not kept: %+v, %v", k, err)
	}
}
