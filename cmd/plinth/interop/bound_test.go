package interop

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	boundTime = flag.Duration("bound-time", 3*time.Second, "TestCPUBound: how long the busy disk writes; each of the quiet one's measurements takes a sixth of it")
	boundNice = flag.Int("bound-nice", 0, "TestCPUBound: niceness of the busy disk's client; 19 leaves the cores to the others, which on two are the kernel's to share")
)

const (
	// boundJudged is from which time on figures are held against their goals.
	boundJudged = time.Minute
	// boundTolerance is what a process may use more or less than it is given.
	boundTolerance = 0.1
	// boundRise is how much a busy disk may raise another's p99.
	boundRise = 2
)

// TestCPUBound bounds a process to a core while one disk writes as much as it can: what
// it uses over the whole time, how soon a change holds, and what a second disk with a
// tenth of the load that it could have sees of it.
func TestCPUBound(t *testing.T) {
	s := start(t, tempDir(t), "--nbd", "127.0.0.1:0", "--cores", "1", "--spindle-size", "512M", "--ram-cache", "256M")
	for _, name := range []string{"busy", "quiet"} {
		s.command(t, "disk", "create", name, "512M")
	}
	full := s.fioWrites(t, "quiet", *boundTime/6, 0)
	rate := int(full.IOPS / 10)
	t.Logf("alone, one disk has %.0f writes a second, p99 %v", full.IOPS, full.p99())

	pairs := 1
	if *boundTime >= boundJudged {
		pairs = 3
	}
	var rises []float64
	busy := s.busy(t, *boundTime+programTime)
	time.Sleep(time.Second) // until it is at full speed
	before, began := cpuTime(t, s.cmd.Process.Pid), time.Now()
	time.Sleep(*boundTime)
	used := (cpuTime(t, s.cmd.Process.Pid) - before).Seconds() / time.Since(began).Seconds()
	t.Logf("with --cores 1 it used %.3f cores over %v", used, *boundTime)
	s.command(t, "cpu", "set", "--cores", "0.5")
	for second := range 3 {
		before, began = cpuTime(t, s.cmd.Process.Pid), time.Now()
		time.Sleep(time.Second)
		t.Logf("second %d with 0.5 cores: %.3f", second+1, (cpuTime(t, s.cmd.Process.Pid)-before).Seconds()/time.Since(began).Seconds())
	}
	s.command(t, "cpu", "set", "--cores", "1")
	busy()
	for range pairs {
		s.settle(t)
		alone := s.fioWrites(t, "quiet", *boundTime/6, rate)
		busy := s.busy(t, *boundTime/6+programTime)
		time.Sleep(time.Second)
		beside := s.fioWrites(t, "quiet", *boundTime/6, rate)
		busy()
		rises = append(rises, float64(beside.p99())/float64(alone.p99()))
		t.Logf("at %d writes a second: p99 %v alone, %v beside, p50 %v and %v", rate, alone.p99(), beside.p99(), alone.p(50), beside.p(50))
	}
	slices.Sort(rises)
	t.Logf("p99 rises %.2f times (median of %d)", rises[pairs/2], pairs)
	if *boundTime >= boundJudged && (used < 1-boundTolerance || used > 1+boundTolerance) {
		t.Errorf("it used %.3f cores of 1", used)
	}
	if *boundTime >= boundJudged && rises[pairs/2] > boundRise {
		t.Errorf("p99 rises %.2f times, at most %d is wanted", rises[pairs/2], boundRise)
	}
	s.stop(t)
}

// settle waits until the work that writes left behind has ended.
func (s *site) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(programTime); time.Now().Before(deadline); {
		before := cpuTime(t, s.cmd.Process.Pid)
		time.Sleep(time.Second)
		if cpuTime(t, s.cmd.Process.Pid)-before < time.Second/20 {
			return
		}
	}
	t.Fatal("the process does not come to rest")
}

// fioFigures are of one job's writes.
type fioFigures struct {
	IOPS    float64 `json:"iops"`
	Latency struct {
		Percentile map[string]int64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

func (f *fioFigures) p(percent int) time.Duration {
	return time.Duration(f.Latency.Percentile[fmt.Sprintf("%d.000000", percent)])
}

func (f *fioFigures) p99() time.Duration { return f.p(99) }

// writeArgs are fio's for random writes of new data to a disk; rate 0 is as many as go.
func (s *site) writeArgs(disk string, runs time.Duration, rate int) []string {
	args := []string{
		"--name=" + disk, "--ioengine=nbd", "--uri=" + s.uri("unix", disk), "--rw=randwrite", "--bs=4k", "--size=512m", "--norandommap",
		"--refill_buffers", "--buffer_compress_percentage=50", "--time_based", "--runtime=" + strconv.FormatInt(runs.Milliseconds(), 10) + "ms", "--output-format=json",
	}
	if rate > 0 {
		return append(args, "--iodepth=4", "--rate_iops="+strconv.Itoa(rate), "--rate_process=poisson")
	}
	return append(args, "--iodepth=32")
}

// fioWrites measures writes to a disk.
func (s *site) fioWrites(t *testing.T, disk string, runs time.Duration, rate int) *fioFigures {
	t.Helper()
	out := run(t, "fio", s.writeArgs(disk, runs, rate)...)
	var r struct {
		Jobs []struct{ Write fioFigures }
	}
	if err := json.Unmarshal(out[strings.IndexByte(string(out), '{'):], &r); err != nil || len(r.Jobs) != 1 || r.Jobs[0].Write.IOPS == 0 {
		t.Fatalf("fio says %s: %v", out, err)
	}
	return &r.Jobs[0].Write
}

// busy writes to the disk of that name as fast as it can, until what it returns is called.
func (s *site) busy(t *testing.T, most time.Duration) (end func()) {
	t.Helper()
	cmd := exec.Command("fio", append(s.writeArgs("busy", most, 0), "--nice="+strconv.Itoa(*boundNice))...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // its status tells of the interrupt
	}
	t.Cleanup(end)
	return end
}

// cpuTime returns what a process has used, to a hundredth of a second.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return time.Duration(user+system) * time.Second / 100
}
