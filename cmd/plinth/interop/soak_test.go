package interop

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"plinth/internal/api"
	"plinth/internal/host"
)

var soakTime = flag.Duration("soak-time", 10*time.Second, "TestSoak: how long")

const (
	// soakSamples is how many times memory is looked at, and a snapshot made: often in
	// the longest soak, too.
	soakSamples = 60
	// soakPause is the least time between.
	soakPause = 500 * time.Millisecond
	// soakGrowth is what noise of the garbage collector may add between one third of
	// a soak and the next.
	soakGrowth = 0.15
	// soakBytesMax bounds memory in any soak: what is acknowledged and not destaged (half of
	// the log of 256 MiB, with as much for the garbage collector), the maps', the index's
	// and the RAM cache of 256 MiB each, buffers of 40 connections and of rounds.
	soakBytesMax = 5 << 28
)

// soakJobs are the loads at once, each on a disk of its own but the last.
var soakJobs = []string{
	"--name=random --rw=randwrite --bs=4k --iodepth=32 --uri=%[1]s1%[2]s",
	"--name=stream --rw=write --bs=1m --iodepth=4 --uri=%[1]s2%[2]s",
	"--name=durable --rw=randwrite --bs=4k --numjobs=32 --fsync=1 --uri=%[1]s3%[2]s",
	"--name=trim --rw=randtrim --bs=256k --iodepth=4 --rate_iops=100 --uri=%[1]s4%[2]s",
	"--name=mixed --rw=randrw --bs=16k --iodepth=8 --uri=%[1]s4%[2]s",
	"--name=read --rw=randread --bs=4k --iodepth=32 --uri=%[1]s1%[2]s",
}

// TestSoak runs the worst loads together, snapshots among them, and holds memory
// against its bound; in a soak of some minutes, also against growth.
func TestSoak(t *testing.T) {
	dir := tempDir(t)
	s := start(t, dir, "--nbd", "127.0.0.1:0", "--spindle-size", "512M", "--log-size", "256M", "--idle-time", "2s",
		"--ram-cache", "256M", "--cache", dir+"/flash", "--cache-size", "1G")
	for i := range 4 {
		s.command(t, "disk", "create", fmt.Sprint("soak", i+1), "512M")
	}
	addr, err := api.ParseAddress(s.api)
	if err != nil {
		t.Fatal(err)
	}
	client, err := api.NewClient(addr, api.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3**soakTime+programTime) // a machine may sleep meanwhile
	defer cancel()
	args := []string{"--ioengine=nbd", "--thread", "--time_based", "--norandommap", "--size=512m", "--refill_buffers=1", "--buffer_compress_percentage=50",
		"--minimal", "--runtime=" + strconv.Itoa(int(soakTime.Seconds()))}
	for _, job := range soakJobs {
		args = append(args, strings.Fields(fmt.Sprintf(job, "nbd+unix:///soak", "?socket="+s.socket))...)
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	ended := make(chan error, 1)
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	var memory []int64
	busy := 0
	pause := max(soakPause, *soakTime/soakSamples)
	for tick := time.NewTicker(pause); ; {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("fio %q: %v", args, err)
			}
			judgeSoak(t, memory)
			if busy > len(memory)/4 {
				t.Errorf("%d of %d snapshots were refused, as the disk was busy", busy, len(memory))
			}
			report, err := client.Verify(t.Context(), host.VerifyOptions{})
			if err != nil || len(report.Findings) > 0 {
				t.Errorf("verify: %+v, %v", report, err)
			}
			s.stop(t)
			return
		case <-tick.C:
			memory = append(memory, resident(t, s.cmd.Process.Pid))
			disk, name := fmt.Sprint("soak", 1+rand.IntN(4)), fmt.Sprint("s", len(memory))
			_, err := client.CreateSnapshots(t.Context(), api.CreateSnapshots{Disks: []string{disk}, CreateSnapshot: api.CreateSnapshot{Name: name}})
			if err == nil {
				err = client.RemoveSnapshot(t.Context(), disk, name, true)
			}
			switch {
			case err != nil && strings.Contains(err.Error(), "busy: "): // who asks tries again later
				busy++
			case err != nil:
				t.Fatalf("snapshot %s of %s: %v", name, disk, err)
			}
		}
	}
}

// judgeSoak compares thirds of a soak: the first fills caches.
func judgeSoak(t *testing.T, memory []int64) {
	t.Helper()
	third := len(memory) / 3
	if third == 0 {
		t.Fatalf("memory was looked at %d times only", len(memory))
	}
	second, last := slices.Max(memory[third:2*third]), slices.Max(memory[2*third:])
	t.Logf("memory in MiB: at most %d in the first third, then %d, then %d; %d at the end", slices.Max(memory[:third])>>20, second>>20, last>>20, memory[len(memory)-1]>>20)
	if last > soakBytesMax {
		t.Errorf("%d MiB of memory, more than the bound of %d", last>>20, soakBytesMax>>20)
	}
	if *soakTime >= 5*time.Minute && float64(last) > float64(second)*(1+soakGrowth) {
		t.Errorf("memory grows: %d MiB at most in the second third, %d in the last", second>>20, last>>20)
	}
}

// resident returns the memory that a process has.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "VmRSS:")
	var kb int64
	if _, err := fmt.Sscan(text, &kb); err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
