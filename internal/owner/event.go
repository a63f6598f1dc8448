package owner

import (
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// Do is what an action is.
type Do uint8

const (
	// Grant asks the registry for a lease of TTL: Granted.
	Grant Do = iota + 1
	// KeepAlive keeps Lease alive: KeptAlive.
	KeepAlive
	// Look reads the owner key and the epoch key of Disk, in this order: Looked.
	Look
	// Claim commits, if there is no owner key and the epoch key has revision
	// EpochAt, the owner key under Lease and Epoch as the newest: Claimed.
	Claim
	// Ask asks Host to give Disk away, at times again. It is not answered.
	Ask
	// Fence makes Epoch the newest on every data node of Disk, makes the members of
	// its log equal and opens it: Fenced.
	Fence
	// Serve lets replies of Disk under Epoch leave, while MayReply. Not answered.
	Serve
	// Stop ends Disk under Epoch, or its opening, at once: no reply leaves any more.
	// Not answered.
	Stop
	// Drain lets what is under way of Disk finish, takes nothing new and makes all
	// that was acknowledged stable: Drained.
	Drain
	// Release deletes the owner key of Disk if it is of Lease and Epoch: Released.
	Release
)

// Action is what is to be done. Call names it in the event that answers it.
type Action struct {
	Do      Do
	Call    uint64
	Disk    id.Disk
	Epoch   id.Epoch
	Lease   datanode.LeaseID
	TTL     time.Duration
	EpochAt uint64
	Host    string
}

// Outcome is what came of an action.
type Outcome uint8

const (
	// Done: it was carried out.
	Done Outcome = iota
	// Refused: a compare did not hold; it was not carried out and will not be.
	Refused
	// Failed: it was not, or nobody knows. A call to the registry that ends with
	// datanode.ErrOutcome ends so.
	Failed
	// Lost: the lease has ended (datanode.ErrLeaseLost).
	Lost
	// Overtaken: a newer epoch owns the disk (datanode.ErrFenced).
	Overtaken
)

// Event is something that happened.
type Event interface {
	apply(m *Machine, now time.Duration)
}

// Want says that this host shall own the disk, and Unwant that it shall not: for
// exports, moves and hand-overs. Who asks the owner of a disk sends it Unwant, also
// when it does not know that it is one. Adopt says that it shall own the disk unless
// another host does. Vanished says that a disk's owner key is gone.
type (
	Want     struct{ Disk id.Disk }
	Unwant   struct{ Disk id.Disk }
	Adopt    struct{ Disk id.Disk }
	Vanished struct{ Disk id.Disk }
)

// Born says that a new disk was recorded together with its owner key, under this
// host's lease and that epoch.
type Born struct {
	Disk  id.Disk
	Lease datanode.LeaseID
	Epoch id.Epoch
}

// Renewed says that the owner of a disk has claimed another epoch itself, and put
// that into its owner key: it opens the disk anew.
type Renewed struct {
	Disk     id.Disk
	From, To id.Epoch
}

// Removed says that a disk is no more: whoever removed it has its owner key, until
// that goes with the disk.
type Removed struct{ Disk id.Disk }

// Granted answers Grant.
type Granted struct {
	Call    uint64
	Outcome Outcome
	Lease   datanode.LeaseID
}

// KeptAlive answers KeepAlive.
type KeptAlive struct {
	Call    uint64
	Outcome Outcome
}

// Looked answers Look. Owner is the host that the owner key names, "" without a
// key, OwnerLease and OwnerEpoch what else it says; Newest is the newest epoch that
// was claimed, by the epoch key at revision EpochAt.
type Looked struct {
	Call       uint64
	Disk       id.Disk
	Outcome    Outcome
	Owner      string
	OwnerLease datanode.LeaseID
	OwnerEpoch id.Epoch
	Newest     id.Epoch
	EpochAt    uint64
}

// Claimed, Fenced, Drained and Released answer the actions of a disk.
type (
	Claimed struct {
		Call    uint64
		Disk    id.Disk
		Outcome Outcome
	}
	Fenced struct {
		Call    uint64
		Disk    id.Disk
		Outcome Outcome
	}
	Drained struct {
		Call    uint64
		Disk    id.Disk
		Outcome Outcome
	}
	Released struct {
		Call    uint64
		Disk    id.Disk
		Outcome Outcome
	}
)

func (e Want) apply(m *Machine, now time.Duration) {
	if k := m.disks[e.Disk]; k != nil {
		k.adopted = false
		k.wanted = true // one that is draining is given away all the same, and claimed anew
		return
	}
	m.disks[e.Disk] = &disk{number: e.Disk, wanted: true, due: now}
}

func (e Unwant) apply(m *Machine, now time.Duration) {
	if k := m.disks[e.Disk]; k != nil {
		k.wanted = false
		return
	}
	// A claim in doubt may have come late: who asks for the disk sees our key.
	m.disks[e.Disk] = &disk{number: e.Disk, check: true, due: now}
}

func (e Adopt) apply(m *Machine, now time.Duration) {
	k := m.disks[e.Disk]
	if k == nil {
		k = &disk{number: e.Disk, due: now}
		m.disks[e.Disk] = k
	}
	if !k.wanted {
		k.wanted, k.adopted = true, true
	}
}

func (e Born) apply(m *Machine, now time.Duration) {
	if m.session.lease == 0 || m.session.lease != e.Lease || m.disks[e.Disk] != nil {
		Adopt{e.Disk}.apply(m, now) // its owner key goes with the lease
		return
	}
	k := &disk{number: e.Disk, wanted: true, phase: fencing, epoch: e.Epoch}
	m.disks[e.Disk] = k
	k.call = m.do(Action{Do: Fence, Disk: k.number, Epoch: k.epoch})
}

func (e Renewed) apply(m *Machine, now time.Duration) {
	if k := m.disks[e.Disk]; k != nil && k.epoch == e.From && k.phase >= fencing {
		k.epoch = e.To
	}
}

func (e Removed) apply(m *Machine, now time.Duration) { delete(m.disks, e.Disk) }

func (e Vanished) apply(m *Machine, now time.Duration) {
	if k := m.disks[e.Disk]; k != nil && k.phase == away {
		k.due = now
	}
}

func (e Granted) apply(m *Machine, now time.Duration) {
	s := &m.session
	if s.call != e.Call || s.lease != 0 {
		return // a lease that nobody waits for ends by itself
	}
	s.call = 0
	if e.Outcome != Done || s.sent+m.opts.TTL <= now {
		s.next = now + m.opts.Retry
		return
	}
	s.lease, s.until, s.next = e.Lease, s.sent+m.opts.TTL, s.sent+m.opts.TTL/3
}

func (e KeptAlive) apply(m *Machine, now time.Duration) {
	s := &m.session
	if s.call != e.Call || s.lease == 0 {
		return
	}
	s.call = 0
	switch e.Outcome {
	case Done:
		s.until = s.sent + m.opts.TTL
		m.expire(now) // an answer may be older than the lease
	case Lost:
		m.lose(now)
	default:
		s.next = now + m.opts.Retry
	}
}

// answers returns the disk if call is what is under way of it, and ends that.
func (m *Machine) answers(d id.Disk, call uint64) *disk {
	k := m.disks[d]
	if k == nil || call == 0 || k.call != call {
		return nil
	}
	k.call = 0
	return k
}

func (e Looked) apply(m *Machine, now time.Duration) {
	k := m.answers(e.Disk, e.Call)
	if k == nil {
		return
	}
	if e.Outcome == Done {
		k.check = false
	}
	switch {
	case e.Outcome != Done:
		m.leave(k, now+m.opts.Retry)
	case e.Owner == m.host && e.OwnerLease == m.session.lease:
		// A claim or a release in doubt: it is undone, not taken up.
		k.phase, k.epoch = releasing, e.OwnerEpoch
		k.call = m.do(Action{Do: Release, Disk: k.number, Epoch: k.epoch, Lease: m.session.lease})
	case !k.wanted:
		m.leave(k, now)
	case e.Owner != "" && e.Owner != m.host && k.adopted:
		k.wanted = false
		m.leave(k, now)
	case e.Owner != "":
		m.leave(k, now+m.opts.Retry)
		if now >= k.ask && e.Owner != m.host {
			k.ask = now + m.opts.TTL/2
			m.out = append(m.out, Action{Do: Ask, Disk: k.number, Host: e.Owner})
		}
	default:
		k.phase, k.epoch = claiming, e.Newest+1
		k.call = m.do(Action{Do: Claim, Disk: k.number, Epoch: k.epoch, EpochAt: e.EpochAt, Lease: m.session.lease})
	}
}

func (e Claimed) apply(m *Machine, now time.Duration) {
	k := m.answers(e.Disk, e.Call)
	if k == nil {
		return
	}
	switch e.Outcome {
	case Done:
		k.phase, k.adopted = fencing, false
		k.call = m.do(Action{Do: Fence, Disk: k.number, Epoch: k.epoch})
	case Lost:
		m.lose(now)
	case Refused:
		m.leave(k, now+m.opts.Retry)
	default: // nobody knows: it is looked at before all else
		m.doubt(k)
	}
}

// doubt looks at a disk's keys because it is not known what they are.
func (m *Machine) doubt(k *disk) {
	k.phase, k.epoch = looking, 0
	k.call = m.do(Action{Do: Look, Disk: k.number})
}

func (e Fenced) apply(m *Machine, now time.Duration) {
	k := m.answers(e.Disk, e.Call)
	if k == nil {
		return
	}
	switch {
	case e.Outcome == Done && k.wanted:
		k.phase = serving
		m.out = append(m.out, Action{Do: Serve, Disk: k.number, Epoch: k.epoch})
	case e.Outcome == Done:
		m.release(k)
	case e.Outcome == Overtaken:
		m.leave(k, now+m.opts.Retry)
	default:
		k.call = m.do(Action{Do: Fence, Disk: k.number, Epoch: k.epoch})
	}
}

func (e Drained) apply(m *Machine, now time.Duration) {
	k := m.answers(e.Disk, e.Call)
	if k == nil {
		return
	}
	if e.Outcome == Overtaken {
		m.leave(k, now+m.opts.Retry)
		return
	}
	// What could not be drained is in the log all the same: the next owner replays it.
	m.release(k)
}

// release stops a disk and then deletes its owner key: in this order, so that
// nothing is replied when another may claim.
func (m *Machine) release(k *disk) {
	m.out = append(m.out, Action{Do: Stop, Disk: k.number, Epoch: k.epoch})
	k.phase = releasing
	k.call = m.do(Action{Do: Release, Disk: k.number, Epoch: k.epoch, Lease: m.session.lease})
}

func (e Released) apply(m *Machine, now time.Duration) {
	k := m.answers(e.Disk, e.Call)
	if k == nil {
		return
	}
	switch e.Outcome {
	case Done, Refused:
		// The host that asked for it has it first.
		m.leave(k, now+2*m.opts.Retry)
	case Lost:
		m.lose(now)
	default:
		m.doubt(k)
	}
}
