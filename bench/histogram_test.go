package bench

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsAreNarrowAndOrdered(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 1<<42; d += 1 + d/50 {
		i := bucket(d)
		if i < last || i >= buckets {
			t.Fatalf("%d ns is in bucket %d, after %d", d, i, last)
		}
		last = i
		h := highest(i)
		if d < 1<<latencyBits && (h < d || float64(h-d) > float64(d)/(1<<subBits)) {
			t.Fatalf("%d ns is in bucket %d, which ends at %d", d, i, h)
		}
	}
	if i := bucket(math.MaxInt64); i != buckets-1 {
		t.Errorf("the longest latency is in bucket %d", i)
	}
	if i := bucket(-1); i != 0 {
		t.Errorf("a clock that goes back counts in bucket %d", i)
	}
}

func TestQuantilesOfMergedHistograms(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	var parts [3]histogram
	var all []time.Duration
	for i := range 30000 {
		d := time.Duration(math.Exp(rng.Float64() * 20))
		parts[i%3].add(d)
		all = append(all, d)
	}
	var h histogram
	for i := range parts {
		h.merge(&parts[i])
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(int(math.Ceil(q*float64(len(all)))), 1)-1]
		got := h.quantile(q)
		if got < want || float64(got-want) > float64(want)/(1<<subBits) {
			t.Errorf("quantile %v is %v, want %v (seed %d)", q, got, want, seed)
		}
	}
	if got := (&histogram{}).quantile(0.5); got != 0 {
		t.Errorf("median of nothing: %v", got)
	}
}
