package owner

import (
	"cmp"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// Options of a machine. The zero value is right.
type Options struct {
	// TTL is the session's; 0: 10 s. The session is kept alive at a third of it.
	TTL time.Duration
	// Retry is how long to wait before what failed is tried again; 0: TTL/20.
	Retry time.Duration
}

const ttlDefault = 10 * time.Second

// Machine is what one host knows of its session and of the disks it wants. Times
// are of the host's monotonic clock.
type Machine struct {
	host    string
	opts    Options
	session session
	disks   map[id.Disk]*disk
	calls   uint64 // number of the last action that is answered
	out     []Action
}

// session is the host's lease.
type session struct {
	lease datanode.LeaseID // 0: none
	until time.Duration    // it is valid before
	call  uint64           // the grant or keep-alive under way, 0: none
	sent  time.Duration    // when that was sent
	next  time.Duration    // when the next is due
}

// phase is where a disk is on its way to being served and back.
type phase uint8

const (
	away      phase = iota // not ours; looked at when due
	looking                // its keys are being read
	claiming               // the claim is under way
	fencing                // ours; data nodes are being fenced and made equal
	serving                // ours, and served
	draining               // ours; what is under way is being finished, to give it away
	releasing              // the owner key is being deleted
)

// disk is a disk that this host wants, or has and gives away.
type disk struct {
	number id.Disk
	wanted bool
	// adopted: it is wanted only until another host has it. What was served when the
	// session was lost becomes so, or hosts would take from each other what they had.
	adopted bool
	phase   phase
	epoch   id.Epoch      // claimed or being claimed
	call    uint64        // what is under way, 0: nothing
	due     time.Duration // when to look again
	ask     time.Duration // when to ask the owner to give it away
	check   bool          // not known to be ours, and somebody says it is: look
}

// New makes a machine of a host without session and disks.
func New(host string, opts Options) *Machine {
	if opts.TTL == 0 {
		opts.TTL = ttlDefault
	}
	if opts.Retry == 0 {
		opts.Retry = opts.TTL / 20
	}
	return &Machine{host: host, opts: opts, disks: make(map[id.Disk]*disk)}
}

// Valid tells whether the session is valid.
func (m *Machine) Valid(now time.Duration) bool { return m.session.lease != 0 && now < m.session.until }

// Lease returns the session's lease, 0 for none.
func (m *Machine) Lease() datanode.LeaseID { return m.session.lease }

// MayReply tells whether a reply of a disk under an epoch may leave (I6). What is
// being drained still replies.
func (m *Machine) MayReply(d id.Disk, epoch id.Epoch, now time.Duration) bool {
	k := m.disks[d]
	return k != nil && (k.phase == serving || k.phase == draining) && k.epoch == epoch && m.Valid(now)
}

// Until is how long MayReply holds for what it holds for now, if nothing happens:
// a reply path reads it once and compares its clock.
func (m *Machine) Until() time.Duration { return m.session.until }

// Step takes an event, nil for time alone, and returns what is to be done, in this
// order. It must be called again by the time that Wake says.
func (m *Machine) Step(now time.Duration, e Event) []Action {
	m.out = nil
	// Time goes first: what has ended has ended before the event.
	m.expire(now)
	if e != nil {
		e.apply(m, now)
	}
	m.renew(now)
	for _, k := range m.inOrder() {
		m.advance(k, now)
	}
	return m.out
}

// Wake is when Step has something to do without an event.
func (m *Machine) Wake() time.Duration {
	wake := m.session.next
	if m.session.lease == 0 {
		return wake
	}
	wake = min(wake, m.session.until)
	for _, k := range m.disks {
		if k.phase == away {
			wake = min(wake, k.due)
		}
	}
	return wake
}

func (m *Machine) inOrder() []*disk {
	all := make([]*disk, 0, len(m.disks))
	for _, k := range m.disks {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *disk) int { return cmp.Compare(a.number, b.number) })
	return all
}

// do adds an action that is answered, and returns its number.
func (m *Machine) do(a Action) uint64 {
	m.calls++
	a.Call = m.calls
	m.out = append(m.out, a)
	return a.Call
}

// expire ends a session whose time is over.
func (m *Machine) expire(now time.Duration) {
	if m.session.lease != 0 && now >= m.session.until {
		m.lose(now)
	}
}

// lose ends the session: nothing under it is ours any more, and no answer to what
// was asked under it counts. The lease is not revoked: it ends by itself, and who
// waits for it waits no longer than for a host that died.
func (m *Machine) lose(now time.Duration) {
	m.session = session{next: now}
	for _, k := range m.inOrder() {
		k.adopted = k.adopted || k.phase >= fencing
		m.leave(k, now)
	}
}

// leave stops a disk and forgets what was under way.
func (m *Machine) leave(k *disk, due time.Duration) {
	if k.phase >= fencing && k.phase <= draining {
		m.out = append(m.out, Action{Do: Stop, Disk: k.number, Epoch: k.epoch})
	}
	if !k.wanted && !k.check {
		delete(m.disks, k.number)
	}
	k.phase, k.call, k.epoch, k.due = away, 0, 0, due
}

// renew asks for a session, or for it to last.
func (m *Machine) renew(now time.Duration) {
	s := &m.session
	if now < s.next {
		return
	}
	// One that is not answered by then is given up: another is sent beside it.
	s.sent, s.next = now, now+m.opts.TTL/3
	if s.lease == 0 {
		s.call = m.do(Action{Do: Grant, TTL: m.opts.TTL})
		return
	}
	s.call = m.do(Action{Do: KeepAlive, Lease: s.lease})
}

// advance does what a disk's phase asks for when nothing is under way.
func (m *Machine) advance(k *disk, now time.Duration) {
	if k.call != 0 || !m.Valid(now) {
		return
	}
	switch {
	case k.phase == away && !k.wanted && !k.check:
		delete(m.disks, k.number)
	case k.phase == away && now >= k.due:
		k.phase, k.call = looking, m.do(Action{Do: Look, Disk: k.number})
	case k.phase == serving && !k.wanted:
		k.phase, k.call = draining, m.do(Action{Do: Drain, Disk: k.number, Epoch: k.epoch})
	}
}
