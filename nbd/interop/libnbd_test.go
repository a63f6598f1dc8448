package interop

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
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
	Minimum     int    `json:"block_size_minimum"`
	Preferred   int    `json:"block_size_preferred"`
	Maximum     int    `json:"block_size_maximum"`
}

var (
	disk = described{Name: "disk", Description: "a disk of a test", Size: diskBytes, MultiConn: true,
		Flush: true, FUA: true, Trim: true, Zero: true, Minimum: 1, Preferred: 4096, Maximum: 32 << 20}
	fixed = described{Name: "fixed", Size: diskBytes, ReadOnly: true, MultiConn: true,
		Flush: true, FUA: true, Minimum: 1, Preferred: 4096, Maximum: 32 << 20}
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
refused(errno.EINVAL, h.cache, 1, 0)
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

func TestNbdsh(t *testing.T) {
	// It runs "python3", and only the distribution's knows libnbd.
	t.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH"))
	everywhere(t, diskBytes, func(t *testing.T, h *house) {
		run(t, "nbdsh", "-u", h.uri("disk"), "-c", script)
		run(t, "nbdsh", "-u", h.uri("fixed"), "-c", readOnlyScript)
	})
}
