package chunk

import (
	"fmt"
	"testing"

	"github.com/klauspost/compress/s2"
)

// BenchmarkFingerprint, BenchmarkCompress, BenchmarkSeal and BenchmarkOpen are
// the stages of a chunk on one core; noise does not compress, text does, and half
// is what fio writes.
func BenchmarkFingerprint(b *testing.B) {
	h := newHouse(b, OpenerOptions{})
	for _, n := range []int{4096, 65536} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := noise(n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				h.Sum(p)
			}
		})
	}
}

func BenchmarkCompress(b *testing.B) {
	for _, content := range contents {
		b.Run(content.name, func(b *testing.B) {
			p := content.make(4096)
			dst := make([]byte, s2.MaxEncodedLen(len(p)))
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				compress(dst, p)
			}
		})
	}
}

func BenchmarkSeal(b *testing.B) { benchmarkSealed(b, false) }

func BenchmarkOpen(b *testing.B) { benchmarkSealed(b, true) }

func benchmarkSealed(b *testing.B, open bool) {
	h := newHouse(b, OpenerOptions{})
	for _, suite := range suites {
		for _, content := range contents {
			b.Run(suite.String()+"/"+content.name, func(b *testing.B) {
				p := content.make(4096)
				fp := h.Sum(p)
				sealed, err := h.SealChunk(nil, suite, fp, p)
				out := make([]byte, 0, SealedCap(len(p)))
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				for b.Loop() {
					if err != nil {
						b.Fatal(err)
					}
					if open {
						_, err = h.OpenChunk(out, sealed, fp)
					} else {
						_, err = h.SealChunk(out, suite, fp, p)
					}
				}
			})
		}
	}
}
