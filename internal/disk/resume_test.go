package disk

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// mute is a node that does not answer an append or a sync.
type mute struct {
	datanode.Node
	done           atomic.Bool  // it carries out what it does not answer
	appends, syncs atomic.Int32 // the one that gets no answer: 1 is the next
}

func (m *mute) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if m.appends.Add(-1) != 0 {
		return m.Node.Append(ctx, r)
	}
	if m.done.Load() {
		if _, err := m.Node.Append(ctx, r); err != nil {
			return nil, err
		}
	}
	return nil, datanode.ErrOutcome
}

func (m *mute) Sync(ctx context.Context, r *datanode.SyncRequest) error {
	if m.syncs.Add(-1) != 0 {
		return m.Node.Sync(ctx, r)
	}
	return datanode.ErrUnreachable
}

// An append gets no answer, and the disk is opened again: the next owner says
// whether it was done, and just what was done is read.
func TestResume(t *testing.T) {
	for _, done := range []bool{false, true} {
		var node *mute
		h := newHouse(t, func(n datanode.Node) datanode.Node {
			node = &mute{Node: n}
			return node
		})
		node.done.Store(done)
		p := h.session()
		p.LogBytes = 16 << 20 // a portion is 2 MiB
		d := h.open(p, 1)
		c := newContent(1)
		h.fill(d, c, 20)
		h.ok(h.round(d))
		h.fill(d, c, 20)

		carried := func(d *Disk, part *Interrupted, doubt bool) {
			t.Helper()
			for pos, want := range map[id.Pos]bool{part.LoggedAt: true, part.DoubtAt: doubt} {
				if got, err := d.Carried(part.Epoch, pos); err != nil || got != want {
					t.Fatalf("position %d of epoch %d is in the log: %v, %v; want %v", pos, part.Epoch, got, err, want)
				}
			}
		}
		node.appends.Store(2)
		all := bytes.Repeat([]byte{7}, houseDiskBytes)
		err := d.WriteAt(t.Context(), all, 0, false)
		var part *Interrupted
		if !errors.As(err, &part) || part.Logged != 2<<20 || part.Doubt != 2<<20 || !errors.Is(err, datanode.ErrOutcome) || !errors.Is(err, ErrFailed) {
			t.Fatalf("a write whose second append gets no answer: %#v", err)
		}
		var later *Interrupted
		if err := d.WriteAt(t.Context(), all[:4096], 0, false); errors.As(err, &later) && later.Doubt != 0 || !errors.Is(err, ErrFailed) {
			t.Fatalf("a later write: %#v", err)
		}
		h.ok(d.Close())
		tail := d.Tail()

		if done {
			copy(c.data, all)
		} else {
			copy(c.data, all[:2<<20])
		}
		// Once more, as if that session had ended, too: it changes no operations, but
		// destages what is there.
		for range 2 {
			d, err = h.resume(h.session(), 1, tail)
			h.ok(err)
			carried(d, part, done)
			h.same(d, c)
			h.ok(h.round(d))
			h.ok(d.Checkpoint(t.Context()))
			h.ok(d.Close())
		}

		lost := *tail
		lost.known.pos = part.DoubtAt + 2
		_, err = h.resume(h.session(), 1, &lost)
		h.fails("the log lacks what was acknowledged", err, ErrCorrupt)
		d = h.open(h.session(), 1)
		h.ok(c.write(t.Context(), d))
		h.ok(d.Close())
		newer := d.Tail()
		d, err = h.resume(h.session(), 1, tail) // as one whose disk another host has had
		h.ok(err)
		h.same(d, c)
		h.ok(d.Close())
		d, err = h.resume(h.session(), 1, newer)
		h.ok(err)
		h.same(d, c)
		h.ok(h.round(d))
		h.ok(d.Checkpoint(t.Context()))
		h.ok(d.Close())
		d, err = h.resume(h.session(), 1, tail)
		h.ok(err)
		h.same(d, c)
		carried(d, part, done)
		if _, err := d.Carried(d.Epoch()+1, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("an owner is asked for a later one: %v", err)
		}
	}
}

// What is in the log and not known to be stable is not written again.
func TestResumeUnsynced(t *testing.T) {
	var node *mute
	h := newHouse(t, func(n datanode.Node) datanode.Node {
		node = &mute{Node: n}
		return node
	})
	d := h.open(h.session(), 1)
	for name, call := range map[string]func() error{
		"write": func() error { return d.WriteAt(t.Context(), make([]byte, 5000), 100, true) },
		"zero":  func() error { return d.Zero(t.Context(), 100, 5000, true) },
		"trim":  func() error { return d.Trim(t.Context(), 100, 5000, true) },
	} {
		node.syncs.Store(1)
		err := call()
		var part *Interrupted
		if !errors.As(err, &part) || part.Logged != 5000 || part.Doubt != 0 || !errors.Is(err, datanode.ErrUnreachable) {
			t.Errorf("%s: %#v", name, err)
		}
	}
}
