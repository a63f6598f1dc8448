package bench

import (
	"time"

	"plinth/internal/sim"
)

// A model of a rack: hosts that write 4 KiB at random, new data all the time, over data
// nodes with logs and spindles, event by event in virtual time. What each step costs is
// measured elsewhere (docs/design/scale.md); the model adds what waits for what.

// rackConfig is a rack. Rates are bytes per second, all times are of one thing.
type rackConfig struct {
	Hosts, Nodes   int
	WritesPerHost  float64 // a second
	Seed           uint64
	Time           time.Duration // that is simulated
	NodeCores      int
	NodeNet        float64 // each way
	NodeSpindles   int
	SpindleRate    float64
	SpindleSeek    time.Duration // before each of a fragment's two syncs
	LogRate        float64
	LogSync        time.Duration
	LogBytes       int64
	HostBuffer     int64 // acknowledged and not destaged
	Interval       time.Duration
	Wire           time.Duration // one way
	AppendCPU      time.Duration // a record, at each of the log's nodes
	LookupCPU      time.Duration // a chunk, at every node
	StoreCPU       time.Duration // a chunk, over all nodes of its stripe: fragments, publication, lists
	DeadNode       time.Duration // when a node dies; 0: none
	CallTime       time.Duration // until it is taken for dead
	RegistryCommit time.Duration // commits of all hosts that wait are made together
	HostDisks      int
}

const (
	modelRecord   = 2400 // bytes in the log
	modelSealed   = 2320
	modelRecords  = 8 // of an append
	modelSegment  = 3500
	modelK        = 8
	modelM        = 2
	modelReplicas = 3
	modelGroups   = 8  // of a host's disks: each has its logs' nodes
	modelInFlight = 64 // appends of a group; more wait at the host
	modelStripes  = 2  // that a round writes at once
	modelDiskTxn  = 60
	modelUnsynced = 128 << 20 // two files of the log; then appends wait for its device
)

func rackDefault() rackConfig {
	return rackConfig{
		Hosts: 128, Nodes: 10, WritesPerHost: 5000, Seed: 1, Time: 12 * time.Second,
		NodeCores: 16, NodeNet: 25e9 / 8, NodeSpindles: 12, SpindleRate: 200e6, SpindleSeek: 8 * time.Millisecond,
		LogRate: 2e9, LogSync: 500 * time.Microsecond, LogBytes: 16 << 30, HostBuffer: 1 << 30, Interval: 2 * time.Second, Wire: 20 * time.Microsecond,
		AppendCPU: 3500 * time.Nanosecond, LookupCPU: 400 * time.Nanosecond, StoreCPU: 6 * time.Microsecond,
		CallTime: time.Second, RegistryCommit: 5 * time.Millisecond, HostDisks: 78,
	}
}

// moment is virtual time.
type moment = time.Duration

type modelNode struct {
	in, cpu  server
	device   server // of the log
	syncs    batcher
	spindles []batcher
	logBytes int64
	logMost  int64
	blocked  []func() // appends that wait for room
	dead     bool
}

// modelHost has one round at a time, of all its disks.
type modelHost struct {
	groups []*modelGroup
	undone int64 // bytes that are not destaged
	round  bool
	last   moment // a round's beginning
}

// modelGroup is a share of a host's disks.
type modelGroup struct {
	host     *modelHost
	logs     []*modelNode
	left     []bool // logs[i] is out of the set
	waiting  []moment
	inFlight int
	pending  int // records acknowledged that no round has
	leaving  bool
	hung     []func() // appends that wait for a node that is dead
}

type rackModel struct {
	*sim.Queue
	rackConfig
	nodes     []*modelNode
	hosts     []*modelHost
	registry  batcher
	latencies []moment
	longest   moment
	acked     int64
}

func newRackModel(c rackConfig) *rackModel {
	m := &rackModel{rackConfig: c, Queue: sim.NewQueue(c.Seed)}
	m.registry = batcher{q: m.Queue, most: 1 << 10, cost: func(n int, _ int64) moment { return c.RegistryCommit + moment(n)*40*time.Microsecond }}
	for range c.Nodes {
		n := &modelNode{in: servers(1), cpu: servers(c.NodeCores), device: servers(1)}
		n.syncs = batcher{q: m.Queue, most: 1 << 30, cost: func(int, int64) moment { return max(0, n.device.free[0]-m.Now) + c.LogSync }}
		for range c.NodeSpindles {
			n.spindles = append(n.spindles, batcher{q: m.Queue, most: 16, cost: func(_ int, bytes int64) moment { return 2*c.SpindleSeek + over(bytes, c.SpindleRate) }})
		}
		m.nodes = append(m.nodes, n)
	}
	for range c.Hosts {
		h := &modelHost{last: moment(m.Rand.Int64N(int64(c.Interval)))}
		m.hosts = append(m.hosts, h)
		for range modelGroups {
			g := &modelGroup{host: h, left: make([]bool, modelReplicas)}
			for _, i := range m.Rand.Perm(c.Nodes)[:modelReplicas] {
				g.logs = append(g.logs, m.nodes[i])
			}
			h.groups = append(h.groups, g)
			m.arrive(g)
		}
	}
	if c.DeadNode > 0 {
		m.After(c.DeadNode, func() { m.nodes[0].dead = true })
	}
	return m
}

func over(bytes int64, rate float64) moment {
	return moment(float64(bytes) / rate * float64(time.Second))
}

func (m *rackModel) at(t moment, do func()) { m.After(t-m.Now, do) }

// run goes on until the end of the time.
func (m *rackModel) run() {
	for m.Now <= m.Time && m.Step() {
	}
}

// arrive has a group's next append come, and the one after that.
func (m *rackModel) arrive(g *modelGroup) {
	each := float64(modelRecords) * modelGroups / m.WritesPerHost * float64(time.Second)
	m.After(moment(m.Rand.ExpFloat64()*each), func() {
		if len(g.waiting) < 1<<14 { // or it has been too much for long
			g.waiting = append(g.waiting, m.Now)
		}
		m.send(g)
		m.arrive(g)
	})
}

// send appends what waits, as far as there is room.
func (m *rackModel) send(g *modelGroup) {
	for len(g.waiting) > 0 && g.inFlight < modelInFlight && g.host.undone < m.HostBuffer {
		came := g.waiting[0]
		g.waiting = g.waiting[1:]
		g.inFlight++
		g.host.undone += modelRecords * modelRecord
		m.append(g, came)
	}
	m.mayBegin(g.host)
}

// append is one of some records, to all nodes of the log.
func (m *rackModel) append(g *modelGroup, came moment) {
	missing := len(g.logs)
	done := func() {
		if missing--; missing == 0 {
			m.acknowledge(g, came)
		}
	}
	for i, n := range g.logs {
		m.replicate(g, i, n, done)
	}
}

func (m *rackModel) replicate(g *modelGroup, i int, n *modelNode, done func()) {
	switch {
	case g.left[i]:
		m.After(0, done)
		return
	case n.dead:
		g.hung = append(g.hung, done)
		m.leave(g)
		return
	case n.logBytes+modelRecords*modelRecord > m.LogBytes*95/100:
		n.blocked = append(n.blocked, func() { m.replicate(g, i, n, done) })
		return
	}
	n.logBytes += modelRecords * modelRecord
	n.logMost = max(n.logMost, n.logBytes)
	m.After(m.Wire, func() {
		t := n.in.serve(m.Now, over(modelRecords*modelRecord, m.NodeNet))
		t = n.cpu.serve(t, modelRecords*m.AppendCPU)
		written := n.device.serve(t, over(modelRecords*modelRecord, m.LogRate))
		t = max(t, written-over(modelUnsynced, m.LogRate))
		m.at(t+m.Wire, done)
	})
}

// leave takes a dead node out of a group's log sets, when that has been noticed.
func (m *rackModel) leave(g *modelGroup) {
	if g.leaving {
		return
	}
	g.leaving = true
	m.After(m.CallTime, func() {
		disks := (m.HostDisks + modelGroups - 1) / modelGroups
		left := (disks + modelDiskTxn - 1) / modelDiskTxn
		for range left {
			m.registry.add(0, func() {
				if left--; left > 0 {
					return
				}
				for i, n := range g.logs {
					g.left[i] = g.left[i] || n.dead
				}
				hung := g.hung
				g.hung = nil
				for _, done := range hung {
					done()
				}
			})
		}
	})
}

func (m *rackModel) acknowledge(g *modelGroup, came moment) {
	took := m.Now - came
	if m.Now > m.Time/3 { // in its stride
		m.latencies = append(m.latencies, took)
		m.longest = max(m.longest, took)
		m.acked += modelRecords
	}
	g.inFlight--
	g.pending += modelRecords
	m.send(g)
}

// mayBegin begins a round when the last one was long enough ago, or half of the buffer is
// full. What it takes is made stable first.
func (m *rackModel) mayBegin(h *modelHost) {
	if h.round || m.Now-h.last < m.Interval && h.undone < m.HostBuffer/2 {
		return
	}
	h.round, h.last = true, m.Now
	took := make([]int, len(h.groups))
	n, missing := 0, 1
	stable := func() {
		if missing--; missing == 0 {
			m.lookUp(h, took, n)
		}
	}
	for k, g := range h.groups {
		took[k], g.pending = g.pending, 0
		n += took[k]
		for i, node := range g.logs {
			if took[k] > 0 && !g.left[i] && !node.dead {
				missing++
				node.syncs.add(0, stable)
			}
		}
	}
	stable()
}

// lookUp asks every node for the fingerprints of n chunks.
func (m *rackModel) lookUp(h *modelHost, took []int, n int) {
	missing := 0
	for _, node := range m.nodes {
		if node.dead {
			continue
		}
		missing++
		m.After(m.Wire, func() {
			t := node.in.serve(m.Now, over(int64(n)*32, m.NodeNet))
			m.at(node.cpu.serve(t, moment(n)*m.LookupCPU)+m.Wire, func() {
				if missing--; missing == 0 {
					m.store(h, took, n)
				}
			})
		})
	}
}

// store writes the stripes of a round, of which left chunks are to be begun, and then ends it.
func (m *rackModel) store(h *modelHost, took []int, left int) {
	underWay := 0
	var next func()
	next = func() {
		for left > 0 && underWay < modelStripes {
			chunks := min(left, modelSegment)
			left -= chunks
			underWay++
			m.stripe(chunks, func() { underWay--; next() })
		}
		if left == 0 && underWay == 0 {
			left = -1
			m.end(h, took)
		}
	}
	next()
}

// stripe writes k+m fragments, one to a node where there are enough.
func (m *rackModel) stripe(chunks int, done func()) {
	bytes := int64(chunks) * modelSealed / modelK
	missing := modelK + modelM
	order := m.Rand.Perm(len(m.nodes))
	for i := range missing {
		node := m.nodes[order[i%len(order)]]
		if node.dead {
			node = m.nodes[order[(i+1)%len(order)]]
		}
		spindle := &node.spindles[m.Rand.IntN(len(node.spindles))]
		m.After(m.Wire, func() {
			t := node.in.serve(m.Now, over(bytes, m.NodeNet))
			t = node.cpu.serve(t, moment(chunks)*m.StoreCPU/(modelK+modelM))
			m.at(t, func() {
				spindle.add(bytes, func() {
					if missing--; missing == 0 {
						done()
					}
				})
			})
		})
	}
}

// end gives up what a round has destaged.
func (m *rackModel) end(h *modelHost, took []int) {
	h.round = false
	for k, g := range h.groups {
		h.undone -= int64(took[k]) * modelRecord
		for i, node := range g.logs {
			if g.left[i] {
				continue
			}
			node.logBytes -= int64(took[k]) * modelRecord
			blocked := node.blocked
			node.blocked = nil
			for _, again := range blocked {
				again()
			}
		}
	}
	for _, g := range h.groups { // any may have waited for room
		m.send(g)
	}
}
