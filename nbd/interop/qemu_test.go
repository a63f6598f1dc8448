package interop

import (
	"bytes"
	"path/filepath"
	"testing"
)

// convert in, compare, convert out to another format, compare.
func TestQemuImg(t *testing.T) {
	everywhere(t, evenDiskBytes, func(t *testing.T, h *house) {
		file, content := image(t, evenDiskBytes)
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, h.uri("disk"))
		h.check(t, content)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, h.uri("fixed"))
		out := filepath.Join(t.TempDir(), "out.qcow2")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", h.uri("fixed"), out)
		run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", out, h.uri("disk"))
	})
}

// Odd offsets and lengths, FUA, zeros with and without a hole, discard,
// several requests in flight.
func TestQemuIO(t *testing.T) {
	everywhere(t, diskBytes, func(t *testing.T, h *house) {
		out := run(t, "qemu-io", "-f", "raw",
			"-c", "write -P 0xaa 0 1M",
			"-c", "write -P 0xbb 12345 6789",
			"-c", "read -P 0xaa 0 12345",
			"-c", "read -P 0xbb 12345 6789",
			"-c", "read -P 0xaa 19134 100001",
			"-c", "write -f -P 0xcc 1 1",
			"-c", "read -P 0xcc 1 1",
			"-c", "write -z 300001 70001",
			"-c", "read -P 0 300001 70001",
			"-c", "write -z -u 400001 70001",
			"-c", "read -P 0 400001 70001",
			"-c", "read -P 0xaa 370002 29999",
			"-c", "aio_write -P 0x11 2000001 300001",
			"-c", "aio_write -P 0x22 3000001 300001",
			"-c", "aio_write -P 0x33 4000001 300001",
			"-c", "aio_flush",
			"-c", "read -P 0x11 2000001 300001",
			"-c", "read -P 0x22 3000001 300001",
			"-c", "read -P 0x33 4000001 300001",
			"-c", "discard 2000003 1000003",
			"-c", "flush",
			h.uri("disk"))
		for _, bad := range []string{"failed", "error", "Input/output"} {
			if bytes.Contains(out, []byte(bad)) {
				t.Errorf("qemu-io says:\n%s", out)
			}
		}
	})
}
