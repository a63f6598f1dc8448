//go:build !race

package chunk

import "testing"

// Not under the race detector, which makes sync.Pool drop items at random.
func TestHotPathDoesNotAllocate(t *testing.T) {
	h := newHouse(t, OpenerOptions{Verify: true})
	for _, suite := range suites {
		for _, content := range contents {
			plain := content.make(4096)
			fp := h.Sum(plain)
			sealed := make([]byte, 0, SealedCap(len(plain)))
			part := make([]byte, 0, SealedCap(1000))
			out := make([]byte, 0, len(plain))
			allocs := testing.AllocsPerRun(100, func() {
				var errs [4]error
				fp = h.Sum(plain)
				sealed, errs[0] = h.SealChunk(sealed[:0], suite, fp, plain)
				out, errs[1] = h.OpenChunk(out[:0], sealed, fp)
				part, errs[2] = h.SealPart(part[:0], suite, somePart, plain[:1000])
				out, errs[3] = h.OpenPart(out[:0], part, somePart)
				for _, err := range errs {
					if err != nil {
						t.Fatal(err)
					}
				}
			})
			if allocs >= 1 {
				t.Errorf("%s, %s: %v allocations", suite, content.name, allocs)
			}
		}
	}
}
