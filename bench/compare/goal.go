package compare

import "fmt"

// goal is a ratio that plinth is to reach: of plinth's figure to another's, in
// one row.
type goal struct {
	row, server, to string
	what            string
	of              Measure
	bound           float64
	// most is a goal that is an upper bound.
	most bool
}

func p50(s *Sample) float64 { return s.P50 }

// goals are those that a run can tell.
var goals = []goal{
	{row: "read-32", server: plinth, to: "nbdkit-file", what: "IOPS", of: iops, bound: 1},
	{row: "read-32", server: plinth, to: "qemu-qcow2", what: "IOPS", of: iops, bound: 1.5},
	{row: "read-32", server: plinth, to: "qemu-luks", what: "IOPS", of: iops, bound: 3},
	{row: "read-32", server: flash, to: "nbdkit-file", what: "IOPS", of: iops, bound: 0.7},
	{row: "read-32", server: plinth, to: "nbdkit-file", what: "CPU", of: cpu, bound: 1, most: true},
	{row: "read-1", server: plinth, to: "nbdkit-file", what: "p50", of: p50, bound: 1, most: true},
	{row: "write-32", server: plinth, to: "qemu-luks", what: "IOPS", of: iops, bound: 2},
	{row: "write-32", server: plinth, to: "qemu-qcow2", what: "IOPS", of: iops, bound: 1},
	{row: "write-32", server: plinth, to: "qemu-luks", what: "CPU", of: cpu, bound: 0.7, most: true},
	{row: "durable-32", server: plinth, to: "qemu-qcow2", what: "IOPS", of: iops, bound: 2},
	{row: "durable-32", server: plinth, to: file, what: "IOPS", of: iops, bound: 1},
	{row: "fua-32", server: plinth, to: "qemu-qcow2", what: "IOPS", of: iops, bound: 2},
	{row: "fua-32", server: plinth, to: file, what: "IOPS", of: iops, bound: 1},
	{row: "seq-write", server: plinth, to: "qemu-luks", what: "MB/s", of: iops, bound: 1},
	{row: "seq-read", server: plinth, to: "qemu-luks", what: "MB/s", of: iops, bound: 1},
}

func (g *goal) String() string {
	sign := "≥"
	if g.most {
		sign = "≤"
	}
	return fmt.Sprintf("%s of %s %s %g × %s", g.what, g.server, sign, g.bound, g.to)
}

func (g *goal) met(v float64) bool {
	if g.most {
		return v <= g.bound
	}
	return v >= g.bound
}
