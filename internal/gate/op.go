package gate

import "time"

// Kind is what an Op does.
type Kind uint8

const (
	// Read and Write move bytes, and count against limits.
	Read Kind = iota
	Write
	// Clear gives up or zeroes a range: it counts as a write of no bytes.
	Clear
	// Other neither reads nor changes data, like a flush: no limit counts it.
	Other
)

// Op is what a request asks for.
type Op struct {
	Kind  Kind
	Bytes int64 // that are moved
}

// What operations cost where costs were measured (docs/design/gate.md), all that
// they cause included. What matters is how they compare: the scale does the rest.
const (
	readCost     = 12 * time.Microsecond
	writeCost    = 24 * time.Microsecond
	otherCost    = 10 * time.Microsecond
	readKiBCost  = 600 * time.Nanosecond
	writeKiBCost = 4 * time.Microsecond
)

// cost returns an estimate of the CPU time.
func (o Op) cost() float64 {
	kib := float64(o.Bytes) / 1024
	switch o.Kind {
	case Read:
		return float64(readCost) + kib*float64(readKiBCost)
	case Write:
		return float64(writeCost) + kib*float64(writeKiBCost)
	}
	return float64(otherCost)
}
