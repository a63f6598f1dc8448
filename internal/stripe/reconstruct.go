package stripe

import (
	"bytes"
	"context"
	"fmt"

	"plinth/datanode"
)

// combinationsTried bounds the sets of fragments that Reconstruct decodes from.
// With 8+2 there are at most 10 that leave others out.
const combinationsTried = 64

// Reconstruct is for a range whose bytes failed the caller's check although the
// node gave them. It reads the whole stripe under its checksums and looks for
// bytes that pass check: the fragment's own, then with what others give for
// blocks whose checksums fail, then for all blocks, then leaving out others
// whose checksums hold as well, and last with untested blocks. Check is called from this goroutine,
// often, and keeps nothing of its argument.
//
// It then rewrites, on spindles that work, each damaged fragment whose right
// content is beyond doubt. It does not restore missing ones, which a deletion
// may have taken: Check does. A repair that fails is no error here.
//
// Errors: ErrNotFound if no fragment is left; ErrCorrupt, which names segment,
// fragment and spindle, or ErrSpindle, if spindles that do not work may have
// what is needed; ErrInvalid; those of a whole call.
func (s *Store) Reconstruct(ctx context.Context, r Range, check func(p []byte) error) ([]byte, error) {
	if int(r.Index) >= s.geometry.Width() || r.Length == 0 || r.end() > uint64(s.geometry.NominalBytes()) {
		return nil, datanode.Errorf(datanode.ErrInvalid, "reconstruct %s", r)
	}
	release, err := hold(ctx, s.surveys)
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := s.survey(ctx, r.Segment)
	if err != nil {
		return nil, err
	}
	found := v.search(r, check)
	if found.data == nil {
		what := fmt.Sprintf("reconstruct %s, bytes %d+%d", describe(r.Segment, int(r.Index), v.list[r.Index]), r.Offset, r.Length)
		from, to := r.blocks()
		lacks := false
		for b := from; b < to; b++ {
			_, ok := v.choose(nil, b, v.good, int(r.Index))
			lacks = lacks || !ok
		}
		err := v.failure(what, lacks)
		if found.cause != nil {
			err = fmt.Errorf("%w (%v)", err, found.cause)
		}
		return nil, err
	}
	if found.computed {
		s.reconstructed.Add(1)
	}
	if v.known {
		v.solve()
		// What was asked for is found, so a failed repair is left to Check.
		_, _ = s.rewrite(ctx, v, func(i int) bool { return v.parts[i].state != missing })
	}
	return found.data, nil
}

// found is what a search has come to.
type found struct {
	data     []byte // nil: nothing passed
	computed bool   // with the help of other fragments
	cause    error  // why the last bytes did not pass
}

// search looks for bytes of the range that pass check.
func (v *survey) search(r Range, check func(p []byte) error) (f found) {
	from, to := r.blocks()
	index := int(r.Index)
	passes := func(blocks []byte) bool {
		skip := int(r.Offset) - from*blockBytes
		p := blocks[skip : skip+int(r.Length)]
		if f.cause = check(p); f.cause != nil {
			return false
		}
		f.data = bytes.Clone(p)
		return true
	}
	if v.parts[index].has(to-1) && passes(v.parts[index].at(from, to)) {
		return f
	}
	for _, tier := range []struct {
		use    func(i, b int) bool
		own    own
		tested bool // every block used is good
	}{{v.good, ownFirst, true}, {v.good, ownLast, true}, {v.has, ownFirst, false}, {v.has, ownLast, false}} {
		tries := 0
		for size := 0; size < v.g.M && tries < combinationsTried && f.data == nil; size++ {
			v.eachExcept(index, size, func(except []int) bool {
				tries++
				blocks, ok := v.decode(index, from, to, tier.own, tier.use, except...)
				if ok && passes(blocks) {
					f.computed = true
					if tier.tested {
						v.believe(r, tier.own, except)
					}
				}
				return f.data == nil && tries < combinationsTried
			})
		}
	}
	return f
}

// believe notes what follows from a check that passed: each byte it saw depends
// on all k good fragments it was computed from, so these are right there, and
// any other that differs from what they give is not. Blocks that fail their
// checksums prove nothing: of them only the bytes in the range were tested.
func (v *survey) believe(r Range, own own, except []int) {
	s := newSolver(v.stripe)
	except = append([]int{int(r.Index)}, except...)
	from, to := r.blocks()
	for b := from; b < to; b++ {
		chosen, ok := v.choose(nil, b, v.good, except...)
		if !ok || own == ownFirst && v.good(int(r.Index), b) {
			continue // the fragment's own block
		}
		all := s.compute(chosen, b, b+1)
		lo := max(0, int(r.Offset)-b*blockBytes)
		hi := min(blockBytes, int(r.end())-b*blockBytes)
		for i := range v.parts { // the chosen do not differ from themselves
			if v.good(i, b) && !bytes.Equal(all[i][lo:hi], v.parts[i].at(b, b+1)[lo:hi]) {
				v.parts[i].setBad(b)
			}
		}
	}
}

// eachExcept calls f with every set of that many fragments besides index, until
// it reports false.
func (v *survey) eachExcept(index, size int, f func([]int) bool) {
	eachCombination(len(v.parts)-1, size, func(c []int) bool {
		except := make([]int, len(c))
		for n, i := range c {
			if i >= index {
				i++
			}
			except[n] = i
		}
		return f(except)
	})
}
