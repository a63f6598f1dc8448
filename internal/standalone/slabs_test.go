package standalone

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// extent is a run of blocks that a fragment has in a slab, as the slab's own
// table says: read here by docs/format/spindle.md, without the spindles' code.
type extent struct {
	spindle int
	path    string
	slot    int64 // of the slab's table: where it is in the file, bytes
	offset  int64 // in the file, bytes
	bytes   int64
	segment uint64
	index   int
	data    int // bytes of the whole fragment's data
	parts   int
}

const block = 4096

// header returns how many bytes of the fragment are its header.
func (e *extent) header() int64 { return int64(1216+4*(e.data/block)+block-1) / block * block }

// spindleDir is where a pool keeps a spindle.
func spindleDir(dir string, n int) string {
	return filepath.Join(dir, "datanode", fmt.Sprintf("spindle-%02d", n))
}

// walkSlabs reads every table of every spindle that is there. Only the newest of
// several fragments of one name counts.
func walkSlabs(t testing.TB, dir string) []extent {
	t.Helper()
	var out []extent
	for n := range 12 {
		super, err := os.ReadFile(filepath.Join(spindleDir(dir, n), "spindle"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		paths, err := filepath.Glob(filepath.Join(spindleDir(dir, n), "slab-*"))
		if err != nil {
			t.Fatal(err)
		}
		newest := map[[2]uint64]uint64{}
		serials := map[int]uint64{}
		first := len(out)
		for number, path := range paths {
			for _, e := range walkSlab(t, n, uint32(number), path, super[16:32]) {
				serials[len(out)] = e.serial
				name := [2]uint64{e.segment, uint64(e.index)}
				newest[name] = max(newest[name], e.serial)
				out = append(out, e.extent)
			}
		}
		kept := out[:first]
		for i := first; i < len(out); i++ {
			if serials[i] == newest[[2]uint64{out[i].segment, uint64(out[i].index)}] {
				kept = append(kept, out[i])
			}
		}
		out = kept
	}
	return out
}

type entry struct {
	extent
	serial uint64
}

func walkSlab(t testing.TB, spindle int, number uint32, path string, pool []byte) []entry {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	blocks := info.Size() / block
	table := make([]byte, (blocks-1+64)/65*block)
	if _, err := f.ReadAt(table, block); err != nil {
		t.Fatal(err)
	}
	var out []entry
	for slot := 0; slot < len(table)/64; slot++ {
		b := table[slot*64:][:64]
		where := le.AppendUint32(append([]byte(nil), pool...), uint32(spindle))
		where = le.AppendUint32(le.AppendUint32(where, number), uint32(slot))
		sum := crc32.Checksum(append(where, b[:60]...), crc32.MakeTable(crc32.Castagnoli))
		if b[0] != 1 || sum != le.Uint32(b[60:]) {
			continue
		}
		out = append(out, entry{extent{
			spindle: spindle, path: path, slot: block + int64(slot)*64, offset: int64(le.Uint32(b[24:])) * block, bytes: int64(le.Uint32(b[28:])) * block,
			segment: le.Uint64(b[8:]), index: int(b[1]), data: int(le.Uint32(b[32:])), parts: int(le.Uint16(b[4:])),
		}, le.Uint64(b[16:])})
	}
	return out
}

// allocated sums what fragments take.
func allocated(extents []extent) (sum int64) {
	for _, e := range extents {
		sum += e.bytes
	}
	return sum
}

// diskUsage is what du says of a directory: the blocks that its files take.
func diskUsage(t testing.TB, dir string) (sum int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		sum += st.Blocks * 512
	}
	return sum
}
