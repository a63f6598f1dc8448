package host

import (
	"context"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"

	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
	"plinth/internal/peerflash"
)

// lending is what this host has from others' flash, and they from its.
type lending struct {
	counts peerflash.Counts
	lent   struct{ chunks, bytes, refused atomic.Int64 }
	// door has chunks that are lent take part in the CPU time, as one disk's reads do.
	door *gate.Door

	mu     sync.Mutex
	peers  map[string]*peerflash.Peer // by the host's name
	closed bool
}

func newLending(b *gate.Budget) *lending {
	return &lending{door: gate.NewDoor(b, gate.Limits{}), peers: make(map[string]*peerflash.Peer)}
}

// close ends connections: who reads goes to the spindles.
func (l *lending) close() {
	l.mu.Lock()
	peers := l.peers
	l.peers, l.closed = nil, true
	l.mu.Unlock()
	for _, p := range peers {
		p.Close()
	}
}

// lends reports whether this host serves its flash to others.
func (o Options) lends() bool { return o.FlashPath != "" && o.Peer != "" }

// former returns the host that had a disk before this one, as a disk reads from it; nil
// where there was none, or this host asks nobody.
func (h *Host) former(d id.Disk) disk.Peer {
	h.mu.Lock()
	name := h.formers[d]
	h.mu.Unlock()
	l := h.lending
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.opts.DialFlash == nil || name == "" || l.closed {
		return nil
	}
	p := l.peers[name]
	if p == nil {
		p = peerflash.NewPeer(peerflash.Options{
			Dial:   func(ctx context.Context) (net.Conn, error) { return h.dialFlash(ctx, name) },
			Answer: h.opts.FlashAnswer, Counts: &l.counts,
			Failed: func(err error) { h.log.Debug("another host's flash is not read for a while", "host", name, "err", err) },
		})
		l.peers[name] = p
	}
	return p.Source()
}

// dialFlash connects to a host that lends, if it has a session.
func (h *Host) dialFlash(ctx context.Context, name string) (net.Conn, error) {
	rec, err := h.catalog.hostRecord(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case rec == nil:
		return nil, fmt.Errorf("host %s has no session", name)
	case !rec.Lends || rec.Peer == "":
		return nil, fmt.Errorf("host %s: %w", name, peerflash.ErrUnable)
	}
	return h.opts.DialFlash(ctx, h.keys, rec.Peer)
}

// Formers returns which host had each disk before this one, as far as is known: for
// Options.Formers of the next session.
func (h *Host) Formers() map[id.Disk]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.formers)
}

// Lend appends a sealed chunk to dst that the host's flash cache has, for another host.
// It is false too where there is no CPU time for it now. It waits for flash alone.
func (h *Host) Lend(fp id.Fingerprint, dst []byte) (sealed []byte, ok bool) {
	if h.flash == nil || !h.flash.Contains(fp) {
		return dst, false
	}
	l := h.lending
	if !l.door.TryEnter(gate.Op{Kind: gate.Read, Bytes: lentBytes}) {
		l.lent.refused.Add(1)
		return dst, false
	}
	before := len(dst)
	if sealed, ok = h.flash.Get(fp, dst); ok {
		l.lent.chunks.Add(1)
		l.lent.bytes.Add(int64(len(sealed) - before))
	}
	return sealed, ok
}

// lentBytes is what a chunk is taken for before it is read.
const lentBytes = 4 << 10

// LendingStatus says what a host has from others' flash caches, and they from its, since
// its session began.
type LendingStatus struct {
	// Asked are the chunks that another host was asked for, Here those of them that it
	// had, of Bytes.
	Asked int64 `json:"asked"`
	Here  int64 `json:"here"`
	Bytes int64 `json:"bytes"`
	// Bad chunks did not verify. Failures are connections and answers that did not come.
	Bad      int64 `json:"bad"`
	Failures int64 `json:"failures"`
	// LentChunks went to other hosts, of LentBytes; Refused did not, for lack of CPU time.
	LentChunks int64 `json:"lent_chunks"`
	LentBytes  int64 `json:"lent_bytes"`
	Refused    int64 `json:"refused"`
}

// lendingStatus returns nil for a host that neither asks nor lends.
func (h *Host) lendingStatus() *LendingStatus {
	if h.opts.DialFlash == nil && !h.opts.lends() {
		return nil
	}
	c, l := &h.lending.counts, &h.lending.lent
	return &LendingStatus{
		Asked: c.Asked.Load(), Here: c.Here.Load(), Bytes: c.Bytes.Load(), Bad: c.Bad.Load(), Failures: c.Failed.Load(),
		LentChunks: l.chunks.Load(), LentBytes: l.bytes.Load(), Refused: l.refused.Load(),
	}
}
