package standalone

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/host"
)

// slotBytes is what a chunk takes of its segment's slot table in the index, by
// docs/format/index.md, and slotToldBytes more the first one of a fragment.
const (
	slotBytes     = 2 + 16
	slotToldBytes = 2 + 4 + 4
)

// TestSimStoredBesideIdeal compares what a data set takes, before parity, with what
// the codec makes of each distinct chunk: headers, padding and what is left over at
// the ends of fragments must be at most 4 % on top, with slot tables too but where
// half of each chunk goes and each has a tag.
func TestSimStoredBesideIdeal(t *testing.T) {
	const size, chunkBytes = 256 << 20, 4096
	half := func(_ *rand.Rand, p []byte) { clear(p[chunkBytes/2:]) }
	second := func(rng *rand.Rand, p []byte) {
		if rng.IntN(2) == 0 {
			clear(p[chunkBytes/2:])
		}
	}
	for _, c := range []struct {
		name string
		// fill makes a chunk from noise.
		fill  func(rng *rand.Rand, p []byte)
		suite chunk.Suite
		// most times the ideal may be stored, slot tables included.
		most float64
	}{
		{"half of each chunk", half, chunk.AES256GCM, 1.044},
		{"half of each chunk, XTS", half, chunk.AES256XTS, 1.037},
		{"each second chunk", second, chunk.AES256GCM, 1.032},
	} {
		t.Run(c.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			data := make([]byte, size)
			ideal, distinct, codec := int64(0), 0, make([]byte, s2.MaxEncodedLen(chunkBytes))
			for off := 0; off < size; off += chunkBytes {
				p := data[off : off+chunkBytes]
				if off > 0 && rng.IntN(10) < 3 {
					from := rng.IntN(off/chunkBytes) * chunkBytes
					copy(p, data[from:from+chunkBytes])
					continue
				}
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				c.fill(rng, p)
				ideal += int64(min(len(s2.Encode(codec, p)), chunkBytes))
				distinct++
			}
			opts := quiet(t, t.TempDir())
			opts.Node.LogBytes = 256 << 20
			opts.Host.DestageInterval = time.Hour // rounds are as long as the buffer has them
			s := open(t, opts)
			if _, err := s.Host.CreateDisk(t.Context(), host.DiskSpec{Name: "vm1", Bytes: size, Cipher: c.suite.String()}); err != nil {
				t.Fatal(err)
			}
			d, release := attach(t, s, "vm1")
			write(t, d, data, 0)
			settle(t, s)
			kinds := map[uint64]datanode.Kind{}
			segments := 0
			reply, err := s.Node.DescribeSegments(t.Context(), &datanode.DescribeSegmentsRequest{Max: 4096})
			if err != nil || reply.More {
				t.Fatal(err, reply.More)
			}
			for _, d := range reply.Segments {
				if kinds[uint64(d.Segment)] = d.Kind; d.Kind == datanode.KindChunks {
					segments++
				}
			}
			var fragments int64
			for _, e := range walkSlabs(t, opts.Dir) {
				if e.index < 8 && kinds[e.segment] == datanode.KindChunks { // before parity: 8 of 8+2
					fragments += e.bytes
				}
			}
			tables := int64(distinct*slotBytes + segments*8*slotToldBytes)
			stored := fragments + tables
			bare, ratio := float64(fragments)/float64(ideal), float64(stored)/float64(ideal)
			t.Logf("%d distinct chunks of %d in %d segments: ideal %d, fragments %d (%.4f), slot tables %d: %.4f",
				distinct, size/chunkBytes, segments, ideal, fragments, bare, tables, ratio)
			if bare < 1 || bare > 1.04 || ratio > c.most {
				t.Errorf("stored is %.4f of the ideal, and %.4f with slot tables: at most 1.04 and %.3f are wanted", bare, ratio, c.most)
			}
			release()
			shut(t, s)
		})
	}
}
