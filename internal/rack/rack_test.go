package rack_test

import (
	"testing"

	"plinth/datanode"
	"plinth/datanode/datanodetest"
	"plinth/internal/rack"
	"plinth/internal/rack/racktest"
	"plinth/internal/stripe"
)

// A rack does what a node does. Its members restart while it goes on.
func conform(t *testing.T, nodes, spindles int, g stripe.Geometry, groups ...string) {
	datanodetest.Run(t, func(t *testing.T) (datanode.Node, func() datanode.Node) {
		s := racktest.Open(t, [16]byte{1}, g, nodes, spindles)
		r := s.Rack(rack.Options{})
		return r, func() datanode.Node {
			for n := range nodes {
				s.Stop(n)
				s.Start(n)
			}
			return r
		}
	}, groups...)
}

// The rest of one member's is its own.
func TestSimConformanceOfOne(t *testing.T) {
	conform(t, 1, 4, stripe.Geometry{K: 2, M: 1}, "log", "fence", "bounds")
}

func TestSimConformanceOfThree(t *testing.T) {
	conform(t, 3, 4, stripe.Geometry{K: 4, M: 2}, "log", "fence", "registry", "bounds")
}
