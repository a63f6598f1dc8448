package reclaim

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRate(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		state PaceState
		want  int64
	}{
		{PaceState{Free: 200, Low: 100}, rateLeast},
		{PaceState{Free: 100, Low: 100, Foreground: 50 * mib}, 50 * mib},
		{PaceState{Free: 60, Low: 100, Foreground: 50 * mib}, 170 * mib},
		{PaceState{Free: 25, Low: 100, Foreground: 8 * mib}, 75*mib + mib/2},
		{PaceState{Free: 24, Low: 100, Foreground: 8 * mib}, 0},
		{PaceState{Free: 200, Low: 100, Urgent: true}, 0},
		{PaceState{}, rateLeast},
	} {
		if got := Rate(&c.state); got != c.want {
			t.Errorf("%+v: %d, want %d", c.state, got, c.want)
		}
	}
}

// TestPacer moves bytes at a rate, which is lifted while it waits.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rate atomic.Int64
		rate.Store(1 << 20)
		p := &Pacer{Rate: rate.Load}
		began := time.Now()
		for range 4 {
			if err := p.Wait(t.Context(), 1<<19); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("2 MiB at 1 MiB/s took %v", took)
		}
		time.Sleep(time.Minute) // which saves nothing up
		began = time.Now()
		time.AfterFunc(time.Second, func() { rate.Store(0) })
		if err := p.Wait(t.Context(), 10<<20); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < time.Second || took > time.Second+2*sliceTime {
			t.Errorf("took %v, the rate was lifted after 1 s", took)
		}
		rate.Store(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Wait(ctx, 100); err == nil {
			t.Error("100 bytes at 1 byte/s within a second")
		}
	})
}

func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Share
		began := time.Now()
		for range 11 {
			time.Sleep(10 * time.Millisecond)
			if err := s.Wait(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 210*time.Millisecond {
			t.Errorf("110 ms of work took %v with its pauses", took)
		}
		began = time.Now()
		if err := s.Wait(t.Context(), true); err != nil || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
