package interop

import (
	"bytes"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// jobMiB is what each fio job writes: acceptance asks for 256 (just fio-full).
var jobMiB = flag.Int("job-mib", 24, "MiB that each fio job writes")

// Four jobs write disjoint ranges in blocks of many sizes, 32 in flight each,
// and read everything back by its checksum.
func TestFio(t *testing.T) {
	size := *jobMiB
	room := []string{
		"--nbd", "127.0.0.1:0", "--log-size", fmt.Sprint(max(256, 2*size), "M"),
		"--spindle-size", fmt.Sprint(max(128, 4*size), "M"), "--destage-interval", "500ms",
	}
	s := start(t, filepath.Join(tempDir(t), "data"), room...)
	for _, network := range networks {
		disk := "fio-" + network
		s.command(t, "disk", "create", disk, fmt.Sprint(4*size, "M"))
		run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+s.uri(network, disk), "--numjobs=4",
			fmt.Sprintf("--size=%dm", size), fmt.Sprintf("--offset_increment=%dm", size),
			"--rw=randwrite", "--bsrange=512-1m", "--bs_unaligned=0", "--iodepth=32", "--fsync=64",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--verify_state_save=0",
			"--allow_file_create=0", "--eta=never", "--group_reporting")
	}
	if out := s.command(t, "verify"); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("verify says:\n%s", out)
	}
	s.stop(t)
}

// Odd offsets and lengths, FUA, zeros with and without a hole, discard, several
// requests in flight; the last state is there after a crash and after a restart.
func TestQemuIO(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, small...)
	after := []string{
		"read -P 0xaa 0 1", "read -P 0xcc 1 1", "read -P 0xaa 2 12343", "read -P 0xbb 12345 6789", "read -P 0xaa 19134 100001",
		"read -P 0 300001 70001", "read -P 0 400001 70001", "read -P 0xaa 370002 29999",
		"read -P 0x11 2000001 300001", "read -P 0x33 4000001 300001",
		"read -P 0x77 10737418239 1",
	}
	for _, network := range networks {
		commands := append([]string{
			"write -P 0xaa 0 1M", "write -P 0xbb 12345 6789", "read -P 0xaa 0 12345", "read -P 0xbb 12345 6789",
			"write -f -P 0xcc 1 1", "write -z 300001 70001", "write -z -u 400001 70001",
			"aio_write -P 0x11 2000001 300001", "aio_write -P 0x22 3000001 300001", "aio_write -P 0x33 4000001 300001", "aio_flush",
			"discard 3000001 300001", "write -P 0x77 10737418239 1", "flush",
		}, after...)
		s.qemuIO(t, network, commands)
	}
	s.kill()
	s = start(t, data, small...)
	s.qemuIO(t, "unix", after)
	s.stop(t)
	s = start(t, data, small...)
	s.qemuIO(t, "tcp", after)
	s.stop(t)
}

// qemuIO runs commands on vm1.
func (s *site) qemuIO(t *testing.T, network string, commands []string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := run(t, "qemu-io", append(args, s.uri(network, "vm1"))...)
	for _, bad := range []string{"failed", "error", "Input/output"} {
		if bytes.Contains(out, []byte(bad)) {
			t.Fatalf("qemu-io says:\n%s", out)
		}
	}
}
