package gate

import (
	"fmt"
	"math"
	"time"
)

// Limits bound what a disk's clients may do, all of them together. 0: no bound.
// Reads and writes count together, and each kind for itself.
type Limits struct {
	IOPS      int64 `json:"iops,omitempty"`
	ReadIOPS  int64 `json:"read_iops,omitempty"`
	WriteIOPS int64 `json:"write_iops,omitempty"`
	// Bytes per second.
	BPS      int64 `json:"bps,omitempty"`
	ReadBPS  int64 `json:"read_bps,omitempty"`
	WriteBPS int64 `json:"write_bps,omitempty"`
	// BurstSeconds is how long a disk may save up what it does not use, to use it
	// at once later. 0: a tenth of a second, which smooths and no more.
	BurstSeconds float64 `json:"burst_seconds,omitempty"`
}

const (
	burstSecondsDefault = 0.1
	burstSecondsMax     = 3600
	// Below these a queue of usual depth would wait for longer than guests do.
	iopsMin = 10
	bpsMin  = 1 << 20
	// rateMax is more than any disk does, and small enough to compute with.
	rateMax = 1 << 50
)

// Any reports whether there is a bound.
func (l *Limits) Any() bool {
	return l.IOPS|l.ReadIOPS|l.WriteIOPS|l.BPS|l.ReadBPS|l.WriteBPS != 0
}

// Validate returns ErrInvalid with the reason.
func (l *Limits) Validate() error {
	for _, v := range []struct {
		name  string
		n     int64
		least int64
	}{
		{"iops", l.IOPS, iopsMin}, {"read_iops", l.ReadIOPS, iopsMin}, {"write_iops", l.WriteIOPS, iopsMin},
		{"bps", l.BPS, bpsMin}, {"read_bps", l.ReadBPS, bpsMin}, {"write_bps", l.WriteBPS, bpsMin},
	} {
		if v.n != 0 && (v.n < v.least || v.n > rateMax) {
			return fmt.Errorf("%w: %s of %d: use %d at least, or 0 for no limit", ErrInvalid, v.name, v.n, v.least)
		}
	}
	if !(l.BurstSeconds >= 0 && l.BurstSeconds <= burstSecondsMax) {
		return fmt.Errorf("%w: a burst of %v seconds: use 0 to %d", ErrInvalid, l.BurstSeconds, burstSecondsMax)
	}
	return nil
}

// buckets are the state of limits: what may still pass, by time.
type buckets struct {
	at    time.Time
	ops   [2]bucket // of reads and writes
	bytes [2]bucket
	both  [2]bucket // operations, bytes
}

// newBuckets returns full ones.
func newBuckets(l *Limits, now time.Time) *buckets {
	burst := l.BurstSeconds
	if burst == 0 {
		burst = burstSecondsDefault
	}
	of := func(rate int64) bucket {
		return bucket{rate: float64(rate), max: float64(rate) * burst, level: float64(rate) * burst}
	}
	return &buckets{
		at: now, ops: [2]bucket{of(l.ReadIOPS), of(l.WriteIOPS)}, bytes: [2]bucket{of(l.ReadBPS), of(l.WriteBPS)},
		both: [2]bucket{of(l.IOPS), of(l.BPS)},
	}
}

// bucket is a leaky bucket: an operation passes while there is anything in it, and
// may leave less than nothing, which the next waits for. So one of any size passes.
type bucket struct{ rate, max, level float64 }

func (b *bucket) fill(seconds float64) { b.level = min(b.level+b.rate*seconds, b.max) }

// wait returns the seconds until something passes.
func (b *bucket) wait() float64 {
	if b.rate == 0 || b.level > 0 {
		return 0
	}
	return (-b.level + 1) / b.rate
}

// take leaves no more to wait for than who waits is held.
func (b *bucket) take(n float64) { b.level = max(b.level-n, -b.rate*limitWaitMax.Seconds()) }

// counted returns the index of an operation's own buckets, or false where no limit
// counts it.
func counted(op Op) (int, bool) {
	switch op.Kind {
	case Read:
		return 0, true
	case Write, Clear:
		return 1, true
	}
	return 0, false
}

// wait returns how long an operation must wait at this time.
func (b *buckets) wait(now time.Time, op Op) time.Duration {
	seconds := now.Sub(b.at).Seconds()
	b.at = now
	for i := range 2 {
		b.ops[i].fill(seconds)
		b.bytes[i].fill(seconds)
		b.both[i].fill(seconds)
	}
	i, _ := counted(op)
	wait := max(b.ops[i].wait(), b.bytes[i].wait(), b.both[0].wait(), b.both[1].wait())
	return time.Duration(math.Ceil(wait * float64(time.Second)))
}

// take counts an operation that passes.
func (b *buckets) take(op Op) {
	i, _ := counted(op)
	b.ops[i].take(1)
	b.bytes[i].take(float64(op.Bytes))
	b.both[0].take(1)
	b.both[1].take(float64(op.Bytes))
}

// giveBack undoes a take.
func (b *buckets) giveBack(op Op) {
	i, _ := counted(op)
	b.ops[i].take(-1)
	b.bytes[i].take(float64(-op.Bytes))
	b.both[0].take(-1)
	b.both[1].take(float64(-op.Bytes))
}
