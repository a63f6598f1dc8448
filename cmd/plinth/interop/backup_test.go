package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// backupBlock is the unit in which changes are told: a chunk.
const backupBlock = 4096

// backupHouse is a disk with a model, and a backup of its newest snapshot.
type backupHouse struct {
	*site
	rng     *rand.Rand
	model   []byte
	touched []bool // blocks written, trimmed or zeroed since the last snapshot
	file    string // the backup
}

// change writes, trims and zeroes in vm.
func (h *backupHouse) change(t *testing.T, operations int) {
	t.Helper()
	c := h.open(t, "vm")
	for range operations {
		n := 1 + h.rng.IntN(200<<10)
		off := h.rng.IntN(len(h.model) - n)
		p := h.model[off : off+n]
		var err error
		switch h.rng.IntN(5) {
		case 0: // whole chunks, so that what is read back is known
			off = off / backupBlock * backupBlock
			n = (n + backupBlock - 1) / backupBlock * backupBlock
			n = min(n, len(h.model)-off)
			clear(h.model[off : off+n])
			err = c.Trim(t.Context(), int64(off), int64(n), false)
		case 1:
			clear(p)
			err = c.Zero(t.Context(), int64(off), int64(n), h.rng.IntN(2) == 0, false)
		case 2: // what is there already
			err = c.WriteAt(t.Context(), p, int64(off), false)
		default:
			fill(h.rng, p)
			err = c.WriteAt(t.Context(), p, int64(off), false)
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := off / backupBlock; b*backupBlock < off+n; b++ {
			h.touched[b] = true
		}
	}
	leave(t, c)
}

// ranges are what nbdinfo says is changed.
func (h *backupHouse) ranges(t *testing.T, export, bitmap string) (out []fileRange) {
	t.Helper()
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal(run(t, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+bitmap, h.uri("unix", export)), &extents); err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.Offset != end || e.Type > 1 {
			t.Fatalf("nbdinfo: %+v after %d", e, end)
		}
		end += e.Length
		if e.Type == 1 {
			out = append(out, fileRange{e.Offset, e.Length})
		}
	}
	if end != int64(len(h.model)) {
		t.Errorf("the bitmap ends at %d", end)
	}
	return out
}

type fileRange struct{ Offset, Length int64 }

// checkRanges compares what is said to be changed with what is, and with what
// may be.
func (h *backupHouse) checkRanges(t *testing.T, ranges []fileRange, before []byte) {
	t.Helper()
	dirty := make([]bool, len(h.touched))
	for _, r := range ranges {
		for b := r.Offset / backupBlock; b*backupBlock < r.Offset+r.Length; b++ {
			dirty[b] = true
		}
	}
	before = append(slices.Clone(before), make([]byte, len(h.model)-len(before))...)
	for b := range dirty {
		at := b * backupBlock
		differs := !bytes.Equal(h.model[at:at+backupBlock], before[at:at+backupBlock])
		if differs && !dirty[b] {
			t.Fatalf("the block at %d differs and is not told", at)
		}
		if dirty[b] && !h.touched[b] {
			t.Fatalf("the block at %d is told and was not touched", at)
		}
	}
}

// A full backup, then incremental ones by nothing but a bitmap, each equal to its
// snapshot, over changes of size too; at last the disk is made again of the backup.
func TestIncrementalBackup(t *testing.T) {
	dir := tempDir(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &backupHouse{
		site: start(t, filepath.Join(dir, "data"), small...), rng: rand.New(rand.NewPCG(seed, 3)),
		model: make([]byte, snapshotBytes), touched: make([]bool, snapshotBytes/backupBlock), file: filepath.Join(dir, "backup"),
	}
	// Only the distribution's python3 knows libnbd.
	t.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH"))
	h.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
	h.change(t, 100)
	h.command(t, "snapshot", "create", "vm", "day0")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", h.uri("unix", "vm@day0"), h.file)
	equalFile(t, h.file, h.model)
	for day := 1; day <= 3; day++ {
		before := slices.Clone(h.model)
		clear(h.touched)
		if day == 2 {
			h.model = append(h.model, make([]byte, snapshotBytes/2)...)
			h.touched = append(h.touched, make([]bool, snapshotBytes/2/backupBlock)...)
			h.command(t, "disk", "resize", "vm", fmt.Sprint(len(h.model)))
		}
		h.change(t, 20)
		then, touched := slices.Clone(h.model), slices.Clone(h.touched)
		now, since := fmt.Sprint("day", day), fmt.Sprint("day", day-1)
		h.command(t, "snapshot", "create", "vm", now)
		h.change(t, 20) // which is of no concern
		h.model, h.touched = then, touched
		pair := "vm@" + now + ",since=" + since
		ranges := h.ranges(t, pair, since)
		h.checkRanges(t, ranges, before)
		h.checkDiff(t, since, now, ranges)
		run(t, "nbdsh", "-c", `h.add_meta_context("base:allocation")`, "-c", fmt.Sprintf("h.add_meta_context(%q)", "qemu:dirty-bitmap:"+since),
			"-c", fmt.Sprintf("h.connect_uri(%q)", h.uri("tcp", pair)),
			"-c", fmt.Sprintf("path, bitmap = %q, %q", h.file, "qemu:dirty-bitmap:"+since), "-c", backupScript)
		equalFile(t, h.file, then)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", h.file, h.uri("unix", "vm@"+now))
		h.rollbackModel(t, now)
	}
	h.command(t, "disk", "create", "again", fmt.Sprint(len(h.model)))
	run(t, "nbdcopy", h.file, h.uri("unix", "again"))
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", h.uri("tcp", "again"), h.uri("unix", "vm@day3"))
	h.verify(t)
	h.stop(t)
}

// rollbackModel makes the disk what the model is again.
func (h *backupHouse) rollbackModel(t *testing.T, snapshot string) {
	t.Helper()
	h.alone(t, "vm")
	h.command(t, "snapshot", "rollback", "vm@"+snapshot)
	h.equalExport(t, "vm", h.model)
}

// checkDiff compares plinth diff with the bitmap.
func (h *backupHouse) checkDiff(t *testing.T, from, to string, want []fileRange) {
	t.Helper()
	var report struct{ Extents []fileRange }
	if err := json.Unmarshal([]byte(h.command(t, "diff", "--json", "vm@"+from, "vm@"+to)), &report); err != nil {
		t.Fatal(err)
	}
	var got []fileRange
	for _, e := range report.Extents {
		if k := len(got) - 1; k >= 0 && got[k].Offset+got[k].Length == e.Offset {
			got[k].Length += e.Length
		} else {
			got = append(got, e)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("plinth diff %s %s: %v, the bitmap %v", from, to, got, want)
	}
}

// backupScript brings a copy of the older snapshot up to the newer one: it reads
// what is changed and data, and zeroes what is changed and zeros.
const backupScript = `
size, off, copied = h.get_size(), 0, 0
with open(path, "r+b") as f:
    f.truncate(size)
    while off < size:
        found = {}
        def seen(context, start, entries, err):
            found[context] = list(zip(entries[::2], entries[1::2]))
        h.block_status(size - off, off, seen)
        changed, allocated = found[bitmap], found["base:allocation"]
        assert sum(n for n, _ in changed) == sum(n for n, _ in allocated)
        while changed:
            (n, dirty), (m, state) = changed[0], allocated[0]
            step = min(n, m, 1 << 20)
            if dirty:
                f.seek(off)
                f.write(b"\0" * step if state & nbd.STATE_ZERO else h.pread(step, off))
                copied += step
            off += step
            for runs, left in (changed, n - step), (allocated, m - step):
                if left:
                    runs[0] = (left, runs[0][1])
                else:
                    runs.pop(0)
assert 0 < copied < size
h.shutdown()
`
