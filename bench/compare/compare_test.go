package compare

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// made are results of two rounds, with another server that is twice as fast in
// the first and as fast in the second.
func made() *Results {
	r := &Results{}
	for round, others := range []float64{2000, 3000} {
		for i := range Rows {
			row := &Rows[i]
			for j := range Servers {
				s := &Servers[j]
				if !row.has(s) {
					continue
				}
				v := others
				if s.isPlinth() {
					v = 1000 + 2000*float64(round)
				}
				r.Samples = append(r.Samples, Sample{
					Row: row.Name, Server: s.Name, Round: round + 1, Ops: 10, Bytes: 1000, IOPS: v, MBps: v / 10, P50: 1, P99: 2, P999: 3,
					CPU: 1e6 / v, ClientCPU: 100, LogBytes: 500, LogSize: 250, ResidentBytes: 1 << 30, FromRAM: 0.75, FromFlash: 0.2,
				})
			}
		}
	}
	return r
}

func TestRatiosAreOfRounds(t *testing.T) {
	r := made()
	if v, ok := r.ratio("read-32", plinth, "nbdkit-file", iops); !ok || v != 0.75 {
		t.Errorf("ratio %v, %v: want the median of 0.5 and 1", v, ok)
	}
	if v, ok := r.median("read-32", plinth, iops); !ok || v != 2000 {
		t.Errorf("median %v, %v", v, ok)
	}
	if _, ok := r.ratio("read-32", plinth, file, iops); ok {
		t.Error("a ratio to a server that is not in the row")
	}
}

func TestTables(t *testing.T) {
	var out bytes.Buffer
	if err := made().WriteTables(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{
		"| 4 KiB random read, depth 32 | nbdkit file | 2500 | 250 | 1.00 | 2.00 | 3.00 | 417 | 0.75 | 1.50 |\n",
		"| 4 KiB random read, depth 32 | IOPS of plinth ≥ 1 × nbdkit-file | 0.75 | **not met** |\n",
		"| 4 KiB random write, each flushed, 32 in flight | IOPS of plinth ≥ 1 × file | 0.75 | **not met** |\n",
		"\n- plinth, GCM: sustained writes wrote 2.0 times the size of the log; reads at depth 32 came from RAM by 75.0 %, from flash by 20.0 %; memory was 1024 MiB at most\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	columns := 0
	for line := range strings.Lines(text) {
		n := strings.Count(line, "|")
		if n > 0 && columns > 0 && n != columns {
			t.Errorf("a row of %d columns in a table of %d: %s", n, columns, line)
		}
		columns = n
	}
}

func TestGoalsNameWhatThereIs(t *testing.T) {
	r := made()
	for i := range goals {
		g := &goals[i]
		if _, ok := r.ratio(g.row, g.server, g.to, g.of); !ok {
			t.Errorf("%s, %s: no such row or server", g.row, g)
		}
	}
}

func TestPlotIsAFunctionOfResults(t *testing.T) {
	var a, b bytes.Buffer
	if err := errors.Join(made().WritePlot(&a), made().WritePlot(&b)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two plots of the same results differ")
	}
	for _, name := range plotted {
		if !strings.Contains(a.String(), title(name)) {
			t.Errorf("%s is not in the plot", name)
		}
	}
	if n := strings.Count(a.String(), "<rect"); n != 5+1+2+1+7+6+7 {
		t.Errorf("%d bars", n)
	}
}

// A run that was cut off goes on with what is not in the file.
func TestSamplesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results")
	r, err := Load(path)
	if err != nil || len(r.Samples) != 0 {
		t.Fatalf("no file: %v, %v", r, err)
	}
	want := made()
	for i := range want.Samples[:9] {
		if err := r.add(path, &want.Samples[i]); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Config{Plinth: "p", Dir: "d", Results: path}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if r, err = Load(path); err != nil {
		t.Fatal(err)
	}
	c.Rounds = 2
	all, left := len(want.Samples), c.cells(r)
	if len(r.Samples) != 9 || len(left) != all-9 {
		t.Errorf("%d samples loaded, %d cells left of %d", len(r.Samples), len(left), all)
	}
	for i := range r.Samples {
		if r.Samples[i] != want.Samples[i] {
			t.Errorf("sample %d: %+v, want %+v", i, r.Samples[i], want.Samples[i])
		}
	}
	if err := os.WriteFile(path, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil {
		t.Error("a line that was cut short is no error")
	}
}

func TestFioOutput(t *testing.T) {
	for _, c := range []struct {
		file    string
		durable bool
		want    Sample
	}{
		{"read.json", false, Sample{Ops: 55, Bytes: 225280, IOPS: 52.5, MBps: 0.225, P50: 17.5, P99: 60, P999: 90, ClientCPU: 1e6 * 0.06 / 55}},
		{"durable.json", true, Sample{Ops: 40, Bytes: 163840, IOPS: 40, MBps: 0.16, P50: 400, P99: 600, P999: 900, ClientCPU: 1e6 * 0.06 / 40}},
	} {
		b, err := os.ReadFile(filepath.Join("testdata", c.file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseFio(b, c.durable)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got.ClientCPU-c.want.ClientCPU) > 1e-6 {
			t.Errorf("%s: client's CPU %v, want %v", c.file, got.ClientCPU, c.want.ClientCPU)
		}
		if got.ClientCPU = c.want.ClientCPU; *got != c.want {
			t.Errorf("%s: %+v, want %+v", c.file, got, c.want)
		}
	}
	for what, text := range map[string]string{
		"nothing": "", "no job": `{"jobs":[]}`, "an error": `{"jobs":[{"error":5,"read":{"total_ios":1}}]}`, "no operation": `{"jobs":[{"error":0}]}`,
	} {
		if _, err := parseFio([]byte(text), false); err == nil {
			t.Errorf("%s is no error", what)
		}
	}
}

func TestProcess(t *testing.T) {
	pid := os.Getpid()
	before, err := processCPU(pid)
	after := before
	for began := time.Now(); err == nil && after-before < 3*tick && time.Since(began) < 10*time.Second; {
		after, err = processCPU(pid)
	}
	if err != nil || after-before < 3*tick {
		t.Errorf("CPU time %v, then %v, %v", before, after, err)
	}
	if now, most, err := processMemory(pid); err != nil || now < 1<<20 || most < now || most > 1<<40 {
		t.Errorf("memory %d, at most %d, %v", now, most, err)
	}
	if _, err := processCPU(1 << 30); err == nil {
		t.Error("a process that is not there has CPU time")
	}
}

func TestBadConfigs(t *testing.T) {
	good := Config{Plinth: "p", Dir: "d", Results: "r"}
	for what, change := range map[string]func(*Config){
		"program": func(c *Config) { c.Plinth = "" },
		"server":  func(c *Config) { c.Servers = []string{"nfs"} },
		"row":     func(c *Config) { c.Rows = []string{"reed-1"} },
		"size":    func(c *Config) { c.DiskBytes = 1<<20 + 1 },
		"rounds":  func(c *Config) { c.Rounds = -1 },
	} {
		c := good
		change(&c)
		if _, err := c.withDefaults(); err == nil {
			t.Errorf("%s: no error for %+v", what, c)
		}
	}
}

const stageOutput = `goos: linux
pkg: plinth/internal/chunk
BenchmarkFingerprint/4096-2     	1	2400 ns/op	1000.00 MB/s	0 B/op	0 allocs/op
BenchmarkSeal/aes-256-gcm/half-2	1	2400 ns/op	2000.00 MB/s
BenchmarkOpen/aes-256-gcm/half-2	1	2400 ns/op	4000.00 MB/s
pkg: plinth/internal/logrec
BenchmarkChainWrite4K 	1	1000 ns/op
pkg: plinth/internal/stripe
BenchmarkSeal-2
BenchmarkSeal-2 	1	2400 ns/op	1000.00 MB/s
pkg: plinth/datanode/writelog
BenchmarkAppend/records=128-2	1	2400 ns/op	500.00 MB/s
pkg: plinth/datanode/spindle
BenchmarkWriteFragments/one-2	1	2400 ns/op	1000.00 MB/s
pkg: plinth/flashcache
BenchmarkGet-2	1	2400 ns/op	4000.00 MB/s
pkg: plinth/internal/ramcache
BenchmarkHit/memo,_page-2	1	500 ns/op	1.000 hits/op
`

func TestLimits(t *testing.T) {
	var out bytes.Buffer
	if err := made().WriteLimits(&out, strings.NewReader(stageOutput)); err != nil {
		t.Fatal(err)
	}
	// Half is sealed: 1049 + 524 + 256 + 1049 + 524 + 655 µs, and for reads 131 + 262.
	for _, want := range []string{"| fingerprint | 1049 |", "| MAC | 256 |", "| log | 1049 |", "| fragments | 655 |", "| flash cache | 131 |", "| RAM cache | 128 |", "| decrypt and decompress | 262 |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line %q in\n%s", want, &out)
		}
	}
	if err := made().WriteLimits(&out, strings.NewReader("")); err == nil {
		t.Error("limits without the figure of a stage")
	}
}
