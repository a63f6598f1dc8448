package compare

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

func TestStagesOfStacks(t *testing.T) {
	for _, c := range []struct{ stack, want string }{
		{"github.com/zeebo/blake3.hashF plinth/internal/chunk.(*Hasher).Sum plinth/internal/disk.(*Disk).WriteAt", "fingerprint"},
		{"github.com/zeebo/blake3.hashF plinth/internal/logrec.(*Chain).Next plinth/internal/disk.(*Disk).WriteAt", "MAC of log records"},
		{"internal/runtime/syscall.Syscall6 os.(*File).WriteAt plinth/datanode/writelog.(*Log).Append plinth/internal/disk.(*Disk).WriteAt", "log"},
		{"github.com/cockroachdb/pebble/v2.(*DB).Get plinth/datanode/index.(*Index).Lookup plinth/datanode/shelf.(*Shelf).Lookup", "fingerprint index, lists"},
		{"github.com/cockroachdb/pebble/v2.(*DB).Get plinth/blockmap.(*Map).LookupRange", "map"},
		{"github.com/cockroachdb/pebble/v2.(*DB).compact runtime.goexit", "Pebble's own work"},
		{"runtime.scanobject runtime.gcAssistAlloc runtime.mallocgc plinth/internal/disk.(*Disk).WriteAt", "garbage collection"},
		{"runtime.mallocgc plinth/internal/disk.(*Disk).WriteAt plinth/nbd.(*conn).serve", "disk: buffer, order, destaging"},
		{"runtime.futex runtime.findRunnable runtime.schedule runtime.park_m runtime.mcall", "scheduler, timers, poller"},
		{"runtime.memmove main.nobody", ""},
	} {
		if got := classify(strings.Fields(c.stack)); got != c.want {
			t.Errorf("%s: %q, want %q", c.stack, got, c.want)
		}
	}
}

// madeProfile has a sample of 10 ms for each stack.
func madeProfile(t *testing.T, stacks ...string) []byte {
	t.Helper()
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}, Period: 1e7,
	}
	for _, stack := range stacks {
		s := &profile.Sample{Value: []int64{1, 1e7}}
		for _, name := range strings.Fields(stack) {
			f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: name}
			l := &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
			p.Function, p.Location = append(p.Function, f), append(p.Location, l)
			s.Location = append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBreakdown(t *testing.T) {
	b, err := newBreakdown(madeProfile(t,
		"syscall.Syscall plinth/datanode/writelog.(*Log).Append plinth/internal/disk.(*Disk).WriteAt",
		"syscall.Syscall plinth/datanode/writelog.(*Log).Append plinth/internal/disk.(*Disk).WriteAt",
		"runtime.memmove plinth/internal/disk.(*Disk).WriteAt",
		"runtime.memmove github.com/cockroachdb/pebble/v2.(*DB).compact",
		"runtime.scanobject runtime.gcAssistAlloc plinth/datanode/writelog.(*Log).Append",
		"main.nobody",
	), 1000)
	if err != nil {
		t.Fatal(err)
	}
	b.Row, b.Total, b.IOPS = &Rows[slices.Index(rowNames(), "write-32")], 80, 1000
	near := func(got, want float64) bool { return math.Abs(got-want) < 1e-9 }
	if !near(b.Explained, 50) || !near(b.Sampled, 60) || !near(b.Orphans, 10) || !near(b.DataNode, 20) || len(b.Stages) != 4 || b.Stages[0].Stage != "log" || !near(b.Stages[0].CPU, 20) {
		t.Errorf("%+v", b)
	}
	var out bytes.Buffer
	if err := b.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| log | 20.00 | 25 % |", "| of no stage | 10.00 | 12 % |", "| not in the profile | 20.00 | 25 % |",
		"20.00 µs are the data node's own, 30.00 with all that Pebble does by itself: a core of a shelf carries 50.0 hosts at this load, or 33.3."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if _, err := newBreakdown([]byte("no profile"), 1); err == nil {
		t.Error("bytes that are no profile are no error")
	}
}
