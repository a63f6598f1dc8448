package stripe

import (
	"sync"

	"github.com/klauspost/reedsolomon"
)

// coders caches a coder per Geometry: at most a few hundred geometries are
// valid, and a pool has one.
var coders sync.Map

// inversionsMax bounds the decoding matrices that a code keeps, one per set of k
// fragments it has decoded from. A geometry with more sets keeps none: inverting
// takes microseconds.
const inversionsMax = 4096

// coder returns the Reed-Solomon code of a valid geometry. Its matrix is part
// of the format: the library's default. It works on the caller's goroutine
// alone, because the host bounds the cores that data services may use.
func (g Geometry) coder() reedsolomon.Encoder {
	if c, ok := coders.Load(g); ok {
		return c.(reedsolomon.Encoder)
	}
	c, err := reedsolomon.New(g.K, g.M, reedsolomon.WithMaxGoroutines(1),
		reedsolomon.WithInversionCache(binomial(g.Width(), g.K, inversionsMax) <= inversionsMax))
	if err != nil {
		panic(err) // every valid geometry has a code
	}
	coders.Store(g, c)
	return c
}
