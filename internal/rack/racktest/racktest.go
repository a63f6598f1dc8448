// Package racktest opens several data nodes in memory for tests of racks.
package racktest

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/id"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

// Shelves are data nodes in memory, each behind a switch.
type Shelves struct {
	*testing.T
	Layouts  *stripe.Layouts
	Switches []*datanode.Switch
	nodes    []*shelf.Shelf
	opts     []shelf.Options
	wrap     []func(datanode.Replica) datanode.Replica
	spindles int
	rows     bool // see Told
}

// Open makes and opens data nodes with so many spindles each, for stripes of g.
func Open(t *testing.T, pool [16]byte, g stripe.Geometry, nodes, spindles int) *Shelves {
	return OpenOn(t, pool, g, nodes, spindles, func(int) vfs.FS { return vfs.NewMem() })
}

// OpenOn is Open on file systems of the caller's.
func OpenOn(t *testing.T, pool [16]byte, g stripe.Geometry, nodes, spindles int, fs func(n int) vfs.FS) *Shelves {
	s := &Shelves{T: t, spindles: spindles}
	var err error
	if nodes == 1 {
		var all []id.Spindle
		for i := range spindles {
			all = append(all, id.Spindle(i))
		}
		s.Layouts, err = stripe.MakeLayouts(g, all, 1)
	} else {
		var of [][]id.Spindle
		for n := range nodes {
			of = append(of, nil)
			for i := range spindles {
				of[n] = append(of[n], id.Spindle(n*spindles+i))
			}
		}
		s.Layouts, err = stripe.MakeSpreadLayouts(g, of, 1)
	}
	s.ok(err)
	for n := range nodes {
		s.Make(shelf.Options{
			PoolID: pool, FS: fs(n), Spindles: spindles, LogBytes: 16 << 20, SpindleBytes: 64 << 20, Width: g.Width(), IndexCacheBytes: 1 << 20,
			Logger: slog.New(slog.DiscardHandler),
			Keeps: func(seg id.Segment, _ uint8, _ id.Spindle) bool {
				return int(seg.Layout()) < len(s.Layouts.Lists) && int(s.Layouts.Lists[seg.Layout()][0])/spindles == n
			},
		})
	}
	t.Cleanup(func() {
		for n := range s.nodes {
			s.Stop(n)
		}
	})
	return s
}

// Make makes and opens one more data node and returns its place among them.
func (s *Shelves) Make(o shelf.Options) int {
	s.Helper()
	n := len(s.nodes)
	o.Share = func(ctx context.Context, own datanode.RegistryNode) (shelf.Share, error) {
		part, err := rack.ReadPart(ctx, own)
		if err != nil {
			return shelf.Share{}, err
		}
		return shelf.Share{Keeps: part.Keeps, Width: part.Layouts.Geometry.Width(), LayoutVersion: part.Layouts.Version}, nil
	}
	s.ok(o.FS.MkdirAll("node", 0o700))
	s.ok(shelf.Create("node", o))
	s.opts = append(s.opts, o)
	s.nodes = append(s.nodes, nil)
	s.Switches = append(s.Switches, datanode.NewSwitch(nil))
	s.wrap = append(s.wrap, func(n datanode.Replica) datanode.Replica { return n })
	s.Start(n)
	return n
}

// Stranger makes and opens a data node that is none of the pool's yet, with so many
// spindles.
func (s *Shelves) Stranger(spindles int) int {
	s.Helper()
	o := s.opts[0]
	o.FS, o.Spindles, o.Keeps, o.Width = vfs.NewMem(), spindles, nil, 0
	return s.Make(o)
}

// Told has the nodes know that they are those of a pool, and returns the rows of its
// registry.
func (s *Shelves) Told() []datanode.Put {
	s.Helper()
	var rows []rack.NodeRow
	for n := range s.nodes {
		rows = append(rows, rack.NodeRow{Name: Name(n), Addresses: []string{address(n)}, Spindles: s.spindles})
	}
	m, err := rack.NewMembership(s.Layouts.Geometry, rows, new(id.Node))
	s.ok(err)
	for n := range s.nodes {
		s.ok(m.Tell(s.Context(), id.Node(n), s.Switches[n], s.Layouts))
	}
	s.rows = true
	return m.Rows()
}

// Name is the name of the node in a place.
func Name(n int) string { return fmt.Sprint("dn", n) }

func address(n int) string { return fmt.Sprint("place:", n) }

// at is the node at an address.
func (s *Shelves) at(address string) (n int) {
	s.Helper()
	_, err := fmt.Sscanf(address, "place:%d", &n)
	s.ok(err)
	return n
}

// Address is where the node in a place is met.
func (s *Shelves) Address(n int) string { return address(n) }

// Stored is how much the node in a place has on its spindles, and how many segments in its
// index.
func (s *Shelves) Stored(n int) (bytes, segments int64) {
	s.Helper()
	st, err := s.nodes[n].Status(s.Context())
	s.ok(err)
	for _, sp := range st.Spindles {
		bytes += sp.AllocatedBytes
	}
	return bytes, st.Index.Segments
}

func (s *Shelves) meet(ctx context.Context, name string, addresses []string) (*rack.Met, error) {
	n := s.at(addresses[0])
	node := s.Switches[n]
	st, err := node.Status(ctx)
	if err != nil {
		return nil, err
	}
	if name != "" && name != Name(n) {
		return nil, fmt.Errorf("it is data node %s", Name(n))
	}
	met := &rack.Met{Node: node, Spindles: len(st.Spindles), Segments: st.Index.Segments, Close: func() {}}
	met.Name, met.Address, met.Reached, met.Rejoins = Name(n), addresses[0], true, !st.Index.Complete
	met.Number, met.Member, err = rack.ReadMember(ctx, node)
	return met, err
}

func (s *Shelves) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// Start opens a node that is stopped and puts it in place.
func (s *Shelves) Start(n int) {
	s.Helper()
	if s.nodes[n] != nil {
		s.Fatal(fmt.Sprint("node ", n, " is open"))
	}
	node, err := shelf.Open(s.Context(), "node", s.opts[n])
	s.ok(err)
	if !s.rows {
		node.SetLayoutVersion(s.Layouts.Version)
	}
	s.nodes[n] = node
	s.Back(n)
}

// Stop takes a node away and closes it.
func (s *Shelves) Stop(n int) {
	s.Helper()
	s.Away(n)
	if node := s.nodes[n]; node != nil {
		s.nodes[n] = nil
		s.ok(node.Close())
	}
}

// Crash takes a node away whose file system has ended. Start begins it again on what that
// left.
func (s *Shelves) Crash(n int, left vfs.FS) {
	s.Helper()
	s.Away(n)
	node := s.nodes[n]
	s.nodes[n] = nil
	_ = node.Close() // it fails, as all that it does
	s.opts[n].FS = left
}

// Renew makes a node that is stopped anew, on empty drives, and starts it: under its number,
// and with an index that is not complete.
func (s *Shelves) Renew(n int) {
	s.Helper()
	s.opts[n].FS = vfs.NewMem()
	s.ok(s.opts[n].FS.MkdirAll("node", 0o700))
	s.opts[n].Rejoin = true
	s.ok(shelf.Create("node", s.opts[n]))
	s.Start(n)
}

// Replace puts a new drive in the place of a spindle of a node that is stopped, and starts it.
func (s *Shelves) Replace(n, spindle int) {
	s.Helper()
	s.Mount(n, spindle)
	s.ok(shelf.ReplaceSpindle("node", spindle, s.opts[n]))
	s.Start(n)
}

// Mount mounts an empty drive over a spindle's.
func (s *Shelves) Mount(n, spindle int) {
	s.Helper()
	fs := s.opts[n].FS
	path := fs.PathJoin("node", fmt.Sprintf("spindle-%02d", spindle))
	s.ok(fs.RemoveAll(path))
	s.ok(fs.MkdirAll(path, 0o700))
}

// Away takes a node away, which goes on, and Back puts it in place again.
func (s *Shelves) Away(n int) { s.Switches[n].Set(nil) }

// Back undoes Away.
func (s *Shelves) Back(n int) { s.Switches[n].Set(s.wrap[n](s.nodes[n])) }

// Wrap puts something between a node and who calls it.
func (s *Shelves) Wrap(n int, wrap func(datanode.Replica) datanode.Replica) {
	s.wrap[n] = wrap
	s.Back(n)
}

// Rack joins them, for one host. Who is away says so at once, and nobody else is
// taken for away because the machine is busy.
func (s *Shelves) Rack(o rack.Options) *rack.Rack {
	return s.RackBy(o, func(n int) datanode.Replica { return s.Switches[n] })
}

// RackBy is Rack of a host that has ways of its own to the nodes.
func (s *Shelves) RackBy(o rack.Options, way func(n int) datanode.Replica) *rack.Rack {
	s.Helper()
	r, err := s.TryRackBy(o, way)
	s.ok(err)
	return r
}

// TryRackBy is RackBy where the node with the registry may be away.
func (s *Shelves) TryRackBy(o rack.Options, way func(n int) datanode.Replica) (*rack.Rack, error) {
	s.Helper()
	join := func(_ *rack.Membership, _ *stripe.Layouts, row rack.NodeRow) rack.Member {
		return rack.Member{
			Number: row.Number, Name: row.Name, Node: way(s.at(row.Addresses[0])), Spindles: row.Numbers(), State: row.State,
		}
	}
	o.Layouts, o.Join, o.Meet = s.Layouts, join, s.meet
	var members []rack.Member
	if s.rows {
		rows, layouts, err := rack.ReadRoll(s.Context(), way(0))
		if err != nil {
			return nil, err
		}
		o.Layouts = layouts
		for _, row := range rows {
			if row.State != rack.NodeOut {
				members = append(members, join(nil, nil, row))
			}
		}
	} else {
		for n := range s.nodes {
			members = append(members, rack.Member{
				Number: id.Node(n), Node: way(n), Spindles: datanode.SpindleRanges{{First: id.Spindle(n * s.spindles), Spindles: s.spindles}},
			})
		}
	}
	if o.CallTime == 0 {
		o.CallTime, o.FragmentTime = 2*time.Minute, 2*time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := rack.New(members, o)
	if err == nil {
		s.Cleanup(func() { s.ok(r.Close()) })
	}
	return r, err
}
