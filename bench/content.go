package bench

import "encoding/binary"

const (
	// pieceBytes is the unit in which content repeats and compresses: the
	// smallest chunk.
	pieceBytes = 4096
	// duplicates is the number of different pieces that duplicates are of.
	duplicates = 1024
	// uniqueBytes of a piece are always noise, so that no two are alike.
	uniqueBytes = 16
)

// content makes what is written. Two of equal fields make the same bytes for
// the same key.
type content struct {
	seed         uint64
	compressible int // percent of each piece that is one repeated byte
	dedupe       int // percent of pieces that are duplicates
}

// mix is the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable
// pseudorandom number generators, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill fills p for a key.
func (c content) fill(p []byte, key uint64) {
	key = mix(key ^ c.seed)
	for n := uint64(0); len(p) > 0; n++ {
		piece := p[:min(len(p), pieceBytes)]
		p = p[len(piece):]
		k := mix(key + n)
		if int(k%100) < c.dedupe {
			k = mix(c.seed) + k>>32%duplicates
		}
		c.fillPiece(piece, k)
	}
}

// fillPiece puts noise in front and repetition behind.
func (c content) fillPiece(p []byte, key uint64) {
	noise := min(max(len(p)*(100-c.compressible)/100, uniqueBytes), len(p))
	head, tail := p[:noise], p[noise:]
	x := mix(key)
	for len(head) >= 8 {
		x = x*0x5851f42d4c957f2d + 0x14057b7ef767814f
		binary.LittleEndian.PutUint64(head, x^x>>29)
		head = head[8:]
	}
	for i := range head {
		head[i] = byte(x >> (8 * i))
	}
	for i := range tail {
		tail[i] = 'p'
	}
}
