package compare

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Sample is what one cell took. Latencies and CPU are microseconds, of an
// operation; MBps are 10^6 bytes a second.
type Sample struct {
	Row    string  `json:"row"`
	Server string  `json:"server"`
	Round  int     `json:"round"`
	Ops    int64   `json:"ops"`
	Bytes  int64   `json:"bytes"`
	IOPS   float64 `json:"iops"`
	MBps   float64 `json:"mb_per_s"`
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	P999   float64 `json:"p999_us"`
	// CPU is the server's, ClientCPU fio's.
	CPU       float64 `json:"cpu_us"`
	ClientCPU float64 `json:"client_cpu_us"`
	// LogBytes is what plinth's log took meanwhile, and LogSize its size.
	LogBytes int64 `json:"log_bytes,omitempty"`
	LogSize  int64 `json:"log_size,omitempty"`
	// FromRAM and FromFlash are the shares of what plinth read that its caches had.
	FromRAM   float64 `json:"from_ram,omitempty"`
	FromFlash float64 `json:"from_flash,omitempty"`
	// ResidentBytes is the most memory that the server had so far.
	ResidentBytes int64 `json:"resident_bytes"`
}

// Results are the samples of a run.
type Results struct {
	Samples []Sample
	// Left counts cells that the budget left out.
	Left int
}

// Load reads a file of samples. A file that is not there has none; a line that a
// crash cut short is an error.
func Load(path string) (*Results, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Results{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &Results{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var s Sample
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(r.Samples)+1, err)
		}
		r.Samples = append(r.Samples, s)
	}
	return r, lines.Err()
}

// add appends a sample, also to the file.
func (r *Results) add(path string, s *Sample) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, f.Close())
	}
	r.Samples = append(r.Samples, *s)
	return f.Close()
}

// find returns a cell's sample, or nil.
func (r *Results) find(row, server string, round int) *Sample {
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Row == row && s.Server == server && s.Round == round {
			return s
		}
	}
	return nil
}

// Measure takes one figure of a sample.
type Measure func(*Sample) float64

func iops(s *Sample) float64 { return s.IOPS }
func cpu(s *Sample) float64  { return s.CPU }

// median of a figure over the rounds; ok is false without a sample.
func (r *Results) median(row, server string, of Measure) (v float64, ok bool) {
	var all []float64
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Row == row && s.Server == server {
			all = append(all, of(s))
		}
	}
	return middle(all)
}

// ratio of a figure of two servers, the median of those of each round.
func (r *Results) ratio(row, server, to string, of Measure) (v float64, ok bool) {
	var all []float64
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Row != row || s.Server != server {
			continue
		}
		if o := r.find(row, to, s.Round); o != nil && of(o) > 0 {
			all = append(all, of(s)/of(o))
		}
	}
	return middle(all)
}

func middle(v []float64) (float64, bool) {
	n := len(v)
	if n == 0 {
		return 0, false
	}
	slices.Sort(v)
	if n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2, true
	}
	return v[n/2], true
}
