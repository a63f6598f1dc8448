package compare

import (
	"context"
	"errors"
	"time"

	"plinth/bench"
	nbdclient "plinth/nbd/client"
)

// fuaDepth is how many writes with FUA are in flight, on one connection.
const fuaDepth = 32

// runFUA writes to the server's disk for that long, each write with FUA, and returns
// what runFio does.
func (v *serving) runFUA(ctx context.Context, c *Config, row *Row, runtime time.Duration) (s *Sample, err error) {
	name := ""
	if v.isPlinth() {
		name = export
	}
	ctx, cancel := context.WithTimeout(ctx, runtime+fioTimeMax)
	defer cancel()
	disk, err := nbdclient.Dial(ctx, "unix", v.socket, name, nbdclient.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	r, err := bench.Run(ctx, bench.Config{
		Workload: bench.RandWrite, BlockBytes: row.OpBytes, Depth: fuaDepth, Runtime: runtime, Bytes: c.DiskBytes, Compressible: 50, FUA: true,
	}, disk)
	if err != nil {
		return nil, err
	}
	if r.Write == nil {
		return nil, errors.New("no write was done")
	}
	w := r.Write
	return &Sample{
		Ops: w.Count, Bytes: w.Count * int64(row.OpBytes), IOPS: w.IOPS, MBps: w.MBps, P50: w.P50, P99: w.P99, P999: w.P999, ClientCPU: r.CPUMicrosPerOp,
	}, nil
}
