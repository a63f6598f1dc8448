package bench

import (
	"fmt"
	"io"
	"syscall"
	"text/tabwriter"
	"time"
)

// Result is what a run took.
type Result struct {
	Config  Config  `json:"config"`
	Seconds float64 `json:"seconds"`
	Read    *Ops    `json:"read,omitempty"`
	Write   *Ops    `json:"write,omitempty"`
	Flush   *Ops    `json:"flush,omitempty"`
	// CPUMicrosPerOp is this process's user and system time per read or write.
	CPUMicrosPerOp float64 `json:"cpu_us_per_op"`
	// LastFlushSeconds is what a flush took after the last write.
	LastFlushSeconds float64 `json:"last_flush_seconds"`
	VerifiedBlocks   int64   `json:"verified_blocks,omitempty"`
}

// Ops is one kind of operation. MBps are 10^6 bytes a second, latencies
// microseconds.
type Ops struct {
	Count int64   `json:"count"`
	IOPS  float64 `json:"iops"`
	MBps  float64 `json:"mb_per_s"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p999_us"`
	Max   float64 `json:"max_us"`
}

// newOps returns nil for no operations.
func newOps(h *histogram, elapsed time.Duration, bytes int) *Ops {
	if h.n == 0 {
		return nil
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	o := &Ops{
		Count: int64(h.n), IOPS: float64(h.n) / elapsed.Seconds(), Mean: us(h.mean()),
		P50: us(h.quantile(0.5)), P99: us(h.quantile(0.99)), P999: us(h.quantile(0.999)), Max: us(h.max),
	}
	o.MBps = o.IOPS * float64(bytes) / 1e6
	return o
}

// WriteText prints the result as a table. whose names the process whose CPU
// time it has.
func (r *Result) WriteText(out io.Writer, whose string) error {
	c := &r.Config
	fmt.Fprintf(out, "%s, %d bytes a block, depth %d, jobs %d, %.1f s over %d bytes\n",
		c.Workload, c.BlockBytes, c.Depth, c.Jobs, r.Seconds, c.Bytes)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tIOPS\tMB/s\tp50 µs\tp99 µs\tp99.9 µs\tmax µs\t")
	for _, row := range []struct {
		name string
		ops  *Ops
	}{{"read", r.Read}, {"write", r.Write}, {"flush", r.Flush}} {
		if o := row.ops; o != nil {
			fmt.Fprintf(w, "%s\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", row.name, o.IOPS, o.MBps, o.P50, o.P99, o.P999, o.Max)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "CPU %.1f µs per operation, of %s\n", r.CPUMicrosPerOp, whose)
	if r.Write != nil && err == nil {
		_, err = fmt.Fprintf(out, "flush after the last write %.1f ms\n", r.LastFlushSeconds*1e3)
	}
	if c.Verify && err == nil {
		_, err = fmt.Fprintf(out, "verified %d blocks\n", r.VerifiedBlocks)
	}
	return err
}

// cpuTime returns the user and system time of this process so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
