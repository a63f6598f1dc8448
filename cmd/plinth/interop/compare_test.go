package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompare runs every cell of the comparison with other servers once, shortly:
// what it prints is not judged.
func TestCompare(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	plot := filepath.Join(dir, "plot.svg")
	out, complaint, code := plinth(t, nil, "bench", "compare", "--dir", dir, "--rounds", "1", "--runtime", "100ms", "--sustained-runtime", "200ms",
		"--size", "32M", "--log-size", "256M", "--plot", plot, "--results", filepath.Join(dir, "results"))
	if code != 0 {
		t.Fatalf("status %d\n%s%s", code, out, complaint)
	}
	for _, server := range []string{"plinth, GCM", "plinth, XTS", "plinth, GCM, from flash", "nbdkit memory", "nbdkit file", "qemu-nbd raw", "qemu-nbd qcow2", "qemu-nbd qcow2, LUKS", "a raw file, fdatasync"} {
		if !strings.Contains(out, "| "+server+" |") {
			t.Errorf("no row of %s in\n%s", server, out)
		}
	}
	if b, err := os.ReadFile(plot); err != nil || !strings.HasPrefix(string(b), "<svg") {
		t.Errorf("plot %q: %v", b, err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "plinth-compare-*")); err != nil || len(names) > 0 {
		t.Errorf("%q is left, %v", names, err)
	}
}

// TestCompareProfile reads a profile of the real program by stages.
func TestCompareProfile(t *testing.T) {
	out, complaint, code := plinth(t, nil, "bench", "compare", "--dir", tempDir(t), "--profile", "write-32", "--sustained-runtime", "1s", "--size", "32M")
	if code != 0 {
		t.Fatalf("status %d\n%s%s", code, out, complaint)
	}
	for _, stage := range []string{"| fingerprint |", "| log |", "| NBD: protocol, sockets |", "| not in the profile |", "hosts at this load"} {
		if !strings.Contains(out, stage) {
			t.Errorf("no %q in\n%s", stage, out)
		}
	}
}

// TestCompareScale runs the scaling of disks, depth and size once, shortly.
func TestCompareScale(t *testing.T) {
	t.Parallel()
	out, complaint, code := plinth(t, nil, "bench", "compare", "--dir", tempDir(t), "--scale", "--runtime", "100ms", "--size", "64M")
	if code != 0 {
		t.Fatalf("status %d\n%s%s", code, out, complaint)
	}
	for _, row := range []string{"| 10240 GiB |", "| 32 | 8 |", "A new disk takes"} {
		if !strings.Contains(out, row) {
			t.Errorf("no %q in\n%s", row, out)
		}
	}
}
