package stripe

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// survey is a whole stripe, read under its checksums, and what follows from it.
type survey struct {
	*stripe
	header datanode.SegmentHeader // of the fragments that are present
	known  bool                   // header and blocks are; otherwise nothing can be rewritten

	right   [][]byte   // per fragment: its blocks as they should be, where it has others; nil for none
	settled [][]bool   // per fragment, block: right has it
	parity  []mismatch // where checksums hold and parity does not
	lost    int        // blocks of the stripe of which fewer than k are good
}

// mismatch is a block at which parity does not fit. Index is the only fragment
// without which it would, or IndexUnknown.
type mismatch struct{ index, block int }

// survey reads all of a stripe. The caller gives the token back.
func (s *Store) survey(ctx context.Context, seg id.Segment) (*survey, error) {
	v, _, err := s.look(ctx, seg, false)
	return v, err
}

// look has the node test all of a stripe's fragments. With discard their data is not
// read, and bad blocks are only in the answers.
func (s *Store) look(ctx context.Context, seg id.Segment, discard bool) (*survey, []datanode.FragmentData, error) {
	list, err := s.list(seg)
	if err != nil {
		return nil, nil, err
	}
	request := &datanode.ReadFragmentsRequest{Verify: true, Discard: discard}
	for i, spindle := range list {
		request.Ranges = append(request.Ranges, datanode.FragmentRange{Spindle: spindle, Segment: seg, Index: uint8(i)})
	}
	reply, err := s.node.ReadFragments(ctx, request)
	if err == nil {
		err = answers("read", len(reply.Results), len(list))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read segment %s: %w", seg, err)
	}
	v := &survey{stripe: newStripe(s.geometry, seg, list)}
	for i := range list {
		d := &reply.Results[i]
		if d.Err != nil && d.Err.Code == datanode.CodeClosed {
			return nil, nil, fmt.Errorf("read segment %s: %w", seg, d.Err)
		}
		v.take(i, d)
		p := &v.parts[i]
		if p.state == present && (p.bytes == 0 || int(p.bytes) > v.g.NominalBytes() || !discard && len(p.data) != int(p.bytes)) {
			p.state = badFields
		}
	}
	if v.count(present, badHeader, badFields) == 0 {
		return nil, nil, v.failure(fmt.Sprintf("read segment %s", seg), true)
	}
	v.agree()
	return v, reply.Results, nil
}

// hold takes one of the tokens that bound the surveys in memory.
func hold(ctx context.Context, tokens chan struct{}) (release func(), err error) {
	select {
	case tokens <- struct{}{}:
		return func() { <-tokens }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// agree finds the header and length that most present fragments have, and notes
// the others as having bad fields. Without a majority none is believed.
func (v *survey) agree() {
	best, votes, tie := -1, 0, false
	for i := range v.parts {
		n := 0
		for j := range v.parts {
			if v.same(i, j) {
				n++
			}
		}
		if n > votes {
			best, votes, tie = i, n, false
		} else if n == votes && n > 0 && !v.same(i, best) {
			tie = true
		}
	}
	if best < 0 || tie {
		for i := range v.parts {
			v.blocks = max(v.blocks, len(v.parts[i].data)/blockBytes)
			if v.parts[i].state == present {
				v.parts[i].state = badFields
			}
		}
		return
	}
	v.header, v.known = v.parts[best].header, true
	v.blocks = int(v.parts[best].bytes) / blockBytes
	for i := range v.parts {
		if v.parts[i].state == present && !v.same(i, best) {
			v.parts[i].state = badFields
		}
	}
	v.right = make([][]byte, len(v.parts))
	v.settled = make([][]bool, len(v.parts))
}

// same reports whether two present fragments agree in all they should.
func (v *survey) same(i, j int) bool {
	p, q := &v.parts[i], &v.parts[j]
	return p.state == present && q.state == present && p.bytes == q.bytes &&
		p.header.Kind == q.header.Kind && p.header.DataBytes == q.header.DataBytes &&
		slices.Equal(p.header.Births, q.header.Births)
}

// solve compares all good blocks with each other and computes the others, as
// far as k good ones say what they are and no further good one objects.
func (v *survey) solve() {
	s := newSolver(v.stripe)
	for b := 0; b < v.blocks; {
		end := b + 1
		for end < v.blocks && end-b < runBlocksMax && v.alike(b, end) {
			end++
		}
		if !v.solveRun(s, b, end) {
			for ; b < end; b++ {
				if !v.solveRun(s, b, b+1) {
					v.blame(s, b)
				}
			}
		}
		b = end
	}
}

// alike reports whether the same fragments are good at both blocks.
func (v *survey) alike(a, b int) bool {
	for i := range v.parts {
		if v.good(i, a) != v.good(i, b) {
			return false
		}
	}
	return true
}

// goodAt returns the fragments that are good at a block.
func (v *survey) goodAt(b int) []int {
	var good []int
	for i := range v.parts {
		if v.good(i, b) {
			good = append(good, i)
		}
	}
	return good
}

// solveRun does the work of solve for blocks at which the same fragments are
// good. It reports false, and does nothing, if these contradict each other.
func (v *survey) solveRun(s *solver, from, to int) bool {
	good := v.goodAt(from)
	if len(good) < v.g.K {
		v.lost += to - from
		return true
	}
	all := s.compute(good[:v.g.K], from, to)
	for _, i := range good[v.g.K:] {
		if !bytes.Equal(all[i], v.parts[i].at(from, to)) {
			return false
		}
	}
	v.settle(all, from, to)
	return true
}

// settle takes the blocks of fragments that are not good from all.
func (v *survey) settle(all [][]byte, from, to int) {
	for i := range v.parts {
		if v.good(i, from) {
			continue
		}
		if v.right[i] == nil {
			v.right[i] = make([]byte, v.blocks*blockBytes)
			v.settled[i] = make([]bool, v.blocks)
		}
		copy(v.right[i][from*blockBytes:to*blockBytes], all[i])
		for b := from; b < to; b++ {
			v.settled[i][b] = true
		}
	}
}

// blame looks for the one fragment without which all others that are good at b
// agree. These must be k+1 at least: any k agree. That fragment is then not
// good at b. If there is none, or more than one, nothing is settled at b.
func (v *survey) blame(s *solver, b int) {
	good := v.goodAt(b)
	culprit, culprits := IndexUnknown, 0
	if len(good) > v.g.K+1 {
		for n, i := range good {
			others := slices.Delete(slices.Clone(good), n, n+1)
			all := s.compute(others[:v.g.K], b, b+1)
			if !slices.ContainsFunc(others[v.g.K:], func(j int) bool { return !bytes.Equal(all[j], v.parts[j].at(b, b+1)) }) {
				culprit, culprits = i, culprits+1
			}
		}
	}
	if culprits != 1 {
		v.parity = append(v.parity, mismatch{IndexUnknown, b})
		return
	}
	v.parity = append(v.parity, mismatch{culprit, b})
	v.parts[culprit].setBad(b)
	v.solveRun(s, b, b+1)
}

// damaged reports whether a fragment is not as it should be.
func (v *survey) damaged(i int) bool {
	return v.parts[i].state != present || slices.Contains(v.parts[i].bad, true)
}

// content returns what a fragment should hold, or nil unless every block of it is
// good or settled.
func (v *survey) content(i int) []byte {
	if !v.known || v.right[i] == nil {
		return nil
	}
	for b := range v.blocks {
		if v.good(i, b) {
			copy(v.right[i][b*blockBytes:], v.parts[i].at(b, b+1))
		} else if !v.settled[i][b] {
			return nil
		}
	}
	return v.right[i]
}

// rewrite replaces the damaged fragments that repair names, where all of their
// content is known and their spindle works, and reports which it has replaced.
func (s *Store) rewrite(ctx context.Context, v *survey, repair func(i int) bool) ([]bool, error) {
	done := make([]bool, len(v.parts))
	header := v.header
	header.Segment, header.K, header.M = v.segment, uint8(v.g.K), uint8(v.g.M)
	request := &datanode.WriteFragmentsRequest{Header: header, LayoutVersion: s.now.Load().Version, Replace: true}
	for i := range v.parts {
		if !v.damaged(i) || v.parts[i].state == unreachable || !repair(i) {
			continue
		}
		if data := v.content(i); data != nil {
			request.Fragments = append(request.Fragments, datanode.Fragment{Spindle: v.list[i], Index: uint8(i), Data: data})
		}
	}
	if len(request.Fragments) == 0 {
		return done, nil
	}
	reply, err := s.node.WriteFragments(ctx, request)
	if err == nil {
		err = answers("write", len(reply.Errors), len(request.Fragments))
	}
	if err != nil {
		return done, fmt.Errorf("repair segment %s: %w", v.segment, err)
	}
	for n, f := range request.Fragments {
		if reply.Errors[n] == nil {
			done[f.Index] = true
			s.repaired.Add(1)
		}
	}
	return done, nil
}
