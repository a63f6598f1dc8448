package compare

import (
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// WriteTables writes medians and ratios as Markdown.
func (r *Results) WriteTables(out io.Writer) error {
	w := &errWriter{w: out}
	w.printf("| workload | server | IOPS | MB/s | p50 µs | p99 µs | p99.9 µs | CPU µs | plinth ÷ it | CPU |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range Rows {
		row := &Rows[i]
		for j := range Servers {
			r.writeRow(w, row, &Servers[j])
		}
	}
	w.printf("\n| workload | goal | measured | |\n|---|---|---|---|\n")
	for i := range goals {
		g := &goals[i]
		v, ok := r.ratio(g.row, g.server, g.to, g.of)
		if !ok {
			continue
		}
		met := "met"
		if !g.met(v) {
			met = "**not met**"
		}
		w.printf("| %s | %s | %.2f | %s |\n", title(g.row), g, v, met)
	}
	r.writeNotes(w)
	return w.err
}

func (r *Results) writeRow(w *errWriter, row *Row, s *Server) {
	if _, ok := r.median(row.Name, s.Name, iops); !ok {
		return
	}
	figure := func(of Measure) string {
		v, _ := r.median(row.Name, s.Name, of)
		return number(v)
	}
	cpuText := "–"
	if s.argv != nil {
		cpuText = figure(cpu)
	}
	w.printf("| %s | %s | %s | %s | %s | %s | %s | %s |", row.Title, s.Title, figure(iops), figure(func(s *Sample) float64 { return s.MBps }),
		figure(p50), figure(func(s *Sample) float64 { return s.P99 }), figure(func(s *Sample) float64 { return s.P999 }), cpuText)
	for _, of := range []Measure{iops, cpu} {
		text := "–"
		if v, ok := r.ratio(row.Name, plinth, s.Name, of); ok && s.Name != plinth {
			text = fmt.Sprintf("%.2f", v)
		}
		w.printf(" %s |", text)
	}
	w.printf("\n")
}

// writeNotes says of each plinth how often the log was written over, where reads
// came from, and what memory it took.
func (r *Results) writeNotes(w *errWriter) {
	for i := range Servers {
		s := &Servers[i]
		if !s.isPlinth() {
			continue
		}
		var notes []string
		if v, ok := r.median("write-32", s.Name, func(s *Sample) float64 { return float64(s.LogBytes) / float64(s.LogSize) }); ok {
			notes = append(notes, fmt.Sprintf("sustained writes wrote %.1f times the size of the log", v))
		}
		if ram, ok := r.median("read-32", s.Name, func(s *Sample) float64 { return s.FromRAM }); ok {
			flash, _ := r.median("read-32", s.Name, func(s *Sample) float64 { return s.FromFlash })
			notes = append(notes, fmt.Sprintf("reads at depth 32 came from RAM by %.1f %%, from flash by %.1f %%", 100*ram, 100*flash))
		}
		most := int64(0)
		for j := range r.Samples {
			if r.Samples[j].Server == s.Name {
				most = max(most, r.Samples[j].ResidentBytes)
			}
		}
		if most > 0 {
			w.printf("\n- %s: %s", s.Title, strings.Join(append(notes, fmt.Sprintf("memory was %d MiB at most", most>>20)), "; "))
		}
	}
	w.printf("\n")
}

func title(row string) string {
	for i := range Rows {
		if Rows[i].Name == row {
			return Rows[i].Title
		}
	}
	return row
}

func server(name string) string {
	for i := range Servers {
		if Servers[i].Name == name {
			return Servers[i].Title
		}
	}
	return name
}

// number prints three digits, or all before the point.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// errWriter keeps the first error.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) printf(format string, args ...any) {
	if e.err == nil {
		_, e.err = fmt.Fprintf(e.w, format, args...)
	}
}

// Machine describes what figures were measured on.
func Machine() string {
	var programs []string
	for _, p := range []string{"fio", "qemu-nbd", "nbdkit"} {
		out, err := exec.Command(p, "--version").Output()
		line, _, _ := strings.Cut(string(out), "\n")
		if err != nil {
			line = p + " (version unknown)"
		}
		programs = append(programs, strings.TrimSpace(line))
	}
	return fmt.Sprintf("%d cores of %s, %s, %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"), strings.Join(programs, ", "), runtime.Version())
}

// field returns the value of the first "name : value" of a file in /proc.
func field(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}
