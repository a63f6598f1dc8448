package disk

import (
	"context"
	"errors"
	"sync"

	"plinth/datanode"
)

// Space admits what a host acknowledges: it keeps the sum of all charges, which
// is the spindle space that acknowledged and not yet destaged writes may need
// at worst, reserved on the data node, and the same sum below a limit that
// fits the host's RAM and the log. ENOSPC appears here or nowhere.
type Space struct {
	node   datanode.FragmentNode
	opts   SpaceOptions
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	charged  int64
	reserved int64
	kept     int64         // of it, for what is not charged
	freed    chan struct{} // closed and replaced when charged falls
}

// SpaceOptions says how charges become reservations.
type SpaceOptions struct {
	Host string // the session's name at the data node
	// ChargedBytesMax bounds the sum of charges: admission waits at it.
	ChargedBytesMax int64
	// K and M are the stripe's: a charge is reserved (K+M)/K times, and an
	// eighth for fragments that are cut short.
	K, M int
	// Nudge starts destaging soon and does not wait.
	Nudge func()
	// Relieve is called when space or log is short: it destages what is there,
	// collects what is dead, and returns when that is done or ctx ends.
	Relieve func(ctx context.Context) error
}

// reserveStep is the granularity of reservations, so that few writes ask the
// data node.
const reserveStep = 64 << 20

const (
	// nudgeShare of what may be charged has destaging begin, so that writers reach
	// the limit later or never.
	nudgeShare = 2
	// layerShare of what may be charged ends a layer, so that room comes in small
	// pieces where writers wait for it. layerChargeMin is two segments of chunks that
	// compress to half: the short last one of a round has a share that is nothing.
	layerShare     = 16
	layerChargeMin = 32 << 20
)

// reliefsMax bounds the reliefs that one admission asks for.
const reliefsMax = 4

// NewSpace returns an admission that has charged nothing.
func NewSpace(node datanode.FragmentNode, o SpaceOptions) *Space {
	return &Space{node: node, opts: o, freed: make(chan struct{}), closed: make(chan struct{})}
}

// Close makes every waiting and later Acquire fail with ErrClosed.
func (s *Space) Close() { s.once.Do(func() { close(s.closed) }) }

// need returns what must be reserved for charged bytes and for what is kept. The
// constant covers the short last segments of a destage round and their headers.
func (s *Space) need(charged int64) int64 {
	if charged == 0 {
		return s.kept
	}
	width := int64(s.opts.K + s.opts.M)
	return s.kept + (charged+charged/8)*width/int64(s.opts.K) + 8*width*4*datanode.BlockBytes
}

// Keep has admission leave n bytes of fragments to reclaim and checkpoints, beside
// what the data node keeps for them. It is what counts from now on, also where so
// much is not free: then nothing is admitted until it is.
func (s *Space) Keep(ctx context.Context, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	grown := n - s.kept
	s.kept = n
	if want := max(s.reserved+grown, s.need(s.charged)); want != s.reserved {
		if s.node.Reserve(ctx, &datanode.ReserveRequest{Host: s.opts.Host, Bytes: want}) == nil {
			s.reserved = want
		}
	}
}

// Kept returns how much of what is to be left to reclaim and checkpoints is
// reserved, and so not free to anybody else.
func (s *Space) Kept() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(s.kept, max(s.reserved-(s.need(s.charged)-s.kept), 0))
}

// Lacks returns how much more is to be reserved than could be: nothing is admitted
// until so much more is free.
func (s *Space) Lacks() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.need(s.charged)-s.reserved, 0)
}

// Acquire charges n bytes, at worst after waiting for destaging to make room.
// Errors: ErrNoSpace (with why relief failed, if it did), ErrClosed, and the
// context's.
func (s *Space) Acquire(ctx context.Context, n int64) error {
	if n == 0 {
		return nil
	}
	var failed error
	reliefs := 0
	for {
		s.mu.Lock()
		if s.charged > 0 && s.charged+n > s.opts.ChargedBytesMax {
			freed := s.freed
			s.mu.Unlock()
			if err := s.wait(ctx, freed); err != nil {
				return err
			}
			continue
		}
		err := s.reserve(ctx, s.charged+n)
		nudge := false
		if err == nil {
			half := s.opts.ChargedBytesMax / nudgeShare
			nudge = s.charged < half && s.charged+n >= half
			s.charged += n
		}
		others := s.charged
		s.mu.Unlock()
		if nudge {
			s.opts.Nudge()
		}
		if !errors.Is(err, datanode.ErrNoSpace) {
			return err
		}
		// What is charged is the worst case; destaging it may show that it
		// takes less, and space may be dead but not collected. If others were
		// faster to take what a relief gave back, there is more to gain.
		if reliefs == reliefsMax || reliefs > 0 && others == 0 {
			return errors.Join(ErrNoSpace, failed)
		}
		reliefs++
		failed = s.opts.Relieve(ctx)
		select {
		case <-s.closed:
			return ErrClosed
		default:
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// wait asks for destaging and waits for charges to fall.
func (s *Space) wait(ctx context.Context, freed chan struct{}) error {
	s.opts.Nudge()
	select {
	case <-freed:
		return nil
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reserve makes the reservation fit a sum of charges; s.mu is held.
func (s *Space) reserve(ctx context.Context, charged int64) error {
	need := s.need(charged)
	if need <= s.reserved {
		return nil
	}
	want := (need + reserveStep - 1) / reserveStep * reserveStep
	for _, bytes := range []int64{want, need} {
		err := s.node.Reserve(ctx, &datanode.ReserveRequest{Host: s.opts.Host, Bytes: bytes})
		if err == nil {
			s.reserved = bytes
			return nil
		}
		if !errors.Is(err, datanode.ErrNoSpace) || bytes == need {
			return err
		}
	}
	return nil
}

// Force charges n bytes for what was acknowledged before a restart, whatever
// is free.
func (s *Space) Force(ctx context.Context, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	need := s.need(s.charged + n)
	if need > s.reserved {
		if err := s.node.Reserve(ctx, &datanode.ReserveRequest{Host: s.opts.Host, Bytes: need, Force: true}); err != nil {
			return err
		}
		s.reserved = need
	}
	s.charged += n
	return nil
}

// Release takes a charge back: the write failed or is in segments. What was
// reserved for it is used up then: it goes with the charge, or writes that come
// would be admitted for space that is taken.
func (s *Space) Release(ctx context.Context, n int64) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.need(s.charged)
	s.charged -= n
	if s.charged < 0 {
		panic("space: released more than was charged")
	}
	close(s.freed)
	s.freed = make(chan struct{})
	need := s.need(s.charged)
	left := max(need, s.reserved-(before-need))
	if s.charged == 0 {
		left = min(need, s.reserved)
	}
	// A failure leaves too much reserved, which the next change corrects.
	if left < s.reserved && s.node.Reserve(ctx, &datanode.ReserveRequest{Host: s.opts.Host, Bytes: left}) == nil {
		s.reserved = left
	}
}

// Charged returns the sum of charges in bytes.
func (s *Space) Charged() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.charged
}

// layerChargeMax returns what a layer is charged at most, and one operation more.
func (s *Space) layerChargeMax() int64 { return max(s.opts.ChargedBytesMax/layerShare, layerChargeMin) }

// ChargedBytesMax returns the limit at which admission waits.
func (s *Space) ChargedBytesMax() int64 { return s.opts.ChargedBytesMax }
