package owner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"plinth/internal/id"
)

// script drives a machine by hand. Times are whole seconds of its clock.
type script struct {
	*testing.T
	m    *Machine
	last map[Do]Action
}

func newScript(t *testing.T) *script {
	return &script{T: t, m: New("a", Options{TTL: 10 * time.Second, Retry: time.Second}), last: make(map[Do]Action)}
}

var names = map[Do]string{
	Grant: "grant", KeepAlive: "keepalive", Look: "look", Claim: "claim", Ask: "ask", Fence: "fence", Serve: "serve", Stop: "stop",
	Drain: "drain", Release: "release",
}

// at gives an event at a time and compares the actions, as "name disk epoch".
func (s *script) at(seconds float64, e Event, want ...string) {
	s.Helper()
	var got []string
	for _, a := range s.m.Step(time.Duration(seconds*float64(time.Second)), e) {
		s.last[a.Do] = a
		got = append(got, fmt.Sprint(names[a.Do], " ", uint64(a.Disk), " ", uint64(a.Epoch)))
	}
	if !slices.Equal(got, want) {
		s.Fatalf("%+v at %v s: %q, want %q", e, seconds, got, want)
	}
}

func (s *script) replies(seconds float64, epoch id.Epoch, want bool) {
	s.Helper()
	if got := s.m.MayReply(1, epoch, time.Duration(seconds*float64(time.Second))); got != want {
		s.Fatalf("may reply at %v s: %t", seconds, got)
	}
}

func (s *script) call(d Do) uint64 { return s.last[d].Call }

// serving brings disk 1 to be served under epoch 5, with a session granted at 0.
func serve(t *testing.T) *script {
	s := newScript(t)
	s.at(0, nil, "grant 0 0")
	s.at(0.5, Want{1})
	s.at(1, Granted{Call: s.call(Grant), Lease: 77}, "look 1 0")
	s.at(1, Looked{Call: s.call(Look), Disk: 1, Newest: 4, EpochAt: 9}, "claim 1 5")
	if c := s.last[Claim]; c.EpochAt != 9 || c.Lease != 77 {
		t.Fatalf("%+v", c)
	}
	s.at(1.1, Claimed{Call: s.call(Claim), Disk: 1}, "fence 1 5")
	s.replies(1.2, 5, false)
	s.at(1.3, Fenced{Call: s.call(Fence), Disk: 1}, "serve 1 5")
	return s
}

func TestSessionIsCountedFromBeforeItWasAskedFor(t *testing.T) {
	s := serve(t)
	s.replies(9.99, 5, true)
	s.replies(9.99, 4, false)
	s.replies(10, 5, false)
	s.at(4, nil, "keepalive 0 0")
	s.at(9, KeptAlive{Call: s.call(KeepAlive)}, "keepalive 0 0") // sent at 4
	s.replies(13.99, 5, true)
	s.replies(14, 5, false)
	s.at(12, KeptAlive{Call: s.call(KeepAlive), Outcome: Failed})
	s.at(13, nil, "keepalive 0 0")
	s.at(14, nil, "stop 1 5", "grant 0 0")
	s.at(14.5, KeptAlive{Call: s.call(KeepAlive)}) // too late: it stays lost
	s.replies(14.5, 5, false)
	s.at(15, Granted{Call: s.call(Grant), Lease: 78}, "look 1 0")
	// Our own key under the lost lease is another's: it ends by itself.
	s.at(15, Looked{Call: s.call(Look), Disk: 1, Owner: "a", OwnerLease: 77, OwnerEpoch: 5, Newest: 5, EpochAt: 10})
	s.at(15.5, Vanished{1}, "look 1 0")
	s.at(15.5, Looked{Call: s.call(Look), Disk: 1, Newest: 5, EpochAt: 10}, "claim 1 6")
}

func TestLostLeaseStopsAtOnce(t *testing.T) {
	s := serve(t)
	s.at(4, nil, "keepalive 0 0")
	s.at(4.1, KeptAlive{Call: s.call(KeepAlive), Outcome: Lost}, "stop 1 5", "grant 0 0")
	s.replies(4.1, 5, false)
}

func TestGrantThatTookTooLongIsNone(t *testing.T) {
	s := newScript(t)
	s.at(0, nil, "grant 0 0")
	first := s.call(Grant)
	s.at(3.5, nil, "grant 0 0")
	s.at(3.6, Granted{Call: first, Lease: 1})
	s.at(13.5, Granted{Call: s.call(Grant), Lease: 2})
	if s.m.Valid(13 * time.Second) {
		t.Fatal("a lease that may be over is valid")
	}
}

func TestHandOver(t *testing.T) {
	s := serve(t)
	s.at(2, Unwant{1}, "drain 1 5")
	s.replies(2.5, 5, true)
	s.at(3, Drained{Call: s.call(Drain), Disk: 1}, "stop 1 5", "release 1 5")
	s.replies(3, 5, false)
	s.at(3.1, Released{Call: s.call(Release), Disk: 1})
	if len(s.m.disks) != 0 {
		t.Fatal("a disk that was given away is kept")
	}
}

func TestOwnerIsAskedAndWaitedFor(t *testing.T) {
	s := newScript(t)
	s.at(0, Want{1}, "grant 0 0")
	s.at(1, Granted{Call: s.call(Grant), Lease: 77}, "look 1 0")
	others := func() Looked {
		return Looked{Call: s.call(Look), Disk: 1, Owner: "b", OwnerLease: 3, OwnerEpoch: 4, Newest: 4, EpochAt: 9}
	}
	s.at(1, others(), "ask 1 0")
	s.at(2, nil, "look 1 0")
	s.at(2, others())
	s.at(2.5, Vanished{1}, "look 1 0")
	s.at(2.5, Looked{Call: s.call(Look), Disk: 1, Newest: 4, EpochAt: 9}, "claim 1 5")
	s.at(2.6, Claimed{Call: s.call(Claim), Disk: 1, Outcome: Refused}) // another was first
	s.at(3.6, nil, "keepalive 0 0", "look 1 0")
	s.at(3.6, others())
	s.at(6, nil, "look 1 0")
	s.at(6.5, others(), "ask 1 0")
}

func TestClaimInDoubt(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := newScript(t)
		s.at(0, Want{1}, "grant 0 0")
		s.at(1, Granted{Call: s.call(Grant), Lease: 77}, "look 1 0")
		s.at(1, Looked{Call: s.call(Look), Disk: 1, Newest: 4, EpochAt: 9}, "claim 1 5")
		s.at(2, Claimed{Call: s.call(Claim), Disk: 1, Outcome: Failed}, "look 1 0")
		if late {
			// It is not there yet, and nobody wants the disk any more.
			s.at(2, Unwant{1})
			s.at(2.1, Looked{Call: s.call(Look), Disk: 1, Newest: 4, EpochAt: 9})
			s.at(3, Unwant{1}, "look 1 0") // somebody who sees our key asks
		}
		s.at(3, Looked{Call: s.call(Look), Disk: 1, Owner: "a", OwnerLease: 77, OwnerEpoch: 5, Newest: 5, EpochAt: 10}, "release 1 5")
		s.at(3, Released{Call: s.call(Release), Disk: 1})
		s.replies(3, 5, false)
	}
}

func TestOvertaken(t *testing.T) {
	s := newScript(t)
	s.at(0, Want{1}, "grant 0 0")
	s.at(1, Granted{Call: s.call(Grant), Lease: 77}, "look 1 0")
	s.at(1, Looked{Call: s.call(Look), Disk: 1, Newest: 4, EpochAt: 9}, "claim 1 5")
	s.at(1, Claimed{Call: s.call(Claim), Disk: 1}, "fence 1 5")
	s.at(2, Fenced{Call: s.call(Fence), Disk: 1, Outcome: Failed}, "fence 1 5")
	s.at(3, Fenced{Call: s.call(Fence), Disk: 1, Outcome: Overtaken}, "stop 1 5")
	s.replies(3, 5, false)
	s.at(4, nil, "keepalive 0 0", "look 1 0")
}

// An answer counts once, and only for what is under way.
func TestForeignAnswers(t *testing.T) {
	s := serve(t)
	for _, e := range []Event{
		Granted{Call: s.call(Grant), Lease: 99}, KeptAlive{Call: 99, Outcome: Lost}, Looked{Call: s.call(Look), Disk: 1, Owner: "b"},
		Claimed{Call: s.call(Claim), Disk: 1, Outcome: Refused}, Fenced{Call: s.call(Fence), Disk: 1, Outcome: Overtaken},
		Drained{Call: 0, Disk: 1}, Released{Call: 0, Disk: 1}, Released{Call: 5, Disk: 2}, Vanished{1}, Vanished{2}, Want{1},
	} {
		s.at(2, e)
	}
	s.replies(2, 5, true)
}
