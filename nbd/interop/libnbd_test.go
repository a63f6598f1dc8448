package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// described is what nbdinfo --json says of an export, as far as it is checked.
type described struct {
	Name        string `json:"export-name"`
	Description string `json:"description"`
	Size        int64  `json:"export-size"`
	ReadOnly    bool   `json:"is_read_only"`
	MultiConn   bool   `json:"can_multi_conn"`
	Flush       bool   `json:"can_flush"`
	FUA         bool   `json:"can_fua"`
	Trim        bool   `json:"can_trim"`
	Zero        bool   `json:"can_zero"`
	Cache       bool   `json:"can_cache"`
	DF          bool   `json:"can_df"`
	FastZero    bool   `json:"can_fast_zero"`
	Minimum     int    `json:"block_size_minimum"`
	Preferred   int    `json:"block_size_preferred"`
	Maximum     int    `json:"block_size_maximum"`
}

var (
	disk = described{Name: "disk", Description: "a disk of a test", Size: diskBytes, MultiConn: true,
		Flush: true, FUA: true, Trim: true, Zero: true, Cache: true, DF: true, FastZero: true, Minimum: 1, Preferred: 4096, Maximum: 32 << 20}
	fixed = described{Name: "fixed", Size: diskBytes, ReadOnly: true, MultiConn: true,
		Flush: true, FUA: true, Cache: true, DF: true, Minimum: 1, Preferred: 4096, Maximum: 32 << 20}
)

func TestNbdinfo(t *testing.T) {
	everywhere(t, diskBytes, func(t *testing.T, h *house) {
		for _, test := range []struct {
			args []string
			want []described
		}{
			{[]string{"--list", "--json", h.uri("")}, []described{disk, fixed}},
			{[]string{"--json", h.uri("disk")}, []described{disk}},
			{[]string{"--json", h.uri("fixed")}, []described{fixed}},
		} {
			var got struct {
				Protocol string
				Exports  []described
			}
			if err := json.Unmarshal(run(t, "nbdinfo", test.args...), &got); err != nil {
				t.Fatal(err)
			}
			if got.Protocol != "newstyle-fixed" || len(got.Exports) != len(test.want) {
				t.Fatalf("nbdinfo %q: %+v", test.args, got)
			}
			for i, want := range test.want {
				if got.Exports[i] != want {
					t.Errorf("nbdinfo %q: %+v, want %+v", test.args, got.Exports[i], want)
				}
			}
		}
		if got := run(t, "nbdinfo", "--list", h.uri("")); !bytes.Contains(got, []byte(`export="fixed"`)) {
			t.Errorf("nbdinfo --list: %s", got)
		}
	})
}

// In and out over several connections, and from one export to another server.
func TestNbdcopy(t *testing.T) {
	everywhere(t, diskBytes, func(t *testing.T, h *house) {
		file, content := image(t, 48<<20)
		run(t, "nbdcopy", "--connections=4", "--requests=16", "--flush", file, h.uri("disk"))
		h.check(t, content)
		out := filepath.Join(t.TempDir(), "out")
		run(t, "nbdcopy", "--connections=4", h.uri("fixed"), out)
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != diskBytes || !bytes.Equal(got[:len(content)], content) {
			t.Errorf("%d bytes came out, not what went in", len(got))
		}
		other := serve(t, "unix", diskBytes)
		run(t, "nbdcopy", h.uri("disk"), other.uri("disk"))
		other.check(t, content)
	})
}

// nbdsh says to libnbd what no tool says: any byte, many in flight, FUA,
// and requests that a server must refuse.
const script = `
import errno
size = h.get_size()
h.zero(2 << 20, 0)
h.pwrite(b"odd", 12345)
assert h.pread(5, 12344) == b"\0odd\0"
h.pwrite(b"end", size - 3, nbd.CMD_FLAG_FUA)
assert h.pread(3, size - 3) == b"end"
h.zero(1, 12346, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(3, 12345) == b"o\0d"
h.trim(7, 12340, nbd.CMD_FLAG_FUA)
h.flush()

bufs, cookies = [], []
for i in range(256):
    data = bytes([i]) * 5000
    cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), i * 5001 + 1))
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
for i in range(256):
    buf = nbd.Buffer(5000)
    bufs.append(buf)
    cookies.append(h.aio_pread(buf, i * 5001 + 1))
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
for i in range(256):
    assert bufs[i].to_bytearray() == bytes([i]) * 5000, i

def refused(want, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        assert e.errnum == want, (e.errnum, want)
    else:
        assert False, "not refused"

h.set_strict_mode(0)
refused(errno.EINVAL, h.pread, 2, size - 1)
refused(errno.ENOSPC, h.pwrite, b"ab", size - 1)
refused(errno.ENOSPC, h.zero, 2, size - 1)
refused(errno.EINVAL, h.trim, 2, size - 1)
refused(errno.EINVAL, h.cache, 2, size - 1)
refused(errno.EINVAL, h.cache, 1, 0, 1 << 12)
refused(errno.EINVAL, h.pwrite, b"ab", 0, 1 << 12)
assert h.pread(3, size - 3) == b"end"
h.shutdown()
`

const readOnlyScript = `
import errno
h.set_strict_mode(0)
before = h.pread(512, 0)
for f in (lambda: h.pwrite(b"x", 0), lambda: h.zero(1, 0), lambda: h.trim(1, 0)):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == errno.EPERM, e.errnum
    else:
        assert False, "not refused"
h.flush()
assert h.pread(512, 0) == before
h.shutdown()
`

// What structured replies add: holes in reads, block status of both contexts,
// DF, REQ_ONE, FAST_ZERO and CACHE.
const structuredScript = `
import errno
h.trim(8 << 20, 32 << 20)
h.pwrite(b"x" * 65536, (32 << 20) + 65536)
for flags in (0, nbd.CMD_FLAG_DF):
    chunks = []
    def seen(data, off, status, err):
        chunks.append((off - (32 << 20), len(data), status))
        assert status != nbd.READ_HOLE or data == b"\0" * len(data)
    got = h.pread_structured(192 << 10, 32 << 20, seen, flags)
    assert got == b"\0" * 65536 + b"x" * 65536 + b"\0" * 65536
    if flags:
        assert chunks == [(0, 192 << 10, nbd.READ_DATA)], chunks
    else:
        assert sorted(chunks) == [(0, 65536, nbd.READ_HOLE), (65536, 65536, nbd.READ_DATA), (131072, 65536, nbd.READ_HOLE)], chunks

def status(n, off, flags=0):
    found = {}
    def extent(context, start, entries, err):
        assert start == off and err.value == 0
        found[context] = list(zip(entries[::2], entries[1::2]))
    h.block_status(n, off, extent, flags)
    return found
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
assert h.can_meta_context("base:allocation") and h.can_meta_context("qemu:allocation-depth")
assert status(192 << 10, 32 << 20) == {
    "base:allocation": [(65536, hole), (65536, 0), (65536, hole)],
    "qemu:allocation-depth": [(65536, 0), (65536, 1), (65536, 0)]}
assert status(192 << 10, 32 << 20, nbd.CMD_FLAG_REQ_ONE)["base:allocation"] == [(65536, hole)]
assert status(32 << 20, 0)["base:allocation"][-1][1] == hole

assert h.can_cache() and h.can_df() and h.can_fast_zero()
h.cache(1 << 20, 0)
h.zero(65536, (32 << 20) + 65536, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(1, 1, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert False, "not refused"
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e.errnum
assert len(status(32 << 20, 16 << 20)["base:allocation"]) == 1
h.shutdown()
`

func TestNbdsh(t *testing.T) {
	// It runs "python3", and only the distribution's knows libnbd.
	t.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH"))
	everywhere(t, diskBytes, func(t *testing.T, h *house) {
		connect := func(export string) string { return fmt.Sprintf("h.connect_uri(%q)", h.uri(export)) }
		for _, before := range []string{"h.set_request_structured_replies(False)", "h.set_request_structured_replies(True)"} {
			run(t, "nbdsh", "-c", before, "-c", connect("disk"), "-c", script)
			run(t, "nbdsh", "-c", before, "-c", connect("fixed"), "-c", readOnlyScript)
		}
		run(t, "nbdsh", "-c", `h.add_meta_context("base:allocation")`, "-c", `h.add_meta_context("qemu:allocation-depth")`,
			"-c", connect("disk"), "-c", structuredScript)
	})
}

// nbdinfo and qemu-img see what is data and what is not.
func TestMap(t *testing.T) {
	everywhere(t, evenDiskBytes, func(t *testing.T, h *house) {
		for _, at := range []int64{1 << 20, 40 << 20} {
			if err := h.disk.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 128<<10), at, false); err != nil {
				t.Fatal(err)
			}
		}
		var extents []struct{ Offset, Length, Type int64 }
		if err := json.Unmarshal(run(t, "nbdinfo", "--map", "--json", h.uri("disk")), &extents); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(extents), "[{0 1048576 3} {1048576 131072 0} {1179648 40763392 3} {41943040 131072 0} {42074112 58589184 3}]"; got != want {
			t.Errorf("nbdinfo --map: %s, want %s", got, want)
		}
		if got := string(run(t, "nbdinfo", "--map=qemu:allocation-depth", h.uri("disk"))); !strings.Contains(got, "131072") {
			t.Errorf("nbdinfo --map=qemu:allocation-depth: %s", got)
		}
		var ranges []struct {
			Start, Length int64
			Zero, Data    bool
		}
		if err := json.Unmarshal(run(t, "qemu-img", "map", "--output=json", "-f", "raw", h.uri("disk")), &ranges); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(ranges), "[{0 1048576 true false} {1048576 131072 false true} {1179648 40763392 true false} {41943040 131072 false true} {42074112 58589184 true false}]"; got != want {
			t.Errorf("qemu-img map: %s, want %s", got, want)
		}
	})
}
