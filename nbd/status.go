package nbd

import (
	"context"
	"fmt"
	"slices"

	"plinth/nbd/internal/wire"
)

// run is a run of bytes of one status in a context.
type run struct {
	n      int64
	status uint32
}

// runsMax bounds the runs of one answer in each context, statusBytes is what it
// is charged for: the runs and their descriptors in every context.
const (
	runsMax     = 4 << 10
	statusBytes = runsMax * 3 * (16 + 16)
)

// lanes are the answers of some contexts as they are collected. Neighbours that
// are alike in a context become one there.
type lanes struct {
	of   contexts
	runs [][]run
	most int // runs of one lane
}

// add appends n bytes to the lanes that status tells of, if that leaves each
// within its bound; else it reports false and adds nothing.
func (l *lanes) add(n int64, status func(metaContext) (s uint32, tells bool)) bool {
	for i, c := range l.of {
		k := len(l.runs[i])
		if s, tells := status(c); tells && k >= l.most && l.runs[i][k-1].status != s {
			return false
		}
	}
	for i, c := range l.of {
		lane := l.runs[i]
		switch s, tells := status(c); {
		case !tells:
		case len(lane) > 0 && lane[len(lane)-1].status == s:
			lane[len(lane)-1].n += n
		default:
			l.runs[i] = append(lane, run{n, s})
		}
	}
	return true
}

// cut shortens every lane to n bytes.
func (l *lanes) cut(n int64) {
	for i, lane := range l.runs {
		left := n
		for k := range lane {
			if left <= lane[k].n {
				lane[k].n = left
				l.runs[i] = lane[:k+1]
				break
			}
			left -= lane[k].n
		}
	}
}

// collect asks the device for what a BLOCK_STATUS wants to know. The device may
// say less than was asked; every context then says as little. With REQ_ONE the
// first border of any context ends it.
func (t *transmission) collect(r *request) error {
	l := lanes{r.contexts, make([][]run, len(r.contexts)), runsMax}
	if r.has(wire.CmdFlagReqOne) {
		l.most = 1
	}
	n, err := int64(r.Length), error(nil)
	if slices.ContainsFunc(l.of, func(c metaContext) bool { return c != contextDirty }) {
		n, err = t.allocation(r.ctx, int64(r.Offset), n, &l)
	}
	if err == nil && slices.Contains(l.of, contextDirty) {
		n, err = t.changes(r.ctx, int64(r.Offset), n, &l)
	}
	if err == nil && n == 0 {
		err = fmt.Errorf("the device tells nothing at %d", r.Offset)
	}
	if err != nil {
		return err
	}
	l.cut(n)
	r.runs = l.runs
	return nil
}

// allocation collects extents, and returns how many of the n bytes they cover.
func (t *transmission) allocation(ctx context.Context, off, n int64, l *lanes) (covered int64, err error) {
	add := func(e Extent) bool {
		k := min(max(e.N, 0), n-covered)
		if k > 0 && !l.add(k, func(c metaContext) (uint32, bool) { return c.status(e), c != contextDirty }) {
			return false
		}
		covered += k
		return covered < n
	}
	if t.extents == nil {
		add(Extent{N: n})
		return covered, nil
	}
	err = t.extents.Extents(ctx, off, n, add)
	return covered, err
}

// changes is allocation for what has changed.
func (t *transmission) changes(ctx context.Context, off, n int64, l *lanes) (covered int64, err error) {
	device, ok := t.device.(Changer)
	if !ok {
		return 0, fmt.Errorf("%T tells no changes", t.device)
	}
	err = device.Changes(ctx, off, n, func(k int64, dirty bool) bool {
		k = min(max(k, 0), n-covered)
		s := uint32(0)
		if dirty {
			s = wire.StateDirty
		}
		if k > 0 && !l.add(k, func(c metaContext) (uint32, bool) { return s, c == contextDirty }) {
			return false
		}
		covered += k
		return covered < n
	})
	return covered, err
}
