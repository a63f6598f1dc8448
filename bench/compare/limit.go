package compare

import (
	"bufio"
	"fmt"
	"io"
	"runtime"
	"strings"

	"golang.org/x/tools/benchmark/parse"
)

// stage is work that each byte of a row goes through on a server, measured by a
// Go benchmark on one core.
type stage struct {
	name       string
	pkg, bench string
	// of are bytes of the stage for each byte of the guest.
	of func(sealed float64) float64
	// perChunk is for a benchmark whose operation is one chunk of 4 KiB, whatever
	// its bytes.
	perChunk bool
}

// limit is what the stages of a row add up to.
type limit struct {
	row, server string
	stages      []stage
}

func plainBytes(float64) float64         { return 1 }
func sealedBytes(sealed float64) float64 { return sealed }

// codedBytes have the parity of 8+2.
func codedBytes(sealed float64) float64 { return sealed * 10 / 8 }

// limits have the least that a byte takes: what finds duplicates and keeps maps is
// not among the stages, so that the limits are strict ones.
var limits = []limit{
	{"seq-write", plinth, []stage{
		{name: "fingerprint", pkg: "plinth/internal/chunk", bench: "BenchmarkFingerprint/4096", of: plainBytes},
		{name: "compress and encrypt", pkg: "plinth/internal/chunk", bench: "BenchmarkSeal/aes-256-gcm/half", of: plainBytes},
		{name: "MAC", pkg: "plinth/internal/logrec", bench: "BenchmarkChainWrite4K", perChunk: true},
		{name: "log", pkg: "plinth/datanode/writelog", bench: "BenchmarkAppend/records=128", of: sealedBytes},
		{name: "packing, parity, checksums", pkg: "plinth/internal/stripe", bench: "BenchmarkSeal", of: sealedBytes},
		{name: "fragments", pkg: "plinth/datanode/spindle", bench: "BenchmarkWriteFragments/one", of: codedBytes},
	}},
	{"seq-read", plinth, []stage{
		{name: "RAM cache", pkg: "plinth/internal/ramcache", bench: "BenchmarkHit/memo,_page", perChunk: true},
	}},
	{"seq-read", flash, []stage{
		{name: "flash cache", pkg: "plinth/flashcache", bench: "BenchmarkGet", of: sealedBytes},
		{name: "decrypt and decompress", pkg: "plinth/internal/chunk", bench: "BenchmarkOpen/aes-256-gcm/half", of: plainBytes},
	}},
}

const mib = 1 << 20

// micros returns what the stage takes for 1 MiB of the guest.
func (s *stage) micros(b *parse.Benchmark, sealed float64) (float64, error) {
	if s.perChunk {
		return b.NsPerOp / 1e3 * mib / 4096, nil
	}
	if b.MBPerS == 0 {
		return 0, fmt.Errorf("%s of %s has no MB/s", s.bench, s.pkg)
	}
	return s.of(sealed) * mib / b.MBPerS, nil
}

// WriteLimits writes, as Markdown, what the stages of a row add up to on all
// cores, from the output of go test -bench, and how much of it the row reached. The
// client and the sockets are measured in the row itself, on memory.
func (r *Results) WriteLimits(out io.Writer, benchmarks io.Reader) error {
	found, err := parseBenchmarks(benchmarks)
	if err != nil {
		return err
	}
	sealed, ok := r.median("seq-write", plinth, func(s *Sample) float64 { return float64(s.LogBytes) / float64(s.Bytes) })
	if !ok {
		return nil // the row was not asked for
	}
	w := &errWriter{w: out}
	cores := float64(runtime.NumCPU())
	for i := range limits {
		l := &limits[i]
		transport, ok := r.median(l.row, null, func(s *Sample) float64 { return s.CPU + s.ClientCPU })
		reached, has := r.median(l.row, l.server, func(s *Sample) float64 { return s.MBps })
		if !ok || !has {
			continue
		}
		w.printf("\n%s, %s: µs of a core for 1 MiB\n\n| stage | µs |\n|---|---|\n| client, sockets, NBD | %s |\n", title(l.row), server(l.server), number(transport))
		sum := transport
		for j := range l.stages {
			s := &l.stages[j]
			b := found[s.pkg+" "+s.bench]
			if b == nil {
				return fmt.Errorf("no figure of %s in %s", s.bench, s.pkg)
			}
			us, err := s.micros(b, sealed)
			if err != nil {
				return err
			}
			w.printf("| %s | %s |\n", s.name, number(us))
			sum += us
		}
		most := cores * mib / sum
		w.printf("| sum | %s |\n\nOn %.0f cores the limit is %.0f MB/s; measured were %.0f, %.2f of it.\n", number(sum), cores, most, reached, reached/most)
	}
	return w.err
}

// parseBenchmarks reads the output of go test -bench, by package and name without
// the number of cores.
func parseBenchmarks(in io.Reader) (map[string]*parse.Benchmark, error) {
	found, pkg := map[string]*parse.Benchmark{}, ""
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = name
			continue
		}
		if !strings.HasPrefix(line, "Benchmark") {
			continue
		}
		b, err := parse.ParseLine(line)
		if err != nil {
			continue // a name alone, whose figures come later
		}
		name := b.Name
		if i := strings.LastIndexByte(name, '-'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
			name = name[:i]
		}
		found[pkg+" "+name] = b
	}
	return found, lines.Err()
}
