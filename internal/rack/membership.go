package rack

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	// NodesMax bounds the nodes of a pool: each has layouts without it.
	NodesMax = 24
	// rowsMax bounds those that a pool ever had.
	rowsMax = 256
	// membershipVersion is the version of what the registries say of nodes. See
	// docs/format/disk.md.
	membershipVersion = 1
	nodeNameMax       = 256
	addressesMax      = 4
	addressMax        = 256
	// laterVersion is the version of a row, and of what is said of nodes, where some have
	// spindles that came later: who does not know of these would miss segments there.
	laterVersion = 2
	// laterMax bounds how often a node gets spindles.
	laterMax = 256
)

// NodeState is what a node is there for.
type NodeState string

const (
	// NodeJoining is to take part when every host and node knows it.
	NodeJoining NodeState = "joining"
	// NodeIn takes part in all.
	NodeIn NodeState = "in"
	// NodeDraining gets nothing new, and what it has is moved to others.
	NodeDraining NodeState = "draining"
	// NodeOut was drained and taken out. Its number is not used again.
	NodeOut NodeState = "out"
)

// NodeRow is a node of a pool of several.
type NodeRow struct {
	Number    id.Node    `json:"number"`
	Name      string     `json:"name"`      // of its certificate
	Addresses []string   `json:"addresses"` // as who made the pool reached it
	First     id.Spindle `json:"first"`     // the pool's number of its spindle 0
	Spindles  int        `json:"spindles"`  // that it came with
	// Later are the pool's numbers of spindles that it got since.
	Later datanode.SpindleRanges `json:"later,omitempty"`
	State NodeState              `json:"state"`
}

// Numbers are the pool's numbers of the node's spindles.
func (n *NodeRow) Numbers() datanode.SpindleRanges {
	return append(datanode.SpindleRanges{{First: n.First, Spindles: n.Spindles}}, n.Later...)
}

// Membership is what a pool of several nodes is made of. Every node has it in its own
// registry, beside its number.
type Membership struct {
	Geometry stripe.Geometry
	// Registry is the node that has the pool's registry, 0; nil: it stands beside them.
	Registry *id.Node
	Nodes    []NodeRow // by number, from 0 on, those that are out too
	// Version is that of the pool's layouts as of which this is, 0 for the first.
	Version uint64
}

type jsonMembership struct {
	Version  int       `json:"version"`
	Number   id.Node   `json:"number"`
	Geometry string    `json:"ec"`
	Registry *id.Node  `json:"registry,omitempty"`
	Layouts  uint64    `json:"layouts,omitempty"`
	Nodes    []NodeRow `json:"nodes"`
}

type jsonNode struct {
	Version int `json:"version"`
	NodeRow
}

// NewMembership numbers the nodes of a new pool, which have names, addresses and
// spindles, and chooses its stripes: those that are wanted, or the default for zero.
func NewMembership(want stripe.Geometry, nodes []NodeRow, registry *id.Node) (*Membership, error) {
	m := &Membership{Registry: registry, Nodes: slices.Clone(nodes)}
	first := 0
	var spindles []int
	for i := range m.Nodes {
		n := &m.Nodes[i]
		n.Number, n.First, n.State = id.Node(i), id.Spindle(first), NodeIn
		first += n.Spindles
		spindles = append(spindles, n.Spindles)
	}
	var err error
	if m.Geometry, err = chooseGeometry(want, spindles); err != nil {
		return nil, err
	}
	return m, m.validate()
}

// chooseGeometry returns the stripes of a pool over nodes with so many spindles each:
// those that are wanted, or for zero the widest usual ones that they allow.
func chooseGeometry(want stripe.Geometry, spindles []int) (stripe.Geometry, error) {
	fits := func(g stripe.Geometry) bool {
		room := 0
		for _, n := range spindles {
			room += min(n, g.M)
		}
		return room >= g.Width()
	}
	if want != (stripe.Geometry{}) {
		if err := want.Validate(); err != nil {
			return want, err
		}
		if !fits(want) {
			return want, fmt.Errorf("stripes of %s with at most %d fragments on a data node do not fit on %d nodes with %v spindles: give more nodes, or other stripes", want, want.M, len(spindles), spindles)
		}
		return want, nil
	}
	usual := []stripe.Geometry{{K: 8, M: 2}, {K: 4, M: 2}, {K: 2, M: 1}, {K: 1, M: 1}}
	switch {
	case len(spindles) < 3:
		usual = usual[3:]
	case len(spindles) < 5:
		usual = usual[1:]
	}
	for _, g := range usual {
		if fits(g) {
			return g, nil
		}
	}
	return want, fmt.Errorf("%d data nodes with %v spindles cannot hold a segment so that one may be lost", len(spindles), spindles)
}

// Layouts makes the pool's first stripe layouts.
func (m *Membership) Layouts() (*stripe.Layouts, error) {
	return stripe.MakeSpreadLayouts(m.Geometry, m.spindles(NodeIn), 1)
}

// spindles are those of nodes in some states, by node.
func (m *Membership) spindles(of ...NodeState) (all [][]id.Spindle) {
	for _, n := range m.Nodes {
		if !slices.Contains(of, n.State) {
			continue
		}
		all = append(all, n.Numbers().All())
	}
	return all
}

// Named returns the node of that name that is not out, nil if there is none.
func (m *Membership) Named(name string) *NodeRow {
	for i := range m.Nodes {
		if m.Nodes[i].Name == name && m.Nodes[i].State != NodeOut {
			return &m.Nodes[i]
		}
	}
	return nil
}

// left tells whether the pool had a node of that name and has none any more.
func (m *Membership) left(name string) bool {
	return m.Named(name) == nil && slices.ContainsFunc(m.Nodes, func(n NodeRow) bool { return n.Name == name })
}

// there counts the nodes that are not out.
func (m *Membership) there() (n int) {
	for i := range m.Nodes {
		if m.Nodes[i].State != NodeOut {
			n++
		}
	}
	return n
}

// name is a node's, also of one that is not known.
func (m *Membership) name(n id.Node) string {
	if int(n) < len(m.Nodes) {
		return m.Nodes[n].Name
	}
	return fmt.Sprintf("node %d", n)
}

// node returns the node with a spindle, nil if there is none.
func (m *Membership) node(s id.Spindle) *NodeRow {
	for i := range m.Nodes {
		if n := &m.Nodes[i]; n.Numbers().Has(s) {
			return n
		}
	}
	return nil
}

// names are those of all nodes that are not out, in order.
func (m *Membership) names() string {
	var all []string
	for _, n := range m.Nodes {
		if n.State != NodeOut {
			all = append(all, n.Name)
		}
	}
	return strings.Join(all, ", ")
}

// Same tells whether two say the same of all that does not change. One may know nodes
// and spindles that came later.
func (m *Membership) Same(o *Membership) bool {
	one := func(a, b NodeRow) bool {
		later := min(len(a.Later), len(b.Later))
		return a.Number == b.Number && a.Name == b.Name && a.First == b.First && a.Spindles == b.Spindles && slices.Equal(a.Later[:later], b.Later[:later])
	}
	both := min(len(m.Nodes), len(o.Nodes))
	return m.Geometry == o.Geometry && (m.Registry == nil) == (o.Registry == nil) && slices.EqualFunc(m.Nodes[:both], o.Nodes[:both], one)
}

// newer tells whether this is known to be as of later than another one.
func (m *Membership) newer(o *Membership) bool { return m.Version > o.Version }

func (m *Membership) validate() error {
	there := m.there()
	if there < 2 || there > NodesMax || len(m.Nodes) > rowsMax {
		return fmt.Errorf("%d data nodes, of %d that there ever were: a pool of several has 2 to %d", there, len(m.Nodes), NodesMax)
	}
	if err := m.Geometry.Validate(); err != nil {
		return err
	}
	if m.Registry != nil && *m.Registry != 0 {
		return fmt.Errorf("the registry is at node %d: a newer program wrote it", *m.Registry)
	}
	var all datanode.SpindleRanges
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if err := n.validate(); err != nil {
			return err
		}
		if int(n.Number) != i || n.State != NodeOut && m.Named(n.Name) != n {
			return fmt.Errorf("node %d of name %s is out of order", n.Number, n.Name)
		}
		all = append(all, n.Numbers()...)
	}
	// Every number was given out once, in order.
	slices.SortFunc(all, func(a, b datanode.SpindleRange) int { return int(a.First) - int(b.First) })
	next := 0
	for _, r := range all {
		if int(r.First) != next {
			return fmt.Errorf("spindles from %d on follow %d others", r.First, next)
		}
		next += r.Spindles
	}
	return nil
}

func (n *NodeRow) validate() error {
	switch {
	case n.Name == "" || len(n.Name) > nodeNameMax:
		return fmt.Errorf("node %d with a name of %d bytes", n.Number, len(n.Name))
	case len(n.Later) > laterMax || slices.ContainsFunc(n.Numbers(), func(r datanode.SpindleRange) bool {
		return r.Spindles < 1 || r.Spindles > 1<<16 || int(r.First)+r.Spindles > 1<<16
	}):
		return fmt.Errorf("node %d with spindles %.100v", n.Number, n.Numbers())
	case len(n.Addresses) < 1 || len(n.Addresses) > addressesMax || slices.ContainsFunc(n.Addresses, func(a string) bool { return a == "" || len(a) > addressMax }):
		return fmt.Errorf("node %d with addresses %.100q", n.Number, n.Addresses)
	case !slices.Contains([]NodeState{NodeJoining, NodeIn, NodeDraining, NodeOut}, n.State):
		return fmt.Errorf("node %d in state %.20q: a newer program wrote it", n.Number, n.State)
	}
	return nil
}

// Marshal returns what a node has under datanode.MemberKey.
func (m *Membership) Marshal(number id.Node) []byte {
	version := membershipVersion
	for i := range m.Nodes {
		version = max(version, m.Nodes[i].version())
	}
	return mustMarshal(jsonMembership{version, number, m.Geometry.String(), m.Registry, m.Version, m.Nodes})
}

// ParseMember reads what a node has under datanode.MemberKey: its number, and the pool's
// nodes as they were when it was told last.
func ParseMember(b []byte) (id.Node, *Membership, error) {
	var j jsonMembership
	err := json.Unmarshal(b, &j)
	m := &Membership{Registry: j.Registry, Nodes: j.Nodes, Version: j.Layouts}
	switch {
	case err != nil:
	case j.Version < membershipVersion || j.Version > laterVersion:
		err = fmt.Errorf("version %d: a newer program wrote it", j.Version)
	default:
		if m.Geometry, err = stripe.ParseGeometry(j.Geometry); err == nil {
			err = m.validate()
		}
		if err == nil && int(j.Number) >= len(m.Nodes) {
			err = fmt.Errorf("node %d of %d", j.Number, len(m.Nodes))
		}
	}
	if err != nil {
		return 0, nil, fmt.Errorf("what a data node says of its pool's nodes: %w", err)
	}
	return j.Number, m, nil
}

// nodePrefix begins the keys of nodes' rows in the pool's registry.
const nodePrefix = "node/"

func nodeKey(n id.Node) string { return fmt.Sprintf("%s%04d", nodePrefix, n) }

// Rows are the rows of a new pool's registry.
func (m *Membership) Rows() []datanode.Put {
	var puts []datanode.Put
	for _, n := range m.Nodes {
		puts = append(puts, datanode.Put{Key: nodeKey(n.Number), Value: n.marshal()})
	}
	return puts
}

// version is the least that says all of the row.
func (n *NodeRow) version() int {
	if len(n.Later) > 0 {
		return laterVersion
	}
	return membershipVersion
}

func (n *NodeRow) marshal() []byte { return mustMarshal(jsonNode{n.version(), *n}) }

// next is the number of the next spindle that comes to the pool.
func (m *Membership) next() (n int) {
	for i := range m.Nodes {
		n += m.Nodes[i].Numbers().Count()
	}
	return n
}

// ParseNode reads a node's row.
func ParseNode(b []byte) (NodeRow, error) {
	var j jsonNode
	err := json.Unmarshal(b, &j)
	if err == nil && (j.Version < membershipVersion || j.Version > laterVersion) {
		err = fmt.Errorf("version %d: a newer program wrote it", j.Version)
	}
	if err == nil {
		err = j.validate()
	}
	if err != nil {
		return NodeRow{}, fmt.Errorf("row of a data node: %w", err)
	}
	return j.NodeRow, nil
}

func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // numbers and strings
	}
	return b
}
