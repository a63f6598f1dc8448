package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// fioTimeMax is what fio may take beyond its run time.
const fioTimeMax = time.Minute

// fioOutput is what we read of fio's JSON, for one job or a group.
type fioOutput struct {
	Jobs []struct {
		Error  int     `json:"error"`
		User   float64 `json:"usr_cpu"` // percent of Millis
		System float64 `json:"sys_cpu"`
		Millis float64 `json:"job_runtime"`
		Read   fioOps  `json:"read"`
		Write  fioOps  `json:"write"`
		Sync   struct {
			Latency fioLatency `json:"lat_ns"`
		} `json:"sync"`
	} `json:"jobs"`
}

type fioOps struct {
	Count   int64      `json:"total_ios"`
	IOPS    float64    `json:"iops"`
	Bytes   int64      `json:"io_bytes"`
	Rate    float64    `json:"bw_bytes"`
	Latency fioLatency `json:"clat_ns"`
}

type fioLatency struct {
	Percentile map[string]float64 `json:"percentile"`
}

func (l *fioLatency) micros(percentile string) float64 { return l.Percentile[percentile] / 1e3 }

// runFio runs fio against the server's disk, or a job of it against each of several, and
// returns what it measured, without the server's CPU.
func (v *serving) runFio(ctx context.Context, c *Config, row *Row, args ...string) (*Sample, error) {
	argv := []string{"--size=" + strconv.FormatInt(c.DiskBytes, 10), "--output-format=json", "--thread", "--group_reporting",
		"--refill_buffers=1", "--buffer_compress_percentage=50", "--randrepeat=0", "--allow_file_create=0"}
	argv = append(argv, args...)
	for i, disk := range v.disks { // what comes before the first name is for all
		argv = append(append(argv, fmt.Sprint("--name=disk", i)), disk...)
	}
	ctx, cancel := context.WithTimeout(ctx, c.SustainedRuntime+fioTimeMax)
	defer cancel()
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, "fio", argv...)
	out := filepath.Join(c.Dir, "fio.json")
	cmd.Args = append(cmd.Args, "--output="+out)
	cmd.Stdout, cmd.Stderr = &complaints, &complaints
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fio %q: %w: %s", argv, errors.Join(err, ctx.Err()), complaints.Bytes())
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	s, err := parseFio(b, row.Durable)
	if err != nil {
		return nil, fmt.Errorf("fio %q: %w", argv, err)
	}
	return s, nil
}

func parseFio(b []byte, durable bool) (*Sample, error) {
	var o fioOutput
	if i := bytes.IndexByte(b, '{'); i > 0 { // what engines print comes first
		b = b[i:]
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, err
	}
	if len(o.Jobs) != 1 {
		return nil, fmt.Errorf("%d jobs, not 1", len(o.Jobs))
	}
	j := &o.Jobs[0]
	ops := &j.Read
	if ops.Count == 0 {
		ops = &j.Write
	}
	if j.Error != 0 || ops.Count == 0 {
		return nil, fmt.Errorf("error %d after %d operations", j.Error, ops.Count)
	}
	latency := &ops.Latency
	if durable {
		latency = &j.Sync.Latency
	}
	return &Sample{
		Ops: ops.Count, Bytes: ops.Bytes, IOPS: ops.IOPS, MBps: ops.Rate / 1e6,
		P50: latency.micros("50.000000"), P99: latency.micros("99.000000"), P999: latency.micros("99.900000"),
		ClientCPU: (j.User + j.System) / 100 * j.Millis * 1e3 / float64(ops.Count),
	}, nil
}
