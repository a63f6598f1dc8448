package reclaim

import (
	"context"
	"time"
)

const (
	// rateLeast is how fast chunks are moved at least, in bytes per second: an
	// idle pool recovers in the end.
	rateLeast = 4 << 20
	// rateNeed is how many times the rate of the foreground that of the background
	// is, at most, before it is no more bounded: at 90 % live it takes some five.
	rateNeed = 16
	// sliceTime bounds a pause, after which the rate is asked for again: who waits
	// for space waits that long for a paced cycle to hurry.
	sliceTime = 50 * time.Millisecond
)

// PaceState is what a rate is made of.
type PaceState struct {
	// Free and Low are those of State.
	Free, Low int64
	// Foreground is what users write, in bytes per second after deduplication.
	Foreground int64
	// Urgent: somebody waits for space.
	Urgent bool
}

// Rate returns how many bytes per second may be moved, 0 for no limit: as much as
// users write where free space has only begun to be short, more the less is left,
// and all that can be done below a quarter. The rise is slow at first: a cycle that
// takes its time is hardly noticed by who writes meanwhile.
func Rate(s *PaceState) int64 {
	if s.Urgent || s.Free < s.Low/4 {
		return 0
	}
	rate := max(s.Foreground, rateLeast)
	if s.Free >= s.Low {
		return rate
	}
	short := float64(s.Low-s.Free) / float64(s.Low) // at most 3/4
	return rate + int64(float64(rate)*(rateNeed-1)*short*short)
}

// Pacer makes work wait so that it keeps to a rate. It is not safe for concurrent
// use.
type Pacer struct {
	// Rate is asked for bytes per second often, as it changes; 0: no limit.
	Rate func() int64
	due  time.Time // when what was done so far is paid for
}

// Wait returns when bytes that were just moved are paid for, or ctx ends.
func (p *Pacer) Wait(ctx context.Context, bytes int64) error {
	for now := time.Now(); bytes > 0; now = time.Now() {
		rate := p.Rate()
		if rate <= 0 {
			p.due = time.Time{}
			return ctx.Err()
		}
		if p.due.Before(now) {
			p.due = now
		}
		// A slice at a time, at the rate of its time.
		part := min(bytes, max(rate*int64(sliceTime)/int64(time.Second), 1))
		bytes -= part
		p.due = p.due.Add(time.Duration(part) * time.Second / time.Duration(rate))
		if err := pause(ctx, p.due.Sub(now)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Share makes work pause as long as it has worked since the last pause ended.
type Share struct{ from time.Time }

// Wait pauses for the time that has passed since the last Wait, but for no more
// than a moment, unless free says that nothing is to wait.
func (s *Share) Wait(ctx context.Context, free bool) error {
	now := time.Now()
	worked := now.Sub(s.from)
	if s.from.IsZero() || free {
		worked = 0
	}
	err := pause(ctx, min(worked, sliceTime))
	s.from = time.Now()
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
