package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Workload is what operations do and where, by fio's name.
type Workload string

// The workloads: sequential, random, and mixed ones.
const (
	Read      Workload = "read"
	Write     Workload = "write"
	RandRead  Workload = "randread"
	RandWrite Workload = "randwrite"
	RW        Workload = "rw"
	RandRW    Workload = "randrw"
)

// Workloads lists them all.
var Workloads = []Workload{Read, Write, RandRead, RandWrite, RW, RandRW}

func (w Workload) random() bool { return strings.HasPrefix(string(w), "rand") }

const (
	blockBytesDefault  = 4096
	readPercentDefault = 50
	runtimeDefault     = 10 * time.Second
	// blockBytesMax and inFlightMax bound a run's memory together with
	// inFlightBytesMax.
	blockBytesMax    = 32 << 20
	inFlightMax      = 1 << 14
	inFlightBytesMax = 4 << 30
	// verifyBlocksMax bounds the versions kept, 4 bytes a block.
	verifyBlocksMax = 1 << 28
	sectorBytes     = 512
)

// Config says what to do. Workload is needed; the rest of the zero value is
// right.
type Config struct {
	Workload Workload `json:"workload"`
	// BlockBytes is the size of an operation, a multiple of 512. 0: 4096.
	BlockBytes int `json:"block_bytes"`
	// Depth is how many operations a job has in flight. 0: 1.
	Depth int `json:"depth"`
	// Jobs is the number of jobs. 0: 1.
	Jobs int `json:"jobs"`
	// Runtime is how long operations are started. 0: 10 s. Once goes by Bytes
	// instead: each job does as many operations as its share has blocks.
	Runtime time.Duration `json:"runtime_ns"`
	Once    bool          `json:"once"`
	// Bytes of the target, from its beginning, are used. 0: all.
	Bytes int64 `json:"bytes"`
	// ReadPercent is the share of reads in rw and randrw, 1 to 99. 0: 50.
	ReadPercent int `json:"read_percent"`
	// Compressible is the percentage of each 4 KiB written that is repetition.
	Compressible int `json:"compressible_percent"`
	// Dedupe is the percentage of 4 KiB pieces written that are one of 1024.
	Dedupe int `json:"dedupe_percent"`
	// FlushEvery flushes after so many writes of a job; the job's other
	// operations go on meanwhile. 0: never.
	FlushEvery int `json:"flush_every"`
	// FUA makes each write of the measurement stable before it counts as done.
	FUA bool `json:"fua"`
	// Fill writes all of Bytes before the measurement starts.
	Fill bool `json:"fill"`
	// Settle is called after Fill, for a target that goes on working with what
	// was written: for one, until reads come from where it lies in the end.
	Settle func(context.Context) error `json:"-"`
	// Verify compares what is read with what was written. Nothing else may
	// write to the target.
	Verify bool `json:"verify"`
	// Seed makes offsets and content: runs of one seed write the same, which a
	// target that deduplicates may know already. 0: drawn.
	Seed uint64 `json:"seed"`
}

// withDefaults returns the Config for a target of that many bytes, or what is
// wrong with it.
func (c Config) withDefaults(size int64) (Config, error) {
	set := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	set(&c.BlockBytes, blockBytesDefault)
	set(&c.Depth, 1)
	set(&c.Jobs, 1)
	set(&c.ReadPercent, readPercentDefault)
	if c.Runtime == 0 && !c.Once {
		c.Runtime = runtimeDefault
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.Bytes == 0 {
		c.Bytes = size
	}
	c.Bytes = c.Bytes / int64(max(c.BlockBytes, 1)) * int64(c.BlockBytes)
	return c, c.validate(size)
}

func (c *Config) validate(size int64) error {
	known := false
	for _, w := range Workloads {
		known = known || c.Workload == w
	}
	percent := func(v int) bool { return v >= 0 && v <= 100 }
	switch {
	case !known:
		return fmt.Errorf("workload %q is none of %v", c.Workload, Workloads)
	case c.BlockBytes < sectorBytes || c.BlockBytes > blockBytesMax || c.BlockBytes%sectorBytes != 0:
		return fmt.Errorf("blocks of %d bytes: want a multiple of %d, at most %d", c.BlockBytes, sectorBytes, blockBytesMax)
	case c.Depth < 1 || c.Jobs < 1 || c.Depth > inFlightMax/c.Jobs || int64(c.Depth)*int64(c.Jobs)*int64(c.BlockBytes) > inFlightBytesMax:
		return fmt.Errorf("%d jobs of depth %d with blocks of %d bytes: at most %d operations of %d bytes together are in flight",
			c.Jobs, c.Depth, c.BlockBytes, inFlightMax, int64(inFlightBytesMax))
	case c.Runtime < 0 || c.FlushEvery < 0:
		return fmt.Errorf("runtime %v, flush every %d writes: neither is negative", c.Runtime, c.FlushEvery)
	case c.ReadPercent < 1 || c.ReadPercent > 99:
		return fmt.Errorf("%d %% reads: a mix has 1 to 99", c.ReadPercent)
	case !percent(c.Compressible) || !percent(c.Dedupe):
		return fmt.Errorf("%d %% compressible, %d %% duplicates: percentages are 0 to 100", c.Compressible, c.Dedupe)
	case c.Bytes > size:
		return fmt.Errorf("%d bytes of a target that has %d", c.Bytes, size)
	case c.share() < 1:
		return fmt.Errorf("%d bytes are less than a block of %d for each of %d jobs", c.Bytes, c.BlockBytes, c.Jobs)
	case c.Verify && c.Bytes/int64(c.BlockBytes) > verifyBlocksMax:
		return fmt.Errorf("verify remembers at most %d blocks, not %d", verifyBlocksMax, c.Bytes/int64(c.BlockBytes))
	}
	return nil
}

// share returns the blocks of each job.
func (c *Config) share() int64 { return c.Bytes / int64(c.BlockBytes) / int64(c.Jobs) }
