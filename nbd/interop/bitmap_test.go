package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

const bitmapBytes = 64 << 20

// dirtyRanges are what has changed in the exports of these tests.
var dirtyRanges = [][2]int64{{0, 65536}, {1 << 20, 196608}, {40 << 20, 65536}, {bitmapBytes - 65536, 65536}}

// servePair serves an export "pair" with a bitmap "mon", and returns its URI.
func servePair(t *testing.T) (uri string) {
	t.Helper()
	disk := memory.New(bitmapBytes)
	for _, r := range dirtyRanges[1:] { // the first was zeroed
		if err := disk.WriteAt(t.Context(), bytes.Repeat([]byte{0x5a}, int(r[1])), r[0], false); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.WriteAt(t.Context(), make([]byte, 4096), 8<<20, false); err != nil { // data, and the same as before
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	exports := nbdtest.NewExports(nbd.Export{Name: "vm1@tue,since=mon", ReadOnly: true, MultiConn: true,
		Device: &nbdtest.Changed{Device: disk, Name: "mon", Dirty: dirtyRanges}})
	s := nbd.NewServer(exports, nbd.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "nbd+unix:///vm1@tue,since=mon?socket=" + socket
}

// extent is one of nbdinfo's.
type extent struct {
	Offset, Length, Type int64
}

// nbdinfo, qemu-img and libnbd read the bitmap as they read QEMU's.
func TestBitmapClients(t *testing.T) {
	uri := servePair(t)
	if out := run(t, "nbdinfo", uri); !bytes.Contains(out, []byte("qemu:dirty-bitmap:mon")) {
		t.Errorf("nbdinfo says\n%s", out)
	}
	var extents []extent
	if err := json.Unmarshal(run(t, "nbdinfo", "--map=qemu:dirty-bitmap:mon", "--json", uri), &extents); err != nil {
		t.Fatal(err)
	}
	var got [][2]int64
	for _, e := range extents {
		if e.Type == 1 {
			got = append(got, [2]int64{e.Offset, e.Length})
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(dirtyRanges) {
		t.Errorf("nbdinfo finds %v, want %v", got, dirtyRanges)
	}
	var ranges []struct {
		Start, Length int64
		Data          bool
	}
	source := "driver=nbd,server.type=unix,server.path=" + uri[len("nbd+unix:///vm1@tue,since=mon?socket="):] +
		",export=vm1@tue,,since=mon,x-dirty-bitmap=qemu:dirty-bitmap:mon"
	if err := json.Unmarshal(run(t, "qemu-img", "map", "--output=json", "--image-opts", source), &ranges); err != nil {
		t.Fatal(err)
	}
	got = nil
	for _, r := range ranges { // qemu-img shows dirty as "data": false
		if !r.Data {
			got = append(got, [2]int64{r.Start, r.Length})
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(dirtyRanges) {
		t.Errorf("qemu-img finds %v, want %v", got, dirtyRanges)
	}
	t.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH")) // only the distribution's python3 knows libnbd
	run(t, "nbdsh", "-c", `h.add_meta_context("base:allocation")`, "-c", `h.add_meta_context("qemu:dirty-bitmap:mon")`,
		"-c", fmt.Sprintf("h.connect_uri(%q)", uri), "-c", fmt.Sprintf("want = %s", pythonList(dirtyRanges)), "-c", bitmapScript)
}

func pythonList(ranges [][2]int64) string {
	b, err := json.Marshal(ranges)
	if err != nil {
		panic(err) // numbers
	}
	return string(b)
}

// Both contexts of an answer cover the same bytes, and together they tell what
// is to be copied and what to be zeroed.
const bitmapScript = `
assert h.can_meta_context("qemu:dirty-bitmap:mon") and h.can_meta_context("base:allocation")
size, off, dirty, zeroed = h.get_size(), 0, [], []
while off < size:
    found = {}
    def seen(context, start, entries, err):
        found[context] = list(zip(entries[::2], entries[1::2]))
    h.block_status(size - off, off, seen)
    changed, allocated = found["qemu:dirty-bitmap:mon"], found["base:allocation"]
    assert sum(n for n, _ in changed) == sum(n for n, _ in allocated), found
    at = off
    for n, flags in changed:
        if flags & 1:
            dirty.append([at, n])
        at += n
    off = at
assert dirty == want, dirty
h.shutdown()
`

// The suite for bitmaps holds for the server that they come from.
func TestQemuNbdBitmap(t *testing.T) {
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "image")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(bitmapBytes))
	run(t, "qemu-img", "bitmap", "--add", file, "mon")
	args := []string{"-f", "qcow2"}
	for _, r := range dirtyRanges {
		args = append(args, "-c", fmt.Sprintf("write %d %d", r[0], r[1]))
	}
	run(t, "qemu-io", append(args, file)...)
	dial := start(t, socket, "qemu-nbd", "--persistent", "--shared=16", "--read-only", "--format=qcow2", "--bitmap=mon",
		"--export-name=disk", "--socket="+socket, file)
	nbdtest.RunChanges(t, nbdtest.ChangesTarget{Dial: dial, Export: "disk", Bitmap: "mon", Dirty: dirtyRanges})
}
