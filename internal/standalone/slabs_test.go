package standalone

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
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
			spindle: spindle, path: path, offset: int64(le.Uint32(b[24:])) * block, bytes: int64(le.Uint32(b[28:])) * block,
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

// flip changes one bit of a file.
func flip(t testing.TB, path string, offset int64, bit int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

// damage is one flipped unit: a block of a fragment, or its header (block -1).
type damage struct {
	segment uint64
	index   int
	block   int
}

// flipMany flips that many bits at random in what fragments have allocated,
// headers and parity included, each in another block or header, and never more
// than the two erasures of a stripe's row that 8+2 can mend.
func flipMany(t testing.TB, rng *rand.Rand, extents []extent, count int) map[damage]bool {
	t.Helper()
	total := allocated(extents)
	done := make(map[damage]bool)
	type row struct {
		segment uint64
		block   int
	}
	rows := make(map[row]int)       // bad blocks, headers aside
	worst := make(map[uint64]int)   // per segment: of its rows
	headers := make(map[uint64]int) // per segment
	blocks := make(map[damage]int)  // per fragment: bad blocks
	for tries := 0; len(done) < count; tries++ {
		if tries > 100*count {
			t.Fatalf("only %d flips fit", len(done))
		}
		at := rng.Int64N(total)
		var e *extent
		for i := range extents {
			if e = &extents[i]; at < e.bytes {
				break
			}
			at -= e.bytes
		}
		if e.parts != 1 {
			continue // its place in the fragment is not known here
		}
		d := damage{e.segment, e.index, int((at - e.header()) / block)}
		if at < e.header() {
			d.block = -1
		}
		header := damage{e.segment, e.index, -1}
		if done[d] || done[header] {
			continue
		}
		if d.block < 0 {
			if blocks[header] > 0 || headers[e.segment]+worst[e.segment] >= 2 {
				continue
			}
			headers[e.segment]++
		} else {
			r := row{e.segment, d.block}
			if headers[e.segment]+rows[r] >= 2 {
				continue
			}
			rows[r]++
			blocks[header]++
			worst[e.segment] = max(worst[e.segment], rows[r])
		}
		done[d] = true
		flip(t, e.path, e.offset+at, rng.IntN(8))
	}
	return done
}
