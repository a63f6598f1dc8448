package stripe

// runBlocksMax bounds the blocks decoded at a time: all fragments' runs and what
// is computed from them stay in a core's cache.
const runBlocksMax = 16

// choose appends to dst the first k fragments that use lets count at block b,
// without those in except, and reports whether there are k.
func (st *stripe) choose(dst []int, b int, use func(i, b int) bool, except ...int) ([]int, bool) {
next:
	for i := range st.parts {
		for _, x := range except {
			if i == x {
				continue next
			}
		}
		if len(dst) < st.g.K && use(i, b) {
			dst = append(dst, i)
		}
	}
	return dst, len(dst) == st.g.K
}

func (st *stripe) good(i, b int) bool { return st.parts[i].good(b) }
func (st *stripe) has(i, b int) bool  { return st.parts[i].has(b) }

// own says at which blocks decode takes a fragment's own bytes, if they count.
type own uint8

const (
	ownFirst own = iota // at all
	ownLast             // where others are too few
)

// decode returns blocks from to to of one fragment: its own, or computed from k
// others of those that use lets count. It reports false where there is neither.
func (st *stripe) decode(index, from, to int, own own, use func(i, b int) bool, except ...int) ([]byte, bool) {
	except = append([]int{index}, except...)
	out := make([]byte, 0, (to-from)*blockBytes)
	required := make([]bool, len(st.parts))
	required[index] = true
	shards := make([][]byte, len(st.parts))
	for b := from; b < to; {
		chosen, ok := st.choose(nil, b, use, except...)
		if use(index, b) && (own == ownFirst || !ok) {
			out = append(out, st.parts[index].at(b, b+1)...)
			b++
			continue
		}
		if !ok {
			return nil, false
		}
		end := b + 1
		for end < to && end-b < runBlocksMax && all(chosen, end, use) && !(own == ownFirst && use(index, end)) {
			end++
		}
		clear(shards)
		for _, i := range chosen {
			shards[i] = st.parts[i].at(b, end)
		}
		shards[index] = out[len(out):len(out):cap(out)]
		if err := st.g.coder().ReconstructSome(shards, required); err != nil {
			panic(err) // k blocks of one length are enough
		}
		out = out[:len(out)+(end-b)*blockBytes]
		b = end
	}
	return out, true
}

// all reports whether use lets all of the chosen fragments count at block b.
func all(chosen []int, b int, use func(i, b int) bool) bool {
	for _, i := range chosen {
		if !use(i, b) {
			return false
		}
	}
	return true
}

// solver computes all fragments at a time. Its buffers are used again.
type solver struct {
	st     *stripe
	buffer [][]byte // per fragment, nil until needed
}

func newSolver(st *stripe) *solver {
	return &solver{st: st, buffer: make([][]byte, len(st.parts))}
}

// compute returns blocks from to to, at most runBlocksMax, of every fragment:
// the chosen k as they were read, the others as they follow from them, valid
// until the next call.
func (s *solver) compute(chosen []int, from, to int) [][]byte {
	shards := make([][]byte, len(s.buffer))
	for _, i := range chosen {
		shards[i] = s.st.parts[i].at(from, to)
	}
	for i := range shards {
		if shards[i] == nil {
			if s.buffer[i] == nil {
				s.buffer[i] = make([]byte, runBlocksMax*blockBytes)
			}
			shards[i] = s.buffer[i][:0]
		}
	}
	if err := s.st.g.coder().Reconstruct(shards); err != nil {
		panic(err) // k blocks of one length are enough
	}
	return shards
}
