package flashcache

import (
	"bufio"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
)

// trace is a sequence of chunks that are read.
type trace = iter.Seq[int]

// zipf draws numbers below n, 0 the most often; alpha may be below 1, where most
// block traces have it.
type zipf struct{ sums []float64 }

func newZipf(n int, alpha float64) *zipf {
	z := &zipf{make([]float64, n)}
	sum := 0.0
	for i := range n {
		sum += math.Pow(float64(i+1), -alpha)
		z.sums[i] = sum
	}
	return z
}

func (z *zipf) draw(rng *rand.Rand) int {
	return sort.SearchFloat64s(z.sums, rng.Float64()*z.sums[len(z.sums)-1])
}

// traces are what a cache of size chunks is tried with. Each ends after reads
// reads.
func traces(size, reads int) map[string]trace {
	rng := func() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }
	count := func(each func(i int) int) trace {
		return func(yield func(int) bool) {
			for i := range reads {
				if !yield(each(i)) {
					return
				}
			}
		}
	}
	hot, flat := newZipf(10*size, 1.0), newZipf(10*size, 0.7)
	const scanned = 1 << 40 // chunks from here on are read by scans
	return map[string]trace{
		"zipf 1.0": func() trace {
			r := rng()
			return count(func(int) int { return hot.draw(r) })
		}(),
		"zipf 0.7": func() trace {
			r := rng()
			return count(func(int) int { return flat.draw(r) })
		}(),
		// A backup reads every third chunk that is read, each once.
		"zipf 1.0 and a scan": func() trace {
			r := rng()
			return count(func(i int) int {
				if i%3 == 0 {
					return scanned + i
				}
				return hot.draw(r)
			})
		}(),
		// As much as the cache is large is scanned at once, then nothing for a while.
		"zipf 1.0 and scans": func() trace {
			r := rng()
			return count(func(i int) int {
				if i/size%4 == 3 {
					return scanned + i
				}
				return hot.draw(r)
			})
		}(),
		// What is hot moves on by a tenth of the cache in each round of it.
		"zipf 1.0, moving": func() trace {
			r := rng()
			return count(func(i int) int { return hot.draw(r) + i/size*(size/10) })
		}(),
		"loop 1.2": count(func(i int) int { return i % (size * 12 / 10) }),
		"loop 0.8, zipf 0.7": func() trace {
			r := rng()
			return count(func(i int) int {
				if i%2 == 0 {
					return scanned + i/2%(size*8/10)
				}
				return flat.draw(r)
			})
		}(),
		"boots": boots(size, reads),
	}
}

// boots is virtual machines that start one after another, eight at a time, from
// clones of one image: each reads the same half of a cache's size in nearly the same
// order, some of its own, and then what its work needs.
func boots(size, reads int) trace {
	const together, own = 8, 1 << 40
	image := size / 2
	return func(yield func(int) bool) {
		rng := rand.New(rand.NewPCG(3, 4))
		work := newZipf(size, 0.9)
		at, vm := [together]int{}, [together]int{}
		for i := range vm {
			vm[i], at[i] = i, -i*image/together
		}
		for range reads {
			i := rng.IntN(together)
			at[i]++
			chunk := 0
			switch n := at[i]; {
			case n < 0 || n >= image: // at work
				chunk = own + vm[i]*10*size + work.draw(rng)
			case n%10 == 9: // its own
				chunk = own + (vm[i]+1)*10*size - n
			default:
				chunk = n + rng.IntN(16)
			}
			if at[i] > 3*image { // another one is started
				vm[i], at[i] = slices.Max(vm[:])+1, 0
			}
			if !yield(chunk) {
				return
			}
		}
	}
}

// recorded reads a trace of a disk: lines of a read's byte offset and length. Its
// chunks are of 4 KiB.
func recorded(path string) ([]int, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var chunks []int
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var offset, n int
		if _, err := fmt.Sscan(lines.Text(), &offset, &n); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, lines.Text(), err)
		}
		for c := offset / 4096; c*4096 < offset+n; c++ {
			chunks = append(chunks, c)
		}
	}
	return chunks, nil
}
