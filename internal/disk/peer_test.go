package disk

import (
	"bytes"
	"context"
	"testing"

	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/ramcache"
)

// lender is another host's flash. change, if set, is what it makes of what it has, nil:
// nothing is here.
type lender struct {
	flash
	change        func(sealed []byte) []byte
	asked, failed int
}

func (l *lender) Get(_ context.Context, fps []id.Fingerprint, got func(i int, sealed []byte) bool) {
	for i := range fps {
		j := len(fps) - 1 - i // in no order
		l.asked++
		sealed, ok := l.flash.Get(fps[j], nil)
		if ok && l.change != nil {
			sealed = l.change(sealed)
		}
		if len(sealed) > 0 && !got(j, sealed) {
			l.failed++
		}
	}
}

// TestPeer reads what another host has in its flash, and what it changes.
func TestPeer(t *testing.T) {
	const chunks = 150 // more than are opened in one part
	h := newHouse(t, nil)
	far := &lender{flash: flash{chunks: map[id.Fingerprint][]byte{}}}
	p := h.session()
	p.Flash = &far.flash // the host before, as yet
	d := h.open(p, 1)
	content := random(9, chunks*int(chunk.SizeDefault))
	h.ok(d.WriteAt(t.Context(), content, 0, false))
	h.ok(h.round(d))
	h.ok(d.ReadAt(t.Context(), make([]byte, len(content)), 0))
	d.cfg.Peer = far
	read := func(what string, near *flash, stored, cached, lent, failed int) {
		t.Helper()
		var err error
		p.RAM, err = ramcache.New(16 << 20)
		h.ok(err)
		defer p.RAM.Close()
		p.Flash = nil
		if near != nil {
			p.Flash = near
		}
		far.asked, far.failed = 0, 0
		before := d.Stats()
		got := make([]byte, len(content))
		h.ok(d.ReadAt(t.Context(), got[100:], 100))
		if !bytes.Equal(got[100:], content[100:]) {
			t.Errorf("%s: wrong content", what)
		}
		after := d.Stats()
		s, c, l := after.ChunkReads-before.ChunkReads, after.FlashReads-before.FlashReads, after.PeerReads-before.PeerReads
		if s != int64(stored) || c != int64(cached) || l != int64(lent) || far.failed != failed {
			t.Errorf("%s: %d chunks of segments, %d of flash, %d of another host, %d not opened, want %d, %d, %d, %d",
				what, s, c, l, far.failed, stored, cached, lent, failed)
		}
		if cached+stored+lent != chunks || far.asked != chunks-cached {
			t.Errorf("%s: %d were asked for", what, far.asked)
		}
		far.asked = 0
		h.ok(d.ReadAt(t.Context(), got, 0))
		if again := d.Stats(); far.asked != 0 || again.ChunkReads != after.ChunkReads || !bytes.Equal(got, content) {
			t.Errorf("%s: RAM has not all", what)
		}
	}
	near := &flash{chunks: map[id.Fingerprint][]byte{}}
	read("without flash of its own", nil, 0, 0, chunks, 0)
	read("from the other host", near, 0, 0, chunks, 0)
	read("from its own flash then", near, 0, chunks, 0, 0)
	n := 0
	for fp := range near.chunks {
		if n++; n <= 50 {
			delete(near.chunks, fp)
		}
	}
	read("what its own has not", near, 0, chunks-50, 50, 0)
	far.change = func(p []byte) []byte { p[len(p)-20] ^= 1; return p }
	read("damaged", nil, chunks, 0, 0, chunks)
	far.change = func(p []byte) []byte { return p[:len(p)/2] }
	read("short", nil, chunks, 0, 0, chunks)
	var last []byte
	far.change = func(p []byte) []byte { p, last = last, p; return p }
	read("swapped", nil, chunks, 0, 0, chunks-1)
	n = 0
	far.change = func(p []byte) []byte {
		if n++; n%3 == 0 {
			return nil
		}
		return p
	}
	read("a third is missing", nil, chunks/3, 0, chunks-chunks/3, 0)
}
