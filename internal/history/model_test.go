package history

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	chunkBytes   = 4096
	sectorBytes  = 512
	chunkSectors = chunkBytes / sectorBytes
	// contents is how many different chunks there are, but for those that parts
	// of chunks make: few, so that most of them are found again.
	contents = 24
	// nearChunks are used at the front of a disk, and farChunks behind far, if it
	// is that large: a trim from there to here is too long for single entries.
	nearChunks, far, farChunks = 24, 4200, 8
)

// chunkOf is what a chunk holds: the content of each sector, 0 for zeros.
type chunkOf [chunkSectors]uint8

// image is what a disk or a snapshot holds.
type image struct {
	chunks int64 // its size
	at     map[int64]chunkOf
}

func (i *image) clone() *image { return &image{i.chunks, maps.Clone(i.at)} }

func (i *image) set(lba int64, c chunkOf) {
	if c == (chunkOf{}) {
		delete(i.at, lba)
	} else {
		i.at[lba] = c
	}
}

// used reports whether a chunk may hold data.
func used(lba int64) bool { return lba < nearChunks || lba >= far && lba < far+farChunks }

// places returns the chunks of the image that may hold data.
func (i *image) places() (out []int64) {
	for lba := range min(i.chunks, nearChunks) {
		out = append(out, lba)
	}
	for lba := int64(far); lba < min(i.chunks, far+farChunks); lba++ {
		out = append(out, lba)
	}
	return out
}

// model is one disk.
type model struct {
	head  *image
	snaps map[string]*image
}

// content has the bytes of each content at each sector of a chunk.
var content = func() (out [contents + 1][chunkSectors][sectorBytes]byte) {
	for c := 1; c <= contents; c++ {
		for s := range chunkSectors {
			r := rand.New(rand.NewPCG(uint64(c), uint64(s)))
			p := out[c][s][:]
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			if c%3 == 0 { // compressible
				copy(p, bytes.Repeat(p[:16], len(p)/16))
			}
		}
	}
	return out
}()

// bytes returns what the chunk holds.
func (c chunkOf) bytes() []byte {
	out := make([]byte, 0, chunkBytes)
	for s, n := range c {
		out = append(out, content[n][s][:]...)
	}
	return out
}

// whole returns a chunk of one content.
func whole(n uint8) (c chunkOf) {
	for i := range c {
		c[i] = n
	}
	return c
}

// parse returns what a chunk of bytes holds.
func parse(p []byte) (c chunkOf, err error) {
	for s := range c {
		part := p[s*sectorBytes : (s+1)*sectorBytes]
		n := slices.IndexFunc(content[:], func(of [chunkSectors][sectorBytes]byte) bool { return bytes.Equal(of[s][:], part) })
		if n < 0 {
			return c, fmt.Errorf("sector %d holds nothing that was ever written: %x…", s, part[:16])
		}
		c[s] = uint8(n)
	}
	return c, nil
}

// chunksOf returns the chunks that all images hold.
func chunksOf(disks map[string]*model) map[chunkOf]bool {
	out := map[chunkOf]bool{}
	for _, d := range disks {
		for _, i := range append(slices.Collect(maps.Values(d.snaps)), d.head) {
			for _, c := range i.at {
				out[c] = true
			}
		}
	}
	return out
}
