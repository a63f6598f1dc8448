package bench

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/s2"
)

func TestContentIsAFunctionOfItsKey(t *testing.T) {
	c := content{seed: 1, compressible: 30, dedupe: 20}
	a, b := make([]byte, 3*pieceBytes+512), make([]byte, 3*pieceBytes+512)
	c.fill(a, 7)
	c.fill(b, 7)
	if !bytes.Equal(a, b) {
		t.Error("one key makes two contents")
	}
	if c.fill(b, 8); bytes.Equal(a, b) {
		t.Error("two keys make one content")
	}
	if (content{seed: 2, compressible: 30, dedupe: 20}).fill(b, 7); bytes.Equal(a, b) {
		t.Error("two seeds make one content")
	}
}

func TestContentCompressesAsAsked(t *testing.T) {
	for _, percent := range []int{0, 25, 50, 90, 100} {
		p := make([]byte, pieceBytes)
		sum := 0
		for key := range uint64(200) {
			content{compressible: percent}.fill(p, key)
			sum += len(s2.Encode(nil, p))
		}
		got := 100 - 100*sum/(200*pieceBytes)
		if got < percent-3 || got > percent+1 {
			t.Errorf("%d %% compressible: S2 saves %d %%", percent, got)
		}
	}
}

func TestContentRepeatsAsAsked(t *testing.T) {
	const pieces = 20000
	for _, percent := range []int{0, 30, 100} {
		seen := map[[uniqueBytes]byte]int{}
		p := make([]byte, 4*pieceBytes)
		for key := range uint64(pieces / 4) {
			content{seed: 3, compressible: 100, dedupe: percent}.fill(p, key)
			for i := 0; i < len(p); i += pieceBytes {
				seen[[uniqueBytes]byte(p[i:])]++
			}
		}
		repeated := 0
		for _, n := range seen {
			if n > 1 {
				repeated += n
			}
		}
		if got := 100 * repeated / pieces; got < percent-2 || got > percent+2 || percent == 0 && repeated > 0 {
			t.Errorf("%d %% duplicates: %d %% of pieces are", percent, got)
		}
		if percent == 100 && len(seen) > duplicates {
			t.Errorf("%d different duplicates, want %d", len(seen), duplicates)
		}
	}
}

func BenchmarkContent(b *testing.B) {
	p := make([]byte, pieceBytes)
	b.SetBytes(pieceBytes)
	for key := uint64(0); b.Loop(); key++ {
		content{compressible: 50, dedupe: 10}.fill(p, key)
	}
}
