// Package racktest opens several data nodes in memory for tests of racks.
package racktest

import (
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
}

// Open makes and opens data nodes with so many spindles each, for stripes of g.
func Open(t *testing.T, pool [16]byte, g stripe.Geometry, nodes, spindles int) *Shelves {
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
		o := shelf.Options{
			PoolID: pool, FS: vfs.NewMem(), Spindles: spindles, LogBytes: 16 << 20, SpindleBytes: 64 << 20, Width: g.Width(), IndexCacheBytes: 1 << 20,
			Logger: slog.New(slog.DiscardHandler),
			Keeps: func(seg id.Segment) bool {
				return int(seg.Layout()) < len(s.Layouts.Lists) && int(s.Layouts.Lists[seg.Layout()][0])/spindles == n
			},
		}
		s.ok(o.FS.MkdirAll("node", 0o700))
		s.ok(shelf.Create("node", o))
		s.opts = append(s.opts, o)
		s.nodes = append(s.nodes, nil)
		s.Switches = append(s.Switches, datanode.NewSwitch(nil))
		s.wrap = append(s.wrap, func(n datanode.Replica) datanode.Replica { return n })
		s.Start(n)
	}
	t.Cleanup(func() {
		for n := range s.nodes {
			s.Stop(n)
		}
	})
	return s
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
	node.SetLayoutVersion(s.Layouts.Version)
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
	s.Helper()
	var members []rack.Member
	for n := range s.nodes {
		members = append(members, rack.Member{
			Number: id.Node(n), Node: s.Switches[n], First: id.Spindle(n * s.spindles), Spindles: s.spindles,
		})
	}
	o.Layouts = s.Layouts
	if o.CallTime == 0 {
		o.CallTime, o.FragmentTime = 2*time.Minute, 2*time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := rack.New(members, o)
	s.ok(err)
	s.Cleanup(func() { s.ok(r.Close()) })
	return r
}
