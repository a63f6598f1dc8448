package compare

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
)

// Breakdown says where plinth's CPU time goes in a row, per operation.
type Breakdown struct {
	Row    *Row
	IOPS   float64
	Stages []Share // the largest first
	// Total is what the kernel counted for the process, Sampled what the profile has,
	// Explained the sum of the stages; DataNode is what has a frame of the data node in
	// its stack, and Orphans what Pebble does by itself, for it and for maps.
	Total, Sampled, Explained, DataNode, Orphans float64
}

// Share is the time of one stage, microseconds an operation.
type Share struct {
	Stage string
	CPU   float64
}

// Stages are told by functions in a sample's stack. The first of these that has
// a frame anywhere counts: what is done by libraries for whoever calls them.
var anywhere = []rule{
	{"garbage collection", []string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart", "runtime.gcMarkDone"}},
	{"MAC of log records", []string{"plinth/internal/logrec.(*Chain)"}},
	{"fingerprint", []string{"github.com/zeebo/blake3", "plinth/internal/chunk.(*Hasher)"}},
	{"compression", []string{"github.com/klauspost/compress", "github.com/minio/minlz"}},
	{"encryption", []string{"crypto/", "golang.org/x/crypto", "plinth/internal/chunk.(*xts"}},
	{"parity", []string{"github.com/klauspost/reedsolomon"}},
}

// Otherwise the innermost frame of a package counts, with its system calls and
// what it makes of memory.
var owners = []rule{
	{"log", []string{"plinth/datanode/writelog"}},
	{"fragments", []string{"plinth/datanode/spindle"}},
	{"fingerprint index, lists", []string{"plinth/datanode/index"}},
	{"data node: the rest", []string{"plinth/datanode"}},
	{"stripes: packing, checksums", []string{"plinth/internal/stripe"}},
	{"map", []string{"plinth/blockmap"}},
	{"CPU budget, limits", []string{"plinth/internal/gate"}},
	{"RAM cache", []string{"plinth/internal/ramcache"}},
	{"CPU budget, limits", []string{"plinth/internal/gate"}},
	{"RAM cache", []string{"plinth/internal/ramcache"}},
	{"flash cache", []string{"plinth/flashcache"}},
	{"chunks: the rest", []string{"plinth/internal/chunk"}},
	{"records", []string{"plinth/internal/logrec"}},
	{"disk: buffer, order, destaging", []string{"plinth/internal/disk", "plinth/internal/object"}},
	{"host", []string{"plinth/internal/host", "plinth/internal/reclaim", "plinth/internal/api", "plinth/internal/registry"}},
	{"NBD: protocol, sockets", []string{"plinth/nbd"}},
}

// And what nobody of ours called.
var orphans = []rule{
	{"Pebble's own work", []string{"github.com/cockroachdb/pebble"}},
	{"scheduler, timers, poller", []string{"runtime.mcall", "runtime.mstart", "runtime.sysmon", "runtime.goexit0", "runtime.park_m", "runtime.schedule", "runtime.morestack"}},
}

// rule gives a stage the functions that begin with a prefix.
type rule struct {
	stage    string
	prefixes []string
}

func (r *rule) matches(function string) bool {
	return slices.ContainsFunc(r.prefixes, func(p string) bool { return strings.HasPrefix(function, p) })
}

// classify returns the stage of a stack, innermost frame first; "" if none.
func classify(stack []string) string {
	if stage := first(anywhere, stack); stage != "" {
		return stage
	}
	for _, f := range stack {
		if stage := first(owners, []string{f}); stage != "" {
			return stage
		}
	}
	return first(orphans, stack)
}

// first returns the stage of the first rule that has a frame in the stack.
func first(rules []rule, stack []string) string {
	for i := range rules {
		if slices.ContainsFunc(stack, rules[i].matches) {
			return rules[i].stage
		}
	}
	return ""
}

// functions lists a sample's stack, innermost first, inlined ones too.
func functions(s *profile.Sample) []string {
	var stack []string
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function != nil {
				stack = append(stack, line.Function.Name)
			}
		}
	}
	return stack
}

// profileSlack is how long a profile goes on after fio, for what is still to be
// destaged.
const profileSlack = 6 * time.Second

// Profile measures where plinth's CPU time goes in a row: from fio's start until
// all is destaged. It blocks for the sustained run time and some seconds.
func Profile(ctx context.Context, cfg Config, name string) (b *Breakdown, err error) {
	cfg.Rows = []string{name}
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	row := &Rows[slices.Index(rowNames(), name)]
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	r := &run{Config: c, res: &Results{}, began: time.Now(), alive: map[string]*serving{}}
	defer func() { err = errors.Join(err, r.stopAll()) }()
	v, err := r.turn(ctx, &Servers[0])
	if err != nil {
		return nil, err
	}
	if !row.Writes {
		if err := r.warm(ctx, v); err != nil {
			return nil, err
		}
	}
	r.Runtime = r.SustainedRuntime
	return r.profile(ctx, v, row)
}

func (r *run) profile(ctx context.Context, v *serving, row *Row) (*Breakdown, error) {
	type answer struct {
		profile []byte
		err     error
	}
	before, err := v.cpu()
	if err != nil {
		return nil, err
	}
	done := make(chan answer, 1)
	go func() {
		p, err := v.api.CPUProfile(ctx, int((r.runtime(row) + profileSlack).Seconds()))
		done <- answer{p, err}
	}()
	s, err := r.sample(ctx, v, row)
	a := <-done
	if err := errors.Join(err, a.err); err != nil {
		return nil, err
	}
	after, err := v.cpu()
	if err != nil {
		return nil, err
	}
	b, err := newBreakdown(a.profile, s.Ops)
	if err != nil {
		return nil, err
	}
	b.Row, b.IOPS, b.Total = row, s.IOPS, (after-before).Seconds()*1e6/float64(s.Ops)
	return b, nil
}

// newBreakdown sums a CPU profile by stage, for so many operations.
func newBreakdown(b []byte, ops int64) (*Breakdown, error) {
	p, err := profile.Parse(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	value := len(p.SampleType) - 1 // samples/count, cpu/nanoseconds
	if value < 0 || p.SampleType[value].Unit != "nanoseconds" {
		return nil, errors.New("not a CPU profile")
	}
	out, sums := &Breakdown{}, map[string]float64{}
	for _, s := range p.Sample {
		stack := functions(s)
		us := float64(s.Value[value]) / 1e3 / float64(ops)
		out.Sampled += us
		stage := classify(stack)
		if stage == "" {
			continue
		}
		sums[stage] += us
		out.Explained += us
		if stage != anywhere[0].stage && slices.ContainsFunc(stack, func(f string) bool { return strings.HasPrefix(f, "plinth/datanode") }) {
			out.DataNode += us
		}
	}
	out.Orphans = sums[orphans[0].stage]
	for stage, us := range sums {
		out.Stages = append(out.Stages, Share{stage, us})
	}
	slices.SortFunc(out.Stages, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), strings.Compare(a.Stage, b.Stage))
	})
	return out, nil
}

// WriteText writes the breakdown as Markdown.
func (b *Breakdown) WriteText(out io.Writer) error {
	w := &errWriter{w: out}
	w.printf("%s: CPU µs per operation, at %.0f a second\n\n| stage | µs | share |\n|---|---|---|\n", b.Row.Title, b.IOPS)
	for _, s := range b.Stages {
		w.printf("| %s | %.2f | %.0f %% |\n", s.Stage, s.CPU, 100*s.CPU/b.Total)
	}
	w.printf("| of no stage | %.2f | %.0f %% |\n", b.Sampled-b.Explained, 100*(b.Sampled-b.Explained)/b.Total)
	w.printf("| not in the profile | %.2f | %.0f %% |\n", b.Total-b.Sampled, 100*(1-b.Sampled/b.Total))
	w.printf("| the process, by the kernel's count | %.2f | %.0f %% explained |\n", b.Total, 100*b.Explained/b.Total)
	if b.Row.Writes && b.DataNode > 0 {
		w.printf("\nOf this %.2f µs are the data node's own, %.2f with all that Pebble does by itself: a core of a shelf carries %.1f hosts at this load, or %.1f.\n",
			b.DataNode, b.DataNode+b.Orphans, 1e6/(b.DataNode*b.IOPS), 1e6/((b.DataNode+b.Orphans)*b.IOPS))
	}
	return w.err
}
