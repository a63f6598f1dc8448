package interop

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"plinth/internal/host"
)

// TestLimitsAndCPU sets limits of a disk and bounds of CPU time while fio writes to
// it: they hold, are shown, and are there after a restart as far as they last.
func TestLimitsAndCPU(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, append([]string{"--cores", "0.5"}, small...)...)
	info := func() (d host.DiskInfo) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.command(t, "disk", "show", "vm1", "--json")), &d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	if out := s.command(t, "disk", "set", "vm1", "--write-iops", "200", "--bps", "64M", "--burst", "200ms"); !strings.Contains(out, "200 write IOPS, 64MB/s, bursts of 0.2 s") {
		t.Errorf("limits are shown as\n%s", out)
	}
	// 40 are the burst's, and the others take five milliseconds each.
	out := run(t, "fio", "--name=limited", "--ioengine=nbd", "--uri="+s.uri("unix", "vm1"), "--rw=randwrite", "--bs=4k",
		"--iodepth=16", "--size=16M", "--number_ios=240", "--output-format=json")
	var fio struct {
		Jobs []struct {
			Write struct {
				IOs     int64   `json:"total_ios"`
				Runtime int64   `json:"runtime"` // ms
				IOPS    float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out[strings.IndexByte(string(out), '{'):], &fio); err != nil {
		t.Fatal(err)
	}
	if w := fio.Jobs[0].Write; w.IOs < 240 || w.Runtime < 900 {
		t.Errorf("%d writes in %d ms at 200 a second", w.IOs, w.Runtime)
	}
	if d := info(); d.Limits.WriteIOPS != 200 || d.Waits.Limit == 0 {
		t.Errorf("the disk is %+v", d)
	}
	s.command(t, "disk", "set", "vm1", "--write-iops", "0")
	run(t, "fio", "--name=bounded", "--ioengine=nbd", "--uri="+s.uri("unix", "vm1"), "--rw=randwrite", "--bs=4k",
		"--iodepth=32", "--size=64M", "--refill_buffers")
	if d := info(); d.Limits.WriteIOPS != 0 || d.Limits.BPS != 64<<20 || d.Waits.CPU == 0 {
		t.Errorf("the disk is %+v", d)
	}
	var cpu host.CPUStatus
	if err := json.Unmarshal([]byte(s.command(t, "cpu", "set", "--mode", "insane", "--json")), &cpu); err != nil {
		t.Fatal(err)
	}
	if cpu.Mode != "insane" || cpu.UsedSeconds == 0 || cpu.Cores > cpu.MachineCores {
		t.Errorf("cpu is %+v", cpu)
	}
	if out := s.command(t, "status"); !strings.Contains(out, "insane: ") {
		t.Errorf("status says\n%s", out)
	}
	for _, bad := range [][]string{
		{"disk", "set", "vm1"}, {"disk", "set", "vm1", "--iops", "1"}, {"cpu", "set"},
		{"cpu", "set", "--cores", "0"}, {"cpu", "set", "--mode", "slow"}, {"cpu", "set", "--mode", "fast", "--cores", "1"},
	} {
		if out, complaint, code := plinth(t, []string{"PLINTH_API=" + s.api}, bad...); code != 1 || out != "" || complaint == "" {
			t.Errorf("plinth %q: status %d\n%s%s", bad, code, out, complaint)
		}
	}
	s.stop(t)
	s = start(t, data, small...)
	if d := info(); d.Limits.BPS != 64<<20 || d.Limits.BurstSeconds != 0.2 {
		t.Errorf("after a restart the disk is %+v", d)
	}
	if out := s.command(t, "cpu", "show"); !strings.Contains(out, "fast: ") {
		t.Errorf("cpu is\n%s", out)
	}
	s.stop(t)
}
