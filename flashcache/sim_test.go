package flashcache

import (
	"container/list"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

var (
	simChunks = flag.Int("sim-chunks", 4000, "chunks that the cache holds in TestSimEviction")
	simReads  = flag.Int("sim-reads", 100000, "reads of each trace")
	simTrace  = flag.String("sim-trace", "", "a disk's reads, as lines of byte offset and length, in place of the traces")
	simAll    = flag.Bool("sim-all", false, "try other settings of the cache, too")
)

// simSealed is a chunk that compresses to a half.
const simSealed = 2048

// onFlash is the cache itself.
type onFlash struct {
	*Cache
	t   testing.TB
	buf []byte
}

func newOnFlash(t testing.TB, chunks int, set func(*settings)) *onFlash {
	const region = 256 << 10
	size := int64(chunks) * (simSealed + fingerprintBytes + entryBytes)
	c := mustOpen(t, Options{
		FS: vfs.NewMem(), Size: dataStart + max(size/region, regionsMin)*region, RegionBytes: region,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if set != nil {
		set(&c.settings) // the writer waits for its first region
	}
	return &onFlash{c, t, make([]byte, 0, simSealed+Slack)}
}

func (f *onFlash) access(chunk int) bool {
	var seed [16]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(chunk)*0x9E3779B97F4A7C15)
	binary.LittleEndian.PutUint64(seed[8:], uint64(chunk)*0xD1B54A32D192ED03+1)
	fp := id.Fingerprint(mix(seed))
	if _, ok := f.Get(fp, f.buf); ok {
		return true
	}
	await(f.t, "room", func() bool {
		f.Put(fp, f.buf[:simSealed])
		return f.Contains(fp)
	})
	return false
}

// mix makes all bits depend on all.
func mix(b [16]byte) [16]byte {
	x, y := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
	for range 3 {
		x = (x ^ x>>31) * 0x7FB5D329728EA185
		y = (y ^ y>>27) * 0x81DADEF4BC2DD44D
		x, y = x+y, y^x<<17
	}
	binary.LittleEndian.PutUint64(b[:], x^x>>33)
	binary.LittleEndian.PutUint64(b[8:], y^y>>33)
	return b
}

// others are settings that were not chosen.
var others = map[string]func(*settings){
	"FIFO of regions":  func(s *settings) { *s = settings{smallPercent: 100} },
	"CLOCK of regions": func(s *settings) { s.smallPercent = 0 },
	"no ghosts":        func(s *settings) { s.ghosts = false },
	"small 5 %":        func(s *settings) { s.smallPercent = 5 },
	"small 20 %":       func(s *settings) { s.smallPercent = 20 },
	"written 1.1":      func(s *settings) { s.writePercent = 109 },
	"written 2":        func(s *settings) { s.writePercent = 200 },
}

// play returns the share of a trace's reads that hit, of those that a RAM cache of
// a twentieth of the size leaves, after the first quarter.
func play(p policy, t trace, size, reads int) float64 {
	ram := &lru{size: size / 20, at: map[int]*list.Element{}}
	all, hits, n := 0, 0, 0
	for chunk := range t {
		n++
		if ram.access(chunk) {
			continue
		}
		hit := p.access(chunk)
		if n > reads/4 {
			all++
			if hit {
				hits++
			}
		}
	}
	return float64(hits) / float64(max(all, 1))
}

// TestSimEviction compares the cache with what else could be done, on chunks that
// a RAM cache in front of it does not have.
func TestSimEviction(t *testing.T) {
	reads := *simReads
	all := traces(*simChunks, reads)
	if *simTrace != "" {
		chunks, err := recorded(*simTrace)
		ok(t, err)
		all, reads = map[string]trace{filepath.Base(*simTrace): slices.Values(chunks)}, len(chunks)
	}
	columns := []string{"FIFO", "CLOCK", "LRU", "SIEVE", "S3-FIFO", "cache"}
	start := func(column string) policy {
		n := *simChunks
		switch column {
		case "FIFO":
			return &fifo{size: n, got: map[int]bool{}}
		case "CLOCK":
			return &fifo{size: n, got: map[int]bool{}, reinsert: true}
		case "LRU":
			return &lru{size: n, at: map[int]*list.Element{}}
		case "SIEVE":
			return &sieve{size: n, at: map[int]*list.Element{}}
		case "S3-FIFO":
			return &s3{size: n, freq: map[int]int{}, ghost: map[int]bool{}}
		}
		return newOnFlash(t, n, others[column])
	}
	if *simAll {
		columns = append(columns, slices.Sorted(maps.Keys(others))...)
	}
	t.Logf("%-20s %s", "hits, %", strings.Join(columns, "  "))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		hits := map[string]float64{}
		line, written := "", ""
		for _, column := range columns {
			p := start(column)
			hits[column] = play(p, all[name], *simChunks, reads)
			line += fmt.Sprintf("%*.1f  ", len(column), 100*hits[column])
			if f, flash := p.(*onFlash); flash {
				s := f.Stats()
				written += fmt.Sprintf(" %.2f", float64(s.WrittenBytes)/float64(s.PutBytes))
				if s.WrittenBytes*100 > s.PutBytes*120 && column == "cache" {
					t.Errorf("%s: %d bytes are written of %d", name, s.WrittenBytes, s.PutBytes)
				}
				ok(t, f.Close())
			}
		}
		t.Logf("%-20s %s written%s", name, line, written)
		if strings.Contains(name, "scan") && hits["cache"] < hits["LRU"]+0.05 {
			t.Errorf("%s: the cache has %.1f %%, LRU %.1f %%", name, 100*hits["cache"], 100*hits["LRU"])
		}
	}
}
