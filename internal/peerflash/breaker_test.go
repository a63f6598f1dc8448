package peerflash

import (
	"testing"
	"time"
)

// A peer that fails is left alone for longer each time, up to a minute, and asked as
// before once it has answered.
func TestBackoff(t *testing.T) {
	now := time.Unix(1000, 0)
	var b backoff
	if !b.over(now) {
		t.Fatal("a peer of which nothing is known is not asked")
	}
	for want := pauseMin; ; want = min(2*want, pauseMax) {
		b.failed(now)
		b.failed(now.Add(want / 2)) // began before the pause
		if b.over(now.Add(want-1)) || !b.over(now.Add(want)) {
			t.Fatalf("a pause until %v, want %v", b.until.Sub(now), want)
		}
		b.answered(now.Add(want / 2)) // began before the pause
		now = now.Add(want)
		if want == pauseMax {
			break
		}
	}
	b.answered(now)
	b.failed(now)
	if !b.over(now.Add(pauseMin)) {
		t.Errorf("a pause of %v after an answer", b.until.Sub(now))
	}
	now = now.Add(pauseMin)
	b.unable(now)
	b.failed(now)
	b.answered(now)
	if b.over(now.Add(unableTime-1)) || !b.over(now.Add(unableTime)) {
		t.Errorf("a peer that cannot lend is left alone for %v", b.until.Sub(now))
	}
}

// asks counts how many of n reads are asked for, if each has 4 chunks of which so many
// are here.
func asks(r *rate, n, here int) (asked int) {
	for range n {
		if r.ask() {
			asked++
			r.answered(4, here)
		}
	}
	return asked
}

func TestRate(t *testing.T) {
	var r rate
	if n := asks(&r, 1000, 1); n != 1000 {
		t.Errorf("of a peer that has a quarter %d of 1000 reads are asked for", n)
	}
	r = rate{}
	if n := asks(&r, rateWindow/2/4, 0); n != rateWindow/2/4 {
		t.Errorf("%d reads are asked for before anything is known", n)
	}
	if n := asks(&r, 10*sampleEmpty, 0); n != 10 {
		t.Errorf("of a peer that has nothing %d of %d reads are asked for, want 10", n, 10*sampleEmpty)
	}
	// It has become warm: that is seen after some samples.
	if n := asks(&r, sampleEmpty+sampleCold*rateWindow/4, 4); n < rateWindow/8 {
		t.Errorf("of a peer that has become warm %d reads are asked for", n)
	}
	if n := asks(&r, 100, 4); n != 100 {
		t.Errorf("later %d of 100", n)
	}
	if n := asks(&r, 20*rateWindow, 0); n > 2*rateWindow {
		t.Errorf("of a peer that has become cold %d of %d reads are asked for", n, 20*rateWindow)
	}
	r.here = 1
	if n := asks(&r, 10*sampleCold, 0); n == 0 || n > 10 {
		t.Errorf("of a peer that has little %d of %d reads are asked for", n, 10*sampleCold)
	}
}
