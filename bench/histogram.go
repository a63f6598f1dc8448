package bench

import (
	"math/bits"
	"time"
)

const (
	// subBits gives each power of two 64 buckets: an error below 1/64.
	subBits = 6
	// latencyBits bounds what is told apart: 2^40 ns are 18 minutes.
	latencyBits = 40
	buckets     = (latencyBits - subBits + 1) << subBits
)

// histogram counts latencies in buckets whose width grows with their value. Its
// size is fixed. It is not safe for concurrent use.
type histogram struct {
	counts [buckets]uint64
	n      uint64
	sum    time.Duration
	max    time.Duration
}

// bucket returns where d is counted: exact below 2^subBits ns, above that by its
// subBits+1 leading bits.
func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-subBits-1, 0)
	return min(shift<<subBits+int(v>>shift), buckets-1)
}

// highest returns the largest latency that bucket i counts.
func highest(i int) time.Duration {
	shift := max(i>>subBits-1, 0)
	return time.Duration(uint64(i-shift<<subBits+1)<<shift - 1)
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(d)]++
	h.n++
	h.sum += d
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// quantile returns a latency that a share q of all does not exceed, at most 1.6 %
// above the least such; 0 if there is none.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := uint64(q * float64(h.n))
	if float64(rank) < q*float64(h.n) || rank == 0 {
		rank++
	}
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			return min(highest(i), h.max)
		}
	}
	return h.max
}

func (h *histogram) mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return h.sum / time.Duration(h.n)
}
